"""A run skips what is finished, refuses what has changed, and is held by one process at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keel.errors import UserError
from keel.runs.identity import Identity
from keel.runs.leaving import Left
from tests.runs.support import PPO, SFT, complete, opened, other, weight_of

# --- the run ---


def ending(out: Path) -> dict[str, str] | None:
    path = out / "ended.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("error", "how", "sentence"),
    [
        (UserError("data.jsonl is empty; give another"), "failed", "data.jsonl is empty; give another"),
        (RuntimeError("CUDA out of memory.\nTried"), "failed", "RuntimeError: CUDA out of memory."),
        (Left("left after step 3, as asked."), "left", "left after step 3, as asked."),
        (
            KeyboardInterrupt(),
            "left",
            "Stopped; the same command, without --fresh-from, goes on from the last checkpoint.",
        ),
    ],
)
def test_what_ends_a_run_is_kept_until_it_goes_on(
    tmp_path: Path, error: BaseException, how: str, sentence: str
) -> None:
    def fails() -> None:
        with opened(tmp_path) as run, run.at("sft"):
            run.begin(run.stage("sft", SFT))
            raise error

    with pytest.raises(type(error)):
        fails()
    kept = ending(tmp_path)
    assert kept is not None
    assert kept.pop("time").endswith("+00:00")
    assert kept == {"stage": "sft", "how": how, "sentence": sentence}
    with opened(tmp_path) as run, run.at("sft"):
        assert ending(tmp_path) is not None  # till then it stands where it stood
        run.begin(run.stage("sft", SFT))
        assert ending(tmp_path) is None


def test_what_cannot_be_written_down_hides_no_mistake(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.begin(run.stage("sft", SFT))
        with pytest.raises(UserError, match="there is no"), run.at("sft"):
            raise UserError("there is no data\udcff.jsonl")


def test_between_two_stages_too(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        with run.at("sft"):
            stage = run.stage("sft", SFT)
            run.begin(stage)
            stage.finish({})
        with pytest.raises(UserError), run.at("reward"):
            raise UserError("there is no data.jsonl")
    kept = ending(tmp_path)
    assert kept is not None
    assert (kept["stage"], kept["sentence"]) == ("reward", "there is no data.jsonl")


def test_a_start_that_is_refused_leaves_no_word(tmp_path: Path) -> None:
    with opened(tmp_path) as run, run.at("sft"):
        complete(run.stage("sft", SFT))
    with pytest.raises(UserError, match="was made otherwise"), opened(tmp_path) as run, run.at("sft"):
        run.stage("sft", other(SFT, sft__lr=1))
    assert ending(tmp_path) is None


def test_each_start_is_noted_with_its_versions(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path / "deep" / "demo") as run:
            run.write_recipe({"name": "demo", "seed": 0})
    about = json.loads((tmp_path / "deep" / "demo" / "run.json").read_text())
    assert about["name"] == "demo"
    assert len(about["starts"]) == 2
    for start in about["starts"]:
        assert torch.__version__.startswith(start["torch"])  # the build (+cpu) may be left out
        assert start["python"] == ".".join(map(str, sys.version_info[:3]))
        assert start["cores"] == os.cpu_count()
        assert start["started"].endswith("+00:00")
        assert start.keys() == {"started", "python", "keel", "torch", "transformers", "cores"}
    assert json.loads((tmp_path / "deep" / "demo" / "recipe.json").read_text()) == {"name": "demo", "seed": 0}


HOLDER = """
import sys, pathlib
from keel.runs.run import Run
with Run.open(pathlib.Path(sys.argv[1]), "demo", console=print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        sentence = f"The run in {tmp_path} is held by process {holder.pid}; wait for it to end, or give another --out."
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"), opened(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with opened(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()};"), opened(tmp_path):
            pass


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"--out {out} is not a directory"), opened(out):
            pass


def test_only_known_stages(tmp_path: Path) -> None:
    with opened(tmp_path) as run, pytest.raises(ValueError, match="stage 'pop' is not one of"):
        run.stage("pop", PPO)
    sentence = "--fresh-from pop names no stage; use one of sft, collect, reward, direct, ppo, evaluate."
    with pytest.raises(UserError, match=re.escape(sentence)), opened(tmp_path, fresh_from="pop"):
        pass


# --- what has changed is refused ---


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_stage_is_refused_by_key(tmp_path: Path, finished: bool) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        if finished:
            complete(stage)
        else:
            stage.begin()
            stage.checkpoint(1, {}, weight_of(1.0))
    sentence = (
        f"Stage sft in {tmp_path} was made otherwise (sft.lr: 0.0001 → 0.0002); make it and all later stages anew with "
        f"--fresh-from sft, or keep it and start another run with --out NEW --reuse {tmp_path}."
    )
    with opened(tmp_path) as run, pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        run.stage("sft", other(SFT, sft__lr=2e-4))


def test_a_stage_that_ended_before_its_first_checkpoint_has_nothing_to_keep(tmp_path: Path) -> None:
    """A mistake mended in the recipe must not be refused: the first start failed before anything was made."""
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        stage.begin()
        (stage.work("tokenizer") / "vocab").write_text("of the old data")
        stage.publish("tokenizer")
    changed = other(SFT, sft__lr=2e-4)
    with opened(tmp_path) as run:
        stage = run.stage("sft", changed)
        assert not stage.artefact("tokenizer").exists()
        complete(stage)
    with opened(tmp_path) as run:
        assert run.stage("sft", changed).finished


def test_changed_inputs_and_many_keys(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        complete(run.stage("sft", SFT))
        with pytest.raises(UserError, match=r"\(input data: aaaaaaaaaaaa → cccccccccccc\)"):
            run.stage("sft", Identity(SFT.config, {"data": "c" * 64}))
        with pytest.raises(UserError, match=r"a: \(absent\) → 1; b: \(absent\) → 1; c: \(absent\) → 1; and 2 more\)"):
            run.stage("sft", other(SFT, a=1, b=1, c=1, d=1, e=1))


def test_fresh_from_moves_the_stage_and_later_ones_aside_and_deletes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        for name in ("sft", "reward", "ppo"):
            complete(run.stage(name, SFT))
    changed = other(SFT, sft__lr=1.0)
    for number in (1, 2):
        said: list[str] = []
        with opened(tmp_path, said, fresh_from="reward") as run:
            assert run.stage("sft", SFT).finished
            for name in ("reward", "ppo"):
                stage = run.stage(name, changed)
                assert not stage.finished
                complete(stage)
        assert said == [f"{name}: moved aside to {name}.old-{number}." for name in ("ppo", "reward")]
        assert (tmp_path / f"ppo.old-{number}" / "model" / "weights").read_text() == "ppo"
    assert "sft.old-1" not in os.listdir(tmp_path)


# --- reuse ---


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with opened(tmp_path / "old") as run:
        complete(run.stage("sft", SFT), {"loss": 1.0})
        complete(run.stage("reward", SFT))
        run.stage("ppo", PPO).begin()
    return tmp_path / "old"


def test_unchanged_finished_stages_are_linked(old: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with opened(tmp_path / "new", said, reuse=old) as run:
        stage = run.stage("sft", SFT)
        assert stage.finished
        assert stage.summary["loss"] == 1.0
        assert (stage.artefact() / "weights").read_text() == "sft"
        assert not run.stage("reward", other(SFT, sft__epochs=3)).finished
        assert not run.stage("ppo", PPO).finished
    assert os.readlink(tmp_path / "new" / "sft") == "../old/sft"
    assert os.listdir(tmp_path / "new" / "sft")
    assert not (tmp_path / "new" / "reward").exists()
    assert not (tmp_path / "new" / "ppo").exists()
    assert said == [
        f"sft: reused from {old}/sft.",
        f"reward: made anew, not reused from {old}/reward, because of sft.epochs: 2 → 3.",
    ]
    (tmp_path / "moved").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    with opened(tmp_path / "moved" / "new") as run:
        assert run.stage("sft", SFT).finished


def test_a_link_to_a_link_names_the_stage_itself(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "second", reuse=old) as run:
        run.stage("sft", SFT)
    with opened(tmp_path / "third", reuse=tmp_path / "second") as run:
        assert run.stage("sft", SFT).finished
    assert os.readlink(tmp_path / "third" / "sft") == "../old/sft"


def test_a_stage_that_is_here_is_not_replaced_by_an_old_one(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "new") as run:
        run.stage("sft", SFT).begin()
    with opened(tmp_path / "new", reuse=old) as run:
        assert not run.stage("sft", SFT).finished
        assert not (tmp_path / "new" / "sft").is_symlink()


def test_fresh_from_moves_a_link_and_leaves_its_target_alone(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "new", reuse=old) as run:
        run.stage("sft", SFT)
    with opened(tmp_path / "new", fresh_from="sft") as run:
        complete(run.stage("sft", other(SFT, sft__lr=1.0)))
    with opened(old) as run:
        assert run.stage("sft", SFT).summary["loss"] == 1.0


def test_a_link_whose_target_is_gone_is_refused(old: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "new", reuse=old) as run:
        run.stage("sft", SFT)
    (old / "sft" / "done.json").unlink()
    sentence = f"Stage sft is a link to {old}/sft, where no finished stage is any more; put it back, or"
    for gone in (False, True):
        if gone:
            (old / "sft").rename(old / "sft.old-1")
        with opened(tmp_path / "new") as run, pytest.raises(UserError, match=re.escape(sentence)):
            run.stage("sft", SFT)


def test_reuse_of_what_is_no_other_run_is_refused(old: Path, tmp_path: Path) -> None:
    missing = opened(tmp_path / "new", reuse=tmp_path / "none")
    with pytest.raises(UserError, match=r"none holds no run \(run\.json is missing\)"), missing:
        pass
    with pytest.raises(UserError, match="is the run itself"), opened(old, reuse=old / ".." / "old"):
        pass


def test_a_finished_stage_without_identity_is_refused(old: Path, tmp_path: Path) -> None:
    (old / "sft" / "identity.json").unlink()
    with opened(tmp_path / "new", reuse=old) as run, pytest.raises(UserError, match=r"has no identity\.json"):
        run.stage("sft", SFT)


def test_importing_needs_no_torch() -> None:
    script = "import sys, keel.runs.run, keel.runs.read, keel.seeds; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
