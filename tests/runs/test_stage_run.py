"""A stage goes on where its last whole checkpoint was, and ends with artefacts that are whole."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keel.runs import checkpoint
from keel.runs.metrics import read_lines
from tests.runs.support import PPO, SFT, WEIGHTS, complete, opened, weight_in, weight_of

# --- a stage from its beginning to its end ---


def test_a_finished_stage_is_finished_for_the_next_process(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        assert not stage.finished
        with pytest.raises(ValueError, match=r"stage sft in .* is not finished"):
            _ = stage.summary
        complete(stage, {"loss": 0.1 + 0.2, "true utility": math.nan})
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        assert stage.finished
        assert stage.summary.keys() == {"loss", "true utility", "seconds"}
        assert stage.summary["loss"] == 0.1 + 0.2
        assert stage.summary["true utility"] is None
        assert (stage.artefact() / "weights").read_text() == "sft"
        with pytest.raises(AssertionError):
            stage.begin()


def test_going_on_cuts_the_logs_back_to_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        assert stage.restore() is None
        for step in range(6):
            stage.log(step, {"loss": step / 7})
            stage.log_samples(step, [{"text": "a"}, {"text": "b"}])
            if step in (2, 4):
                stage.checkpoint(step, {"beta": step / 3}, weight_of(step))
    with (tmp_path / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "lo')
    said: list[str] = []
    with opened(tmp_path, said) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        snapshot = stage.restore()
        assert snapshot is not None
        assert (snapshot.step, snapshot.state) == (4, {"beta": 4 / 3})
        assert weight_in(snapshot.path) == [4.0, 4.0, 4.0]
        assert said == [f"ppo: goes on from step 4 ({tmp_path}/ppo/checkpoints/step-00000004)."]
        stage.log(5, {"loss": 5 / 7})
    assert [row["iteration"] for row in read_lines(tmp_path / "ppo" / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]
    assert [row["iteration"] for row in read_lines(tmp_path / "ppo" / "samples.jsonl")] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]


def test_a_damaged_checkpoint_sends_the_logs_back_further(tmp_path: Path) -> None:
    said: list[str] = []
    with opened(tmp_path, said) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        for step in range(3):
            stage.log(step, {})
            stage.checkpoint(step, {}, weight_of(step))
        (tmp_path / "ppo" / "checkpoints" / "step-00000002" / WEIGHTS).write_bytes(b"")
        snapshot = stage.restore()
    assert snapshot is not None
    assert snapshot.step == 1
    assert len(read_lines(tmp_path / "ppo" / "metrics.jsonl")) == 2
    assert [sentence.split(" in ")[0] for sentence in said] == [
        "Checkpoint step-00000002",
        f"ppo: goes on from step 1 ({tmp_path}/ppo/checkpoints/step-00000001).",
    ]


def test_a_stage_without_checkpoints_starts_its_logs_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        for _ in range(2):
            stage = run.stage("evaluate", PPO)
            stage.begin()
            stage.log(0, {"a": 1.0})
            stage.log_samples(0, [{"text": "a"}])
    assert read_lines(tmp_path / "evaluate" / "metrics.jsonl") == [{"iteration": 0, "a": 1.0}]
    assert read_lines(tmp_path / "evaluate" / "samples.jsonl") == [{"iteration": 0, "text": "a"}]


def test_without_a_whole_checkpoint_the_logs_start_empty(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(0, {"a": 1.0})
        stage.checkpoint(0, {}, weight_of(0))
        (tmp_path / "ppo" / "checkpoints" / "step-00000000" / "manifest.json").unlink()
        assert stage.restore() is None
    assert read_lines(tmp_path / "ppo" / "metrics.jsonl") == []


def test_checkpoints_that_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        for step in range(6):
            stage.checkpoint(step, {}, weight_of(step), best=min(step, 1))
        assert sorted(os.listdir(tmp_path / "ppo" / "checkpoints")) == [f"step-0000000{step}" for step in (1, 4, 5)]
        assert weight_in(stage.snapshot(1).path) == [1.0, 1.0, 1.0]
        stage.checkpoint(6, {}, weight_of(6))  # no best any more
        assert sorted(os.listdir(tmp_path / "ppo" / "checkpoints")) == ["step-00000005", "step-00000006"]


def test_a_kill_between_a_save_and_its_pruning_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        with monkeypatch.context() as unpruned:
            unpruned.setattr(checkpoint, "prune", lambda *_, **__: None)
            for step in range(5):
                stage.checkpoint(step, {"step": step}, weight_of(step), best=1)
        restored = stage.restore()
    assert restored is not None
    assert restored.state == {"step": 4}
    assert sorted(os.listdir(tmp_path / "ppo" / "checkpoints")) == [f"step-0000000{step}" for step in (1, 3, 4)]


def test_logs_are_on_the_disk_before_the_checkpoint_that_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(0, {"a": 1.0})
        stage.log_samples(0, [{"a": 1.0}])
        monkeypatch.setattr(os, "fsync", noted)
        stage.checkpoint(0, {}, weight_of(0))
    assert set(synced[:2]) == {"metrics.jsonl", "samples.jsonl"}


def test_seconds_add_up_over_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        now += 30
        stage.checkpoint(0, {}, weight_of(0))
        now += 5  # undone by the kill
    now = 7.0  # the next boot
    with opened(tmp_path) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        now += 12
        stage.finish({})
        assert stage.summary == {"seconds": 42.0}


# --- artefacts ---


def test_an_artefact_is_there_only_when_it_is_published(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        stage.begin()
        (stage.work("model") / "half").write_text("half")
        assert not stage.artefact().exists()
        work = stage.work("model")  # after a kill: empty again
        assert os.listdir(work) == []
        (work / "weights").write_text("whole")
        assert stage.publish("model") == stage.artefact()
        assert os.listdir(stage.artefact()) == ["weights"]
        assert not work.exists()


def test_a_stage_killed_between_publish_and_finish_finishes_when_started_again(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from keel.runs.run import Run\n"
        "from keel.runs.identity import Identity\n"
        "with Run.open(pathlib.Path(sys.argv[1]), 'demo', console=print) as run:\n"
        f"    stage = run.stage('sft', Identity({dict(SFT.config)!r}, {dict(SFT.inputs)!r}))\n"
        "    stage.begin()\n"
        "    (stage.work('model') / 'weights').write_text('first')\n"
        "    stage.publish('model')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    with opened(tmp_path) as run:
        stage = run.stage("sft", SFT)
        assert (stage.artefact() / "weights").read_text() == "first"
        assert not stage.finished
        complete(stage)
        assert stage.finished
        assert (stage.artefact() / "weights").read_text() == "sft"
    assert sorted(os.listdir(tmp_path / "sft")) == ["done.json", "identity.json", "model"]
