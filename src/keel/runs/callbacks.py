"""Being told what a stage does while it does it: the one seam for loggers, early stopping and whatever else.

The files of the run remain the truth; a callback sees what is written to them, and can change nothing but the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.errors import UserError


@dataclass(frozen=True)
class StageInfo:
    """The stage that speaks: `config` is its settings, dotted key → JSON value; `path` its directory in `run`."""

    run: str
    name: str
    path: Path
    config: Mapping[str, Any]


class Callback:
    """Override what is of interest; as they stand, the methods do nothing. Skipped stages are silent."""

    def on_begin(self, stage: StageInfo) -> None:
        """The stage starts, or goes on after an interruption."""

    def on_resume(self, stage: StageInfo, step: int) -> None:
        """It goes on from the checkpoint of `step`: whatever was told of later steps will be told again."""

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """One line of metrics.jsonl (docs/metrics.md). True ends the stage after this step, as if all were done."""

    def on_checkpoint(self, stage: StageInfo, step: int, path: Path) -> None:
        """A checkpoint has its place on the disk; a later one may remove it."""

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        """The stage is finished."""

    def close(self) -> None:
        """The run is over, finished or not."""


class Guarded(Callback):
    """Another callback, whose mistakes are answered: `fatal` ends the run with a sentence, else it is dropped."""

    def __init__(self, name: str, inner: Callback, *, fatal: bool, warn: Callable[[str], None]) -> None:
        self.name = name
        self._inner: Callback | None = inner
        self._fatal = fatal
        self._warn = warn

    def on_begin(self, stage: StageInfo) -> None:
        self._ask("on_begin", stage)

    def on_resume(self, stage: StageInfo, step: int) -> None:
        self._ask("on_resume", stage, step)

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        return bool(self._ask("on_log", stage, step, metrics))

    def on_checkpoint(self, stage: StageInfo, step: int, path: Path) -> None:
        self._ask("on_checkpoint", stage, step, path)

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        self._ask("on_end", stage, summary)

    def close(self) -> None:
        self._ask("close")

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._inner is None:
            return None
        try:
            return getattr(self._inner, method)(*arguments)
        except UserError:
            raise
        except Exception as error:
            said = f"{self.name} raised {type(error).__name__} in {method}: {error}"
            if self._fatal:
                raise UserError(f"the callback {said}; mend it, or leave it out") from error
            self._inner = None
            self._warn(f"The logger {said}. It is dropped; the run goes on, and metrics.jsonl has every line.")
            return None


class Told:
    """All callbacks of a run, seen from one stage."""

    def __init__(self, callbacks: Sequence[Callback], stage: StageInfo) -> None:
        self.stopping = False  # whether one of them has asked for the end
        self._callbacks = callbacks
        self._stage = stage

    def begin(self) -> None:
        for callback in self._callbacks:
            callback.on_begin(self._stage)

    def resume(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_resume(self._stage, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            self.stopping |= bool(callback.on_log(self._stage, step, metrics))

    def checkpoint(self, step: int, path: Path) -> None:
        for callback in self._callbacks:
            callback.on_checkpoint(self._stage, step, path)

    def end(self, summary: Mapping[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_end(self._stage, summary)
