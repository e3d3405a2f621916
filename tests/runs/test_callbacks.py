"""Callbacks hear what a stage writes down, and their mistakes are answered as stated."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from keel.errors import UserError
from keel.runs.callbacks import Callback, Guarded, StageInfo
from tests.runs.support import PPO, complete, opened, weight_of


class Hearing(Callback):
    """Remembers everything, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_begin(self, stage: StageInfo) -> None:
        self.heard.append(("begin", stage.run, stage.name, dict(stage.config)))

    def on_resume(self, stage: StageInfo, step: int) -> None:
        self.heard.append(("resume", step))

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        self.heard.append(("log", step, dict(metrics)))
        return step == 3

    def on_checkpoint(self, stage: StageInfo, step: int, path: Path) -> None:
        assert (path / "manifest.json").exists()
        self.heard.append(("checkpoint", step, path.relative_to(stage.path).as_posix()))

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        self.heard.append(("end", summary["score"]))

    def close(self) -> None:
        self.heard.append(("close",))


def test_a_callback_hears_a_stage_from_beginning_to_end(tmp_path: Path) -> None:
    hearing = Hearing()
    with opened(tmp_path / "demo", callbacks=[hearing]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(1, {"loss": 0.5})
        stage.checkpoint(1, {}, weight_of(1.0))
        stage.log(2, {"loss": 0.4})
    again = Hearing()
    with suppress(KeyboardInterrupt), opened(tmp_path / "demo", callbacks=[again]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.restore()
        stage.log(2, {"loss": 0.4})
        assert not stage.stopping
        stage.log(3, {"loss": 0.3})
        assert stage.stopping
        complete(stage, {"score": 2.0})
        raise KeyboardInterrupt
    begin = ("begin", "demo", "ppo", {"ppo.lr": 1e-5})
    assert hearing.heard == [
        begin,
        ("log", 1, {"loss": 0.5}),
        ("checkpoint", 1, "checkpoints/step-00000001"),
        ("log", 2, {"loss": 0.4}),
        ("close",),
    ]
    heard = [
        begin,
        ("resume", 1),
        ("log", 2, {"loss": 0.4}),
        ("log", 3, {"loss": 0.3}),
        begin,
        ("end", 2.0),
        ("close",),
    ]
    assert again.heard == heard


class Failing(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        raise OSError("the disk is full")


def test_a_failing_logger_is_dropped_and_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    failing = Failing()
    with opened(tmp_path, callbacks=[Guarded("tensorboard", failing, fatal=False, warn=said.append)]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(1, {"loss": 0.5})
        stage.log(2, {"loss": 0.5})
        stage.finish({})
    assert failing.calls == 1
    assert said == [
        "The logger tensorboard raised OSError in on_log: the disk is full. "
        "It is dropped; the run goes on, and metrics.jsonl has every line."
    ]


def test_a_failing_callback_of_the_recipe_ends_the_run(tmp_path: Path) -> None:
    guarded = Guarded("my_rules:watch", Failing(), fatal=True, warn=lambda text: None)
    with opened(tmp_path, callbacks=[guarded]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        with pytest.raises(
            UserError, match=r"^the callback my_rules:watch raised OSError in on_log: the disk is full;"
        ):
            stage.log(1, {"loss": 0.5})


def test_what_a_guarded_callback_answers_is_passed_on(tmp_path: Path) -> None:
    with opened(tmp_path, callbacks=[Guarded("x", Hearing(), fatal=True, warn=print)]) as run:
        stage = run.stage("ppo", PPO)
        stage.begin()
        stage.log(3, {})
        assert stage.stopping
