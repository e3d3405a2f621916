"""A run is a directory, and each of its stages one below it: finished ones are skipped, changed ones refused.

runs/demo/
    .lock  run.json  recipe.json
    ppo/
        identity.json        settings and hashes of inputs, written when the stage begins
        metrics.jsonl  samples.jsonl  clock.json  checkpoints/
        model/               an artefact, whole or not there
        done.json            the summary, written last
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keel
from keel.errors import UserError
from keel.runs import files
from keel.runs.identity import Identity, differences
from keel.runs.layout import CHECKPOINTS, CLOCK, DONE, IDENTITY, METRICS, RECIPE, RUN, SAMPLES, STAGES
from keel.runs.metrics import MetricsLog, SamplesLog

if TYPE_CHECKING:
    from torch import Tensor

    from keel.runs.checkpoint import Snapshot

_LOCK = ".lock"
_KEEP_LAST = 2  # checkpoints, besides the best
_MAX_NAMED = 3  # differing keys that a refusal spells out

Console = Callable[[str], None]


class Run:
    """One run, held by this process alone. Made by `Run.open`."""

    def __init__(self, path: Path, name: str, reuse: Path | None, console: Console) -> None:
        self.path = path
        self.name = name
        self.linked: set[str] = set()  # stages that were linked just now
        self._reuse = reuse
        self._made_anew = False  # whether a stage was found to differ from that of `reuse`
        self._console = console

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, name: str, *, reuse: Path | None = None, fresh_from: str | None = None, console: Console
    ) -> Iterator[Run]:
        """Create or go on with the run in `out`, locked against other processes until the context ends.

        `fresh_from` moves that stage and all later ones aside, to NAME.old-N. `reuse` is another run whose
        finished stages are linked where they are the same. `console` is told, a sentence at a time, what happens.

        Raises UserError if another process holds the run, `fresh_from` is no stage, or `reuse` is no other run.
        """
        if fresh_from is not None and fresh_from not in STAGES:
            raise UserError(f"--fresh-from {fresh_from} names no stage; use one of {', '.join(STAGES)}.")
        if reuse is not None and not (reuse / RUN).exists():
            raise UserError(f"--reuse {reuse} holds no run ({RUN} is missing); name the directory of an earlier run.")
        if reuse is not None and reuse.resolve() == out.resolve():
            raise UserError(f"--reuse {reuse} is the run itself; give the new run another --out.")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {out} is not a directory; give another one.") from error
        except OSError as error:
            raise UserError(f"--out {out} cannot be made ({error.strerror}); give another one.") from error
        with _locked(out):
            files.sweep(out)
            run = cls(out, name, reuse, console)
            run._note_start()
            if fresh_from is not None:
                run._move_aside(STAGES[STAGES.index(fresh_from) :])
            yield run

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Keep the resolved recipe beside the stages, for the report."""
        files.write_json(self.path / RECIPE, recipe)

    def stage(self, name: str, identity: Identity) -> StageRun:
        """The stage's directory: finished (perhaps just linked from `reuse`), begun earlier, or new.

        Raises UserError if it was begun with other settings or inputs, or is a link to a stage that is gone.
        """
        if name not in STAGES:
            raise ValueError(f"stage {name!r} is not one of {STAGES}")
        path = self.path / name
        if self._reuse is not None and not os.path.lexists(path):
            self._link(self._reuse / name, path, identity)
        self._refuse_other(path, identity)
        return StageRun(path, identity, self._console)

    def _note_start(self) -> None:
        """Each start with its versions: a run may be resumed under others."""
        start = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "keel": keel.__version__,
            "torch": _version("torch"),
            "transformers": _version("transformers"),
            "cores": os.cpu_count(),
        }
        earlier = files.read_json(self.path / RUN) or {"starts": []}
        files.write_json(self.path / RUN, {"name": self.name, "starts": [*earlier["starts"], start]})

    def _move_aside(self, stages: Sequence[str]) -> None:
        present = [name for name in stages if os.path.lexists(self.path / name)]
        number = 1
        while any(os.path.lexists(self.path / f"{name}.old-{number}") for name in present):
            number += 1
        for name in reversed(present):  # a later stage never stands without the earlier one it was made from
            files.move(self.path / name, self.path / f"{name}.old-{number}")
            self._console(f"{name}: moved aside to {name}.old-{number}.")

    def _link(self, old: Path, path: Path, identity: Identity) -> None:
        if not (old / DONE).exists():
            return
        changed = differences(_read_identity(old), identity)
        if changed:
            if not self._made_anew:  # what follows from it is no news
                self._console(f"{path.name}: made anew, not reused from {old}, because of {_named(changed)}.")
            self._made_anew = True
            return
        path.symlink_to(os.path.relpath(old.resolve(), path.parent.resolve()), target_is_directory=True)
        self.linked.add(path.name)
        self._console(f"{path.name}: reused from {old}.")

    def _refuse_other(self, path: Path, identity: Identity) -> None:
        if path.is_symlink() and not (path / DONE).exists():
            raise UserError(
                f"Stage {path.name} is a link to {path.resolve()}, where no finished stage is any more; "
                f"put it back, or make it here with --fresh-from {path.name}."
            )
        if not (path / IDENTITY).exists():
            return
        changed = differences(_read_identity(path), identity)
        if changed and not (path / DONE).exists() and not (path / CHECKPOINTS).exists():
            files.discard(path)  # it ended before there was anything to keep
        elif changed:
            raise UserError(
                f"Stage {path.name} in {self.path} was made otherwise ({_named(changed)}); make it and all later "
                f"stages anew with --fresh-from {path.name}, or keep it and start another run with "
                f"--out NEW --reuse {self.path}."
            )


class StageRun:
    """One stage of a run. If it is not `finished`: `begin`, `restore`, then log and checkpoint, `finish`."""

    def __init__(self, path: Path, identity: Identity, console: Console) -> None:
        self.path = path
        self.identity = identity
        self._console = console
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

    def artefact(self, name: str = "model") -> Path:
        """Where the published artefact `name` lies; it need not be there yet."""
        return self.path / name

    def begin(self) -> None:
        """Make the directory, say whose it is, and start the clock. Without a checkpoint the logs start empty."""
        assert not self.finished, self.path
        self.path.mkdir(exist_ok=True)
        files.sweep(self.path)
        files.write_json(self.path / IDENTITY, self.identity.to_dict())
        self._seconds_before = float((files.read_json(self.path / CLOCK) or {"seconds": 0.0})["seconds"])
        self._started_at = time.monotonic()
        if not self._checkpoints.exists():
            self._truncate_logs(-1)

    def restore(self) -> Snapshot | None:
        """The newest whole checkpoint, the logs cut back to its step; None if the stage starts at its beginning."""
        from keel.runs import checkpoint

        path = checkpoint.latest(self._checkpoints, self._console)
        if path is None:
            self._truncate_logs(-1)
            return None
        snapshot = checkpoint.load(path)
        self._prune(snapshot.state["best"])  # a kill may have come between a save and this
        self._truncate_logs(snapshot.step)
        self._console(f"{self.name}: goes on from step {snapshot.step} ({path}).")
        return _as_given(snapshot)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. Call it before the checkpoint of the same step."""
        self._metrics.append(iteration, values)

    def log_samples(self, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line of samples.jsonl a row. Call it before the checkpoint of the same step."""
        self._samples.append(iteration, rows)

    def checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """Save step `step` (see `checkpoint.save`); of the others keep the newest, and that of step `best`."""
        from keel.runs import checkpoint

        self._metrics.sync()  # a checkpoint must not outlive the lines that led to it
        self._samples.sync()
        checkpoint.save(self._checkpoints, step, tensors, {"best": best, "stage": dict(state)})
        self._prune(best)
        files.write_json(self.path / CLOCK, {"seconds": self._seconds()})

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
        files.write_json(self.path / DONE, {**summary, "seconds": self._seconds()})

    def _prune(self, best: int | None) -> None:
        from keel.runs import checkpoint

        checkpoint.prune(self._checkpoints, keep_last=_KEEP_LAST, keep=() if best is None else (best,))

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


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Held by the open file, so that a kill releases it; the file itself stays."""
    with (out / _LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"The run in {out} is held by process {file.read().strip() or '(just starting)'}; "
                "wait for it to end, or give another --out."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _read_identity(path: Path) -> Identity:
    content = files.read_json(path / IDENTITY)
    if content is None:
        raise UserError(f"{path} is finished but has no {IDENTITY}; it was not made by keel, or was changed since.")
    return Identity.from_dict(content)


def _named(changed: Sequence[str]) -> str:
    more = len(changed) - _MAX_NAMED
    return "; ".join(changed[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
