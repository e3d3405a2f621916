"""A stage that is only to be longer goes on; what was made from it is set aside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from keel.errors import UserError
from keel.runs.extend import Longer, longer
from keel.runs.identity import Identity
from tests.runs.support import complete, opened, other, weight_of

SFT = Identity({"sft.epochs": 2, "sft.lr": 0.1, "sft.schedule": "constant", "sft.warmup": 0.0}, {"data": "a"})
PPO = Identity({"ppo.iterations": 6, "ppo.lr": 0.1}, {"policy": "b"})


@pytest.mark.parametrize(
    ("stage", "old", "changes", "inputs", "found"),
    [
        ("sft", SFT, {"sft__epochs": 3}, {}, Longer("sft", "sft.epochs", 2, 3)),
        ("ppo", PPO, {"ppo__iterations": 7}, {}, Longer("ppo", "ppo.iterations", 6, 7)),
        ("sft", SFT, {"sft__epochs": 2}, {}, None),
        ("sft", SFT, {"sft__epochs": 1}, {}, None),
        ("sft", SFT, {"sft__epochs": 3, "sft__lr": 0.2}, {}, None),
        ("sft", SFT, {"sft__epochs": 3, "seed": 1}, {}, None),
        ("sft", SFT, {"sft__epochs": 3}, {"data": "other"}, None),
        ("collect", SFT, {"sft__epochs": 3}, {}, None),
    ],
)
def test_only_a_greater_length_counts(
    stage: str, old: Identity, changes: dict[str, Any], inputs: dict[str, str], found: Longer | None
) -> None:
    new = other(old, **changes)
    assert longer(stage, old, Identity(new.config, {**new.inputs, **inputs})) == found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sft.schedule": "cosine", "sft.warmup": 0.1}, "the learning rate jumps to where that one stands"),
        ({"sft.schedule": "constant", "sft.warmup": 0.1}, "only the warm-up was shorter than that of a run as long"),
        ({"sft.schedule": "constant", "sft.warmup": 0.0}, "the weights will be those of a run as long from the start"),
    ],
)
def test_what_becomes_of_the_learning_rate_is_said(settings: dict[str, Any], said: str) -> None:
    sentence = Longer("sft", "sft.epochs", 2, 3).sentence(settings)
    assert sentence.startswith("sft: extended, sft.epochs 2 → 3; ")
    assert said in sentence
    in_ppo = {key.replace("sft.", "ppo.update."): value for key, value in settings.items()}
    assert said in Longer("ppo", "ppo.iterations", 2, 3).sentence(in_ppo)


def test_what_overlap_means_for_the_first_batch_is_said() -> None:
    sentence = Longer("ppo", "ppo.iterations", 2, 3).sentence({"ppo.servers.overlap": True})
    assert sentence.endswith("as long from the start, but for one batch that is drawn anew, and not ahead.")


def finished_run(out: Path) -> None:
    with opened(out) as run:
        for name in ("sft", "ppo", "evaluate"):
            stage = run.stage(name, SFT if name == "sft" else PPO)
            stage.begin()
            stage.checkpoint(2, {}, weight_of(1.0))
            (stage.work("model") / "weights").write_text(name)
            stage.publish("model")
            stage.finish({})


def test_the_refusal_names_the_way_on(tmp_path: Path) -> None:
    finished_run(tmp_path)
    with opened(tmp_path) as run, pytest.raises(UserError) as raised:
        run.stage("sft", other(SFT, sft__epochs=3))
    assert str(raised.value) == (
        f"Stage sft in {tmp_path} was made otherwise (sft.epochs: 2 → 3); go on from its last checkpoint with "
        "--extend, make it and all later stages anew with --fresh-from sft, or keep it and start another run with "
        f"--out NEW --reuse {tmp_path}."
    )
    for changed in (other(SFT, sft__epochs=1), other(SFT, sft__epochs=3, sft__lr=1.0)):
        with opened(tmp_path, extend=True) as run, pytest.raises(UserError, match="made otherwise") as raised:
            run.stage("sft", changed)
        assert "--extend" not in str(raised.value)


def test_an_extended_stage_goes_on_and_later_ones_are_set_aside(tmp_path: Path) -> None:
    finished_run(tmp_path)
    said: list[str] = []
    with opened(tmp_path, said, extend=True) as run:
        stage = run.stage("sft", other(SFT, sft__epochs=3))
        assert not stage.finished
        assert not stage.artefact().exists()  # nothing is made from the shorter one's model by mistake
        stage.begin()
        snapshot = stage.restore()
        assert snapshot is not None
        assert snapshot.step == 2
    assert said[1:3] == [f"{name}: moved aside to {name}.old-1." for name in ("evaluate", "ppo")]
    assert sorted(name for name in os.listdir(tmp_path) if "old" in name) == ["evaluate.old-1", "ppo.old-1"]
    assert (tmp_path / "sft" / "model.epochs-2" / "weights").read_text() == "sft"
    with opened(tmp_path, said, extend=True) as run:  # interrupted: the same command goes on
        stage = run.stage("sft", other(SFT, sft__epochs=3))
        assert not stage.finished
        complete(stage)
    with opened(tmp_path) as run:
        assert run.stage("sft", other(SFT, sft__epochs=3)).finished


def test_a_linked_stage_is_not_extended(tmp_path: Path) -> None:
    finished_run(tmp_path / "old")
    with opened(tmp_path / "new", reuse=tmp_path / "old") as run:
        run.stage("sft", SFT)
    with (
        opened(tmp_path / "new", extend=True) as run,
        pytest.raises(UserError, match=r"is a link to .*, which --extend would change; extend it there, or"),
    ):
        run.stage("sft", other(SFT, sft__epochs=3))
    assert (tmp_path / "old" / "sft" / "done.json").exists()
