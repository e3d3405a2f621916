"""A run is a directory, and each of its stages one below it: finished ones are skipped, changed ones refused.

runs/demo/
    .lock  run.json  recipe.json
    ended.json               what ended it early, till it goes on
    ppo/
        identity.json        settings and hashes of inputs, written when the stage begins
        forked_from.json     where it was forked from, if it was
        metrics.jsonl  samples.jsonl  clock.json  checkpoints/
        progress.json        how far it is, while it is at work
        faults/              steps whose numbers were not finite, to be replayed
        model/               an artefact, whole or not there
        done.json            the summary, written last
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import keel
from keel.errors import UserError, first_line
from keel.runs import files
from keel.runs.callbacks import Callback
from keel.runs.extend import Longer, longer
from keel.runs.fork import Fork, ForkPoint
from keel.runs.fork import start as start_fork
from keel.runs.identity import Identity, differences
from keel.runs.layout import CHECKPOINTS, DONE, ENDED, IDENTITY, LOCK, PROGRESS, RECIPE, RUN, STAGES
from keel.runs.leaving import STOPPED, Left
from keel.runs.stage import KEEP_CHECKPOINTS, StageRun

__all__ = ["Run", "StageRun"]

_MAX_NAMED = 3  # differing keys that a refusal spells out

Say = Callable[[str], None]


class Run:
    """One run, held by this process alone. Made by `Run.open`."""

    def __init__(
        self,
        path: Path,
        name: str,
        console: Say,
        *,
        reuse: Path | None,
        fork: ForkPoint | None,
        extend: bool,
        callbacks: Sequence[Callback],
    ) -> None:
        self.path = path
        self.name = name
        self.linked: set[str] = set()  # stages that were linked just now
        self._reuse = reuse
        self._fork = fork
        self._extend = extend
        self._callbacks = callbacks
        self._made_anew = False  # whether a stage was found to differ from that of `reuse`
        self._console = console
        self._at_work = False  # whether a stage has begun since it was opened

    @classmethod
    @contextmanager
    def open(
        cls,
        out: Path,
        name: str,
        *,
        reuse: Path | None = None,
        fresh_from: str | None = None,
        fork: ForkPoint | None = None,
        extend: bool = False,
        callbacks: Sequence[Callback] = (),
        console: Say,
    ) -> Iterator[Run]:
        """Create or go on with the run in `out`, locked against other processes until the context ends.

        `fresh_from` moves that stage and all later ones aside, to NAME.old-N. `reuse` is another run whose
        finished stages are linked where they are the same. `fork` starts its stage from a checkpoint of another
        run, and reuses the stages before it. With `extend` a stage that is only longer than it was made goes on from
        its last checkpoint. `console` is told, a sentence at a time, what happens.

        Raises UserError if another process holds the run, `fresh_from` is no stage, `reuse` or `fork` names no other
        run, or the checkpoint to fork from is not there.
        """
        if fork is not None:
            if reuse is not None:
                raise UserError(f"--fork links the earlier stages of {fork.run} by itself; leave --reuse out.")
            reuse = fork.run
        if fresh_from is not None and fresh_from not in STAGES:
            raise UserError(f"--fresh-from {fresh_from} names no stage; use one of {', '.join(STAGES)}.")
        option = "--fork" if fork is not None else "--reuse"
        if reuse is not None and not (reuse / RUN).exists():
            raise UserError(f"{option} {reuse} holds no run ({RUN} is missing); name the directory of an earlier run.")
        if reuse is not None and reuse.resolve() == out.resolve():
            raise UserError(f"{option} {reuse} is the run itself; give the new run another --out.")
        if fork is not None and not os.path.lexists(out / fork.stage):
            fork.checkpoint()  # said before the stages ahead of it are made
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {out} is not a directory; give another one.") from error
        except OSError as error:
            raise UserError(f"--out {out} cannot be made ({error.strerror}); give another one.") from error
        with _locked(out):
            files.sweep(out)
            run = cls(out, name, console, reuse=reuse, fork=fork, extend=extend, callbacks=callbacks)
            run._note_start()
            if fresh_from is not None:
                run._move_aside(STAGES[STAGES.index(fresh_from) :])
            try:
                yield run
            finally:
                for callback in callbacks:
                    callback.close()

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Around the work on a stage: what ends it is written down for those who watch, once any stage has begun."""
        try:
            with files.disk_trouble(self.path):
                yield
        except BaseException as error:
            if self._at_work:
                with suppress(OSError, ValueError):  # the disk may be what ended it, or a name that is no text
                    self._keep_ending(stage, error)
            raise

    def _keep_ending(self, stage: str, error: BaseException) -> None:
        how, sentence = _ending(error)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        ending = {"stage": stage, "how": how, "sentence": sentence, "time": now}
        try:
            files.write_json(self.path / ENDED, ending)
        except OSError:  # a full disk has room again without the progress, which is out of date now
            (self.path / stage / PROGRESS).unlink(missing_ok=True)
            files.write_json(self.path / ENDED, ending)

    def begin(self, stage: StageRun) -> None:
        """Begin the stage, or go on with it, and forget what ended the run before."""
        self._at_work = True
        (self.path / ENDED).unlink(missing_ok=True)
        stage.begin()

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Keep the resolved recipe beside the stages, for the report."""
        files.write_json(self.path / RECIPE, recipe)

    def stage(self, name: str, identity: Identity, *, keep_checkpoints: int = KEEP_CHECKPOINTS) -> StageRun:
        """The stage's directory: finished (perhaps just linked from `reuse`), begun earlier, forked, or new.

        Raises UserError if it was begun with other settings or inputs, or is a link to a stage that is gone.
        """
        if name not in STAGES:
            raise ValueError(f"stage {name!r} is not one of {STAGES}")
        path = self.path / name
        fork = self._fork if self._fork is not None and self._fork.stage == name else None
        if fork is not None:
            self._ensure_forked(fork, path, identity)
        elif self._reuse is not None and not os.path.lexists(path):
            self._link(self._reuse / name, path, identity)
        origin = Fork.read(path)
        if origin is not None:
            identity = origin.mark(identity)
        self._refuse_other(path, identity)
        return StageRun(path, identity, self._console, callbacks=self._callbacks, keep_checkpoints=keep_checkpoints)

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
        for name in ("keel", "torch", "transformers", "python"):
            was = earlier["starts"][-1].get(name, start[name]) if earlier["starts"] else start[name]
            if was != start[name]:
                self._console(
                    f"{self.path} was last run under {name} {was}, and this is {start[name]}: what follows may differ "
                    "from what would have followed there."
                )
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
        changed = differences(Identity.read(old), identity)
        if changed:
            if not self._made_anew:  # what follows from it is no news
                self._console(f"{path.name}: made anew, not reused from {old}, because of {_named(changed)}.")
            self._made_anew = True
            return
        path.symlink_to(os.path.relpath(old.resolve(), path.parent.resolve()), target_is_directory=True)
        self.linked.add(path.name)
        self._console(f"{path.name}: reused from {old}.")

    def _ensure_forked(self, fork: ForkPoint, path: Path, identity: Identity) -> None:
        """Start the stage from the checkpoint, unless an earlier start has done so."""
        if not os.path.lexists(path):
            made = start_fork(fork, path, identity)
            changed = f", with {_named(made.changed)}" if made.changed else ", with nothing changed"
            self._console(f"{path.name}: forked from step {made.step} of {fork.path}{changed}.")
            return
        origin = Fork.read(path)
        if origin is None or not origin.comes_from(fork):
            was = f"forked from step {origin.step} of {origin.source}" if origin else "not forked"
            raise UserError(
                f"Stage {path.name} in {self.path} is there already and was {was}; give the fork another --out."
            )

    def _refuse_other(self, path: Path, identity: Identity) -> None:
        if path.is_symlink() and not (path / DONE).exists():
            raise UserError(
                f"Stage {path.name} is a link to {path.resolve()}, where no finished stage is any more; "
                f"put it back, or make it here with --fresh-from {path.name}."
            )
        if not (path / IDENTITY).exists():
            return
        was = Identity.read(path)
        changed = differences(was, identity)
        if not changed:
            return
        growth = longer(path.name, was, identity)
        if not (path / DONE).exists() and not (path / CHECKPOINTS).exists():
            files.discard(path)  # it ended before there was anything to keep
        elif growth is not None and self._extend:
            self._reopen(path, growth, identity)
        else:
            going_on = "go on from its last checkpoint with --extend, " if growth is not None else ""
            raise UserError(
                f"Stage {path.name} in {self.path} was made otherwise ({_named(changed)}); {going_on}make it and all "
                f"later stages anew with --fresh-from {path.name}, or keep it and start another run with "
                f"--out NEW --reuse {self.path}."
            )

    def _reopen(self, path: Path, growth: Longer, identity: Identity) -> None:
        """Make a stage unfinished, so that it goes on; what was made from it, and its own model, are set aside."""
        if path.is_symlink():
            raise UserError(
                f"Stage {path.name} is a link to {path.resolve()}, which --extend would change; extend it there, or "
                f"start from its checkpoint with --out NEW --fork {path.resolve()}."
            )
        self._console(growth.sentence(identity.config))
        self._move_aside(STAGES[STAGES.index(path.name) + 1 :])
        (path / DONE).unlink(missing_ok=True)
        files.sync(path)
        for made in ("model", "adapter"):
            if (path / made).exists():
                files.move(path / made, path / f"{made}.{growth.key.rpartition('.')[2]}-{growth.before}")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Held by the open file, so that a kill releases it; the file itself stays."""
    with (out / LOCK).open("a+", encoding="utf-8") as file:
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


def _ending(error: BaseException) -> tuple[str, str]:
    """Whether the run failed or was left, and a sentence on it."""
    if isinstance(error, Left):
        return "left", error.sentence
    if isinstance(error, KeyboardInterrupt):
        return "left", STOPPED
    return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def _named(changed: Sequence[str]) -> str:
    more = len(changed) - _MAX_NAMED
    return "; ".join(changed[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
