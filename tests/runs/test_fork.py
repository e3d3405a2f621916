"""A fork begins where another run's checkpoint was, knows where it comes from, and leaves that run alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from keel.errors import UserError
from keel.runs.checkpoint import step_path
from keel.runs.fork import Fork, ForkPoint, measured_otherwise, measured_since, scored_otherwise
from keel.runs.identity import Identity
from keel.runs.metrics import read_lines
from tests.runs.support import PPO, SFT, complete, opened, other, weight_in, weight_of

CHANGED = other(PPO, ppo__lr=2e-5)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 (the best), 3 and 4; steps 1 to 5 are logged."""
    with opened(tmp_path / "old") as run:
        complete(run.stage("sft", SFT))
        stage = run.stage("ppo", PPO)
        stage.begin()
        for step in range(1, 6):
            stage.log(step, {"loss": step / 7})
            stage.log_samples(step, [{"text": str(step)}])
            if step < 5:
                stage.checkpoint(step, {"beta": step}, weight_of(step), best=1)
    return tmp_path / "old"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("runs/old/ppo@40", ForkPoint(Path("runs/old"), "ppo", 40)),
        ("old/sft/", ForkPoint(Path("old"), "sft", None)),
    ],
)
def test_a_fork_is_named_by_run_stage_and_step(text: str, point: ForkPoint) -> None:
    assert ForkPoint.parse(text) == point


@pytest.mark.parametrize("text", ["runs/old", "ppo@40", "runs/old/ppo@", "runs/old/ppo@last", ""])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--fork {text} should look like runs/old/ppo@40")):
        ForkPoint.parse(text)


def test_a_fork_starts_from_the_checkpoint_with_the_lines_that_led_to_it(old: Path, tmp_path: Path) -> None:
    before, said = contents(old), list[str]()
    with opened(tmp_path / "new", said, fork=ForkPoint(old, "ppo", 3)) as run:
        assert run.stage("sft", SFT).finished  # linked
        stage = run.stage("ppo", CHANGED)
        assert stage.fork is not None
        stage.begin()
        snapshot = stage.restore()
    assert snapshot is not None
    assert (snapshot.step, snapshot.state) == (3, {"beta": 3})
    assert weight_in(snapshot.path) == [3.0] * 3
    assert said[1] == f"ppo: forked from step 3 of {old}/ppo, with ppo.lr: 1e-05 → 2e-05."
    assert [line["iteration"] for line in read_lines(tmp_path / "new" / "ppo" / "metrics.jsonl")] == [1, 2, 3]
    assert [line["text"] for line in read_lines(tmp_path / "new" / "ppo" / "samples.jsonl")] == ["1", "2", "3"]
    assert sorted(os.listdir(tmp_path / "new" / "ppo" / "checkpoints")) == ["step-00000001", "step-00000003"]
    assert contents(old) == before


def test_where_it_comes_from_is_part_of_what_it_is(old: Path, tmp_path: Path) -> None:
    point = ForkPoint(old, "ppo", 3)
    for start in (point, point, None, ForkPoint(old, "ppo", None)):  # again, and without the option
        with opened(tmp_path / "new", fork=start) as run:
            stage = run.stage("ppo", CHANGED)
            stage.begin()
    fork = Fork.read(tmp_path / "new" / "ppo")
    assert fork is not None
    assert (fork.source, fork.step, fork.changed) == (f"{old}/ppo", 3, ("ppo.lr: 1e-05 → 2e-05",))
    assert fork.changed_keys == {"ppo.lr"}
    identity = json.loads((tmp_path / "new" / "ppo" / "identity.json").read_text())
    assert identity["inputs"] == {**PPO.inputs, "fork": fork.sha256}
    with opened(tmp_path / "new") as run, pytest.raises(UserError, match=r"ppo.lr: 2e-05 → 3e-05"):
        run.stage("ppo", other(PPO, ppo__lr=3e-5))
    with opened(tmp_path / "plain", reuse=tmp_path / "new") as run:
        assert not run.stage("ppo", CHANGED).finished  # a run of the recipe alone is another thing


@pytest.mark.parametrize(
    ("key", "otherwise"),
    [
        *((key, "scored") for key in ("rewards.few.weight", "input reward few", "input template of few")),
        *((key, "measured") for key in ("judge.weight", "input evaluate.judge", "input template of evaluate.judge")),
        *((key, "measured") for key in ("ppo.evaluate.utility", "input utility", "ppo.evaluate.count", "seed")),
        *(
            (key, "measured")
            for key in ("ppo.prompts.path", "input ppo.evaluate.prompts[0]", "ppo.sampling.temperature")
        ),
        *(
            (key, "")
            for key in ("ppo.evaluate.every", "ppo.update.lr", "ppo.kl.coef", "ppo.iterations", "model.precision")
        ),
    ],
)
def test_what_makes_held_out_scores_incomparable(key: str, otherwise: str) -> None:
    assert scored_otherwise({"ppo.kl.coef", key}) == (otherwise == "scored")
    assert measured_otherwise({"ppo.kl.coef", key}) == (otherwise != "")


def test_a_fork_knows_since_when_its_held_out_scores_are_of_one_scale(old: Path, tmp_path: Path) -> None:
    def forked(source: Path, name: str, step: int, identity: Identity) -> int | None:
        with opened(tmp_path / name, fork=ForkPoint(source, "ppo", step)) as run:
            run.stage("ppo", identity)
        return measured_since(tmp_path / name / "ppo")

    assert measured_since(old / "ppo") is None
    assert forked(old, "faster", 3, CHANGED) is None
    paid_otherwise = Identity({**PPO.config, "rewards.few.weight": 0.5}, PPO.inputs)
    assert forked(old, "paid", 3, paid_otherwise) == 3
    paid_faster = other(paid_otherwise, ppo__lr=2e-5)
    assert forked(tmp_path / "paid", "later", 3, paid_faster) == 3  # what came before is in its lines still


def test_a_fork_of_a_fork_is_compared_by_its_settings(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "new", fork=ForkPoint(old, "ppo", None)) as run:
        run.stage("ppo", CHANGED)
    with opened(tmp_path / "third", fork=ForkPoint(tmp_path / "new", "ppo", 4)) as run:
        stage = run.stage("ppo", CHANGED)
    assert stage.fork is not None
    assert stage.fork.changed == ()
    assert stage.fork.step == 4


def test_steps_that_are_kept_are_listed_before_anything_is_made(old: Path, tmp_path: Path) -> None:
    missing = opened(tmp_path / "new", fork=ForkPoint(old, "ppo", 2))
    sentence = f"--fork: {old}/ppo keeps no checkpoint of step 2; it has 1, 3, 4."
    with pytest.raises(UserError, match=re.escape(sentence)), missing:
        pass
    with (
        pytest.raises(UserError, match="sft has no checkpoint"),
        opened(tmp_path / "new", fork=ForkPoint(old, "sft", 2)),
    ):
        pass
    with pytest.raises(UserError, match="is the run itself"), opened(old, fork=ForkPoint(old, "ppo", 3)):
        pass
    with (
        pytest.raises(UserError, match="leave --reuse out"),
        opened(tmp_path / "new", fork=ForkPoint(old, "ppo", 3), reuse=old),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_not_forked(old: Path, tmp_path: Path) -> None:
    (step_path(old / "ppo" / "checkpoints", 3) / "state.json").write_text("{}")
    with (
        opened(tmp_path / "new", fork=ForkPoint(old, "ppo", 3)) as run,
        pytest.raises(UserError, match=r"is not whole \(state\.json has 2 bytes .*take another step"),
    ):
        run.stage("ppo", CHANGED)
    assert not (tmp_path / "new" / "ppo").exists()


def test_a_stage_that_is_there_is_not_replaced_by_a_fork(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "new") as run:
        run.stage("ppo", PPO).begin()
    with (
        opened(tmp_path / "new", fork=ForkPoint(old, "ppo", 3)) as run,
        pytest.raises(UserError, match="is there already and was not forked; give the fork another --out"),
    ):
        run.stage("ppo", PPO)
    with opened(tmp_path / "other", fork=ForkPoint(old, "ppo", 3)) as run:
        run.stage("ppo", PPO)
    with (
        opened(tmp_path / "other", fork=ForkPoint(old, "ppo", 4)) as run,
        pytest.raises(UserError, match="was forked from step 3 of"),
    ):
        run.stage("ppo", PPO)


LORA = {"model.tune": "lora", "model.lora.rank": 16, "model.lora.targets": "all-linear", "ppo.critic": "head"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.tune": "full"}, 'model.tune: "lora" → "full"'),
        ({"model.lora.rank": 8}, "model.lora.rank: 16 → 8"),
        ({"ppo.critic": "none"}, 'ppo.critic: "head" → "none"'),
    ],
)
def test_weights_that_did_not_train_are_not_forked(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    begun = Identity({**PPO.config, **LORA}, PPO.inputs)
    with opened(tmp_path / "old") as run:
        stage = run.stage("ppo", begun)
        stage.begin()
        stage.checkpoint(3, {}, weight_of(3), best=None)
    point = ForkPoint(tmp_path / "old", "ppo", 3)
    with opened(tmp_path / "new", fork=point) as run:
        with pytest.raises(UserError, match=f"^--fork: {re.escape(named)} changes which weights train, .* --fork out"):
            run.stage("ppo", Identity({**begun.config, **changes}, PPO.inputs))
        assert not list((tmp_path / "new").glob("*ppo*"))
        assert run.stage("ppo", begun).fork is not None


def test_settings_that_the_forked_stage_does_not_read_may_change(old: Path) -> None:
    """As do those of adapters in the supervised stage of a model from nothing."""
    ForkPoint(old, "sft", None).require_same_weights(LORA)
    ForkPoint(old, "reward", None).require_same_weights(LORA)  # never begun: another sentence's matter
