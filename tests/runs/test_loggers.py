"""The loggers against stand-ins of their packages, and TensorBoard's own reader where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from keel.errors import UserError
from keel.runs.callbacks import Callback
from keel.runs.loggers import TensorBoardLogger, WandbLogger, make_loggers
from tests.runs.support import PPO, complete, opened, weight_of


class FakeWriter:
    """torch's SummaryWriter as far as it is used."""

    made: list[FakeWriter]

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        type(self).made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class FakeWandbRun:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    module: Any = ModuleType("torch.utils.tensorboard")
    FakeWriter.made = []
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return FakeWriter.made


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeWandbRun]:
    runs: list[FakeWandbRun] = []
    module: Any = ModuleType("wandb")

    def init(**settings: Any) -> FakeWandbRun:
        runs.append(FakeWandbRun(**settings))
        return runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def interrupted_stage(out: Path, logger: type[Callback]) -> None:
    """Two lines and a checkpoint of the first; then, by another process, the second again, and the end."""
    with opened(out, callbacks=[logger()]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(1, {"loss": 0.5, "kl": 1.0})
        stage.checkpoint(1, {}, weight_of(1.0))
        stage.log(2, {"loss": 0.4})
    with opened(out, callbacks=[logger()]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.restore()
        stage.log(2, {"loss": 0.4})
        stage.finish({"score": 2.0, "stopped": None, "nested": {"a": 1}})


def test_tensorboard_gets_every_line_and_purges_what_was_undone(tmp_path: Path, writers: list[FakeWriter]) -> None:
    interrupted_stage(tmp_path, TensorBoardLogger)
    first, second = writers
    assert first.scalars == [("loss", 0.5, 1), ("kl", 1.0, 1), ("loss", 0.4, 2)]
    assert second.scalars == [("loss", 0.4, 2)]
    assert (first.purge_step, second.purge_step) == (0, 2)  # everything from that step on is superseded
    assert first.log_dir == second.log_dir == str(tmp_path / "ppo" / "tensorboard")
    assert first.closed
    assert second.closed


def test_wandb_goes_on_under_its_id(tmp_path: Path, wandb_runs: list[FakeWandbRun]) -> None:
    interrupted_stage(tmp_path / "demo", WandbLogger)
    first, second = wandb_runs
    assert first.lines == [(1, {"loss": 0.5, "kl": 1.0}), (2, {"loss": 0.4})]
    assert second.lines == [(2, {"loss": 0.4})]
    assert first.settings == second.settings
    settings = dict(first.settings)
    assert settings.pop("id")
    assert settings == {
        "project": "keel",
        "group": "demo",
        "name": "demo/ppo",
        "resume": "allow",
        "dir": str(tmp_path / "demo" / "ppo"),
        "config": {"ppo.lr": 1e-5},
    }
    assert second.summary["score"] == 2.0
    assert "nested" not in second.summary
    assert first.finished
    assert second.finished


def test_a_stage_made_anew_is_another_wandb_run(tmp_path: Path, wandb_runs: list[FakeWandbRun]) -> None:
    interrupted_stage(tmp_path, WandbLogger)
    with opened(tmp_path, fresh_from="ppo", callbacks=[WandbLogger()]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(1, {"loss": 0.5})
        complete(stage)
    assert wandb_runs[2].settings["id"] != wandb_runs[0].settings["id"]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_its_extra(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'keel-rlhf\[{name}\]', or take it out of the recipe's loggers"):
        make_loggers([name], warn=print)


def test_real_event_files(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    interrupted_stage(tmp_path, TensorBoardLogger)
    events = reader.EventAccumulator(str(tmp_path / "ppo" / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.4)]
