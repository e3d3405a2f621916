"""One stage of a run: its logs, checkpoints and artefacts, each whole or not there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from keel.runs import files, leaving
from keel.runs.callbacks import Callback, StageInfo, Told
from keel.runs.fork import Fork
from keel.runs.identity import Identity
from keel.runs.layout import CHECKPOINTS, CLOCK, DONE, IDENTITY, METRICS, PROGRESS, SAMPLES
from keel.runs.metrics import MetricsLog, SamplesLog

if TYPE_CHECKING:
    from keel.runs.checkpoint import Snapshot

KEEP_CHECKPOINTS = 2  # the newest, besides the best


class StageRun:
    """One stage of a run. If it is not `finished`: `begin`, `restore`, then log and checkpoint, `finish`."""

    def __init__(
        self,
        path: Path,
        identity: Identity,
        console: Callable[[str], None],
        *,
        callbacks: Sequence[Callback] = (),
        keep_checkpoints: int = KEEP_CHECKPOINTS,
    ) -> None:
        self.path = path
        self.identity = identity
        self._console = console
        self._keep_checkpoints = keep_checkpoints
        self._told = Told(callbacks, StageInfo(path.resolve().parent.name, path.name, path, identity.config))
        self._metrics = MetricsLog(path / METRICS)
        self._samples = SamplesLog(path / SAMPLES)
        self._checkpoints = path / CHECKPOINTS
        self._started_at: float | None = None
        self._seconds_before = 0.0

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return (self.path / DONE).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given, and `seconds`; NaN and infinities are None. ValueError if not finished."""
        summary = files.read_json(self.path / DONE)
        if summary is None:
            raise ValueError(f"stage {self.name} in {self.path.parent} is not finished")
        return summary

    @property
    def stopping(self) -> bool:
        """Whether a callback has asked for the end after the line just logged."""
        return self._told.stopping

    @property
    def leaving(self) -> bool:
        """Whether the process has been told to end: the step that was just logged wants a checkpoint, then `leave`."""
        return leaving.asked()

    def leave(self, step: int, why: str = "as asked") -> NoReturn:
        """End the run where the checkpoint of `step` is written. Raises Left."""
        sentence = f"left after step {step}, {why}; {leaving.GOES_ON} there."
        self._console(f"{self.name}: {sentence}")
        raise leaving.Left(sentence)

    @property
    def fork(self) -> Fork | None:
        """Where the stage was forked from, if it was."""
        return Fork.read(self.path)

    def artefact(self, name: str = "model") -> Path:
        """Where the published artefact `name` lies; it need not be there yet."""
        return self.path / name

    def begin(self) -> None:
        """Make the directory, say whose it is, and start the clock. Without a checkpoint the logs start empty."""
        assert not self.finished, self.path
        self.path.mkdir(exist_ok=True)
        files.sweep(self.path)
        (self.path / PROGRESS).unlink(missing_ok=True)
        files.write_json(self.path / IDENTITY, self.identity.to_dict())
        self._seconds_before = float((files.read_json(self.path / CLOCK) or {"seconds": 0.0})["seconds"])
        self._started_at = time.monotonic()
        if not self._checkpoints.exists():
            self._truncate_logs(-1)
        self._told.begin()

    def restore(self, before: int | None = None) -> Snapshot | None:
        """The newest whole checkpoint, the logs cut back to its step; None if the stage starts at its beginning.

        With `before`, the newest one of a lower step.
        """
        from keel.runs import checkpoint

        path = checkpoint.latest(self._checkpoints, self._console, before)
        if path is None:
            self._truncate_logs(-1)
            return None
        snapshot = checkpoint.load(path)
        self._prune(snapshot.state["best"])  # a kill may have come between a save and this
        self._truncate_logs(snapshot.step)
        self._console(f"{self.name}: goes on from step {snapshot.step} ({path}).")
        self._told.resume(snapshot.step)
        return _as_given(snapshot)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. Call it before the checkpoint of the same step."""
        self._metrics.append(iteration, values)
        self._told.log(iteration, values)

    def log_samples(self, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line of samples.jsonl a row. Call it before the checkpoint of the same step."""
        self._samples.append(iteration, rows)

    def checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        write: Callable[[Path], None] | None = None,
        *,
        best: int | None = None,
    ) -> None:
        """Save step `step` (see `checkpoint.save`); of the others keep the newest, and that of step `best`."""
        from keel.runs import checkpoint

        self._metrics.sync()  # a checkpoint must not outlive the lines that led to it
        self._samples.sync()
        path = checkpoint.save(self._checkpoints, step, {"best": best, "stage": dict(state)}, write)
        self._prune(best)
        files.write_json(self.path / CLOCK, {"seconds": self._seconds()})
        self._told.checkpoint(step, path)

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of that step is still there."""
        from keel.runs import checkpoint

        return step in checkpoint.steps(self._checkpoints)

    def snapshot(self, step: int) -> Snapshot:
        """The kept checkpoint of one step, for instance the best. Raises ValueError if it is not whole."""
        from keel.runs import checkpoint

        return _as_given(checkpoint.load(checkpoint.step_path(self._checkpoints, step)))

    def work(self, name: str) -> Path:
        """An empty directory in which artefact `name` is written, before `publish` gives it its name."""
        path = self._work_path(name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def publish(self, name: str) -> Path:
        """Put what was written in `work(name)` in the artefact's place, and return that."""
        work, artefact = self._work_path(name), self.artefact(name)
        files.sync_tree(work)
        if artefact.exists():  # published by a process that was killed before it could finish
            files.discard(artefact)
        files.move(work, artefact)
        return artefact

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the stage as finished. `seconds` is its wall-clock time, less what kills have undone."""
        self._metrics.sync()
        self._samples.sync()
        (self.path / PROGRESS).unlink(missing_ok=True)
        files.write_json(self.path / DONE, {**summary, "seconds": self._seconds()})
        self._told.end(self.summary)

    def _prune(self, best: int | None) -> None:
        from keel.runs import checkpoint

        checkpoint.prune(self._checkpoints, keep_last=self._keep_checkpoints, keep=() if best is None else (best,))

    def _work_path(self, name: str) -> Path:
        return self.path / f".{name}.work"

    def _truncate_logs(self, step: int) -> None:
        self._metrics.truncate_after(step)
        self._samples.truncate_after(step)

    def _seconds(self) -> float:
        assert self._started_at is not None, "begin() comes first"
        return self._seconds_before + time.monotonic() - self._started_at


def _as_given(snapshot: Snapshot) -> Snapshot:
    """With the state that the stage gave, without what `StageRun.checkpoint` put around it."""
    return replace(snapshot, state=snapshot.state["stage"])
