"""The report and the watcher see a run as it lies on disk, whatever state it is in, and change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from keel.errors import UserError
from keel.runs.identity import Identity
from keel.runs.read import read_run
from keel.runs.run import Run

IDENTITY = Identity({"sft.lr": 1e-4}, {"data": "a" * 64})


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    with Run.open(tmp_path, "demo", console=print) as run:
        run.write_recipe({"name": "demo", "ppo": {"lr": 1e-5}})
        (tmp_path / "ppo").mkdir()  # killed before it could say whose it is
        reward = run.stage("reward", IDENTITY)
        reward.begin()
        reward.log(0, {"loss": 0.5, "gap": math.nan})
        reward.log_samples(0, [{"text": "é", "score": None}])
        with (tmp_path / "reward" / "metrics.jsonl").open("a") as file:
            file.write('{"iteration": 1, "loss": 0.')
        sft = run.stage("sft", IDENTITY)
        sft.begin()
        sft.finish({"loss": 2.0})
        (tmp_path / "ppo.old-1").mkdir()

        before = contents(tmp_path)
        view = read_run(tmp_path)
        assert contents(tmp_path) == before

    assert (view.name, view.path, len(view.starts)) == ("demo", tmp_path, 1)
    assert view.recipe == {"name": "demo", "ppo": {"lr": 1e-5}}
    assert list(view.stages) == ["sft", "reward", "ppo"]

    first = view.stages["sft"]
    assert first.finished
    assert first.summary is not None
    assert first.summary["loss"] == 2.0
    assert first.identity == IDENTITY
    assert (first.metrics, first.samples) == ([], [])

    running = view.stages["reward"]
    assert not running.finished
    assert running.summary is None
    assert len(running.metrics) == 1
    assert (running.metrics[0]["iteration"], running.metrics[0]["loss"]) == (0, 0.5)
    assert math.isnan(running.metrics[0]["gap"])
    assert running.samples == [{"iteration": 0, "text": "é", "score": None}]

    begun = view.stages["ppo"]
    assert (begun.finished, begun.identity, begun.metrics) == (False, None, [])


def test_a_run_without_a_recipe_or_a_stage(tmp_path: Path) -> None:
    with Run.open(tmp_path, "demo", console=print):
        pass
    view = read_run(tmp_path)
    assert (view.recipe, view.stages) == ({}, {})


def test_a_linked_stage_reads_like_its_own_and_a_lost_one_is_left_out(tmp_path: Path) -> None:
    with Run.open(tmp_path / "old", "old", console=print) as run:
        stage = run.stage("sft", IDENTITY)
        stage.begin()
        stage.finish({})
    with Run.open(tmp_path / "new", "new", reuse=tmp_path / "old", console=print) as run:
        run.stage("sft", IDENTITY)
    assert read_run(tmp_path / "new").stages["sft"].finished
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    assert read_run(tmp_path / "new").stages == {}


def test_no_run_no_view(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none holds no run \(run.json is missing\)"):
        read_run(tmp_path / "none")
