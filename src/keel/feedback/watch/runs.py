"""The runs that are watched, by the names that pages call them: the only way from a name to a directory."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keel.feedback.refused import Refused
from keel.feedback.watch.held import is_held
from keel.feedback.watch.roots import Roots
from keel.feedback.watch.stage import JsonFile, LiveStage, number
from keel.feedback.watch.tail import open_regular
from keel.runs.layout import ENDED, LOCK, RECIPE, RUN, STAGES

_EVERY = 0.9  # seconds between two looks at what grows, however many ask: a little less than streams wait
_SELDOM = 10.0  # at what has been still for _STILL seconds, and at which runs there are
_STILL = 600.0
_READING = 0.5  # seconds that one look may read
_LARGEST_REPORT = 64 << 20
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")


class LiveRun:
    """A run's directory, read as far as `refresh` has come; `version` is that of the last news."""

    def __init__(self, run_id: str, label: str, path: Path, roots: Roots) -> None:
        self.id = run_id
        self.label = label
        self.path = path
        self.version = 0
        self.about = JsonFile(path / RUN)
        self.ended = JsonFile(path / ENDED)
        self.held = False  # whether a process is at work on it, as far as this machine knows
        self._recipe = JsonFile(path / RECIPE)
        self.stages: dict[str, LiveStage] = {}
        self._roots = roots
        self.due = 0.0  # when it is looked at again, by `time.monotonic()`

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self._recipe.value or {}

    @property
    def name(self) -> str:
        """What its recipe calls it."""
        found = (self.about.value or {}).get("name")
        return found if isinstance(found, str) and found else self.path.name

    @property
    def troubles(self) -> list[str]:
        """The files of its own that cannot be read."""
        files = [self.about, self._recipe, *(stage.done for stage in self.stages.values())]
        return [str(file.path.relative_to(self.path)) for file in files if file.broken]

    @property
    def changed_at(self) -> float:
        return max((stage.changed_at for stage in self.stages.values()), default=0.0)

    @property
    def behind(self) -> bool:
        """Whether there are lines of it that have not been read."""
        return not self.due or any(stage.behind for stage in self.stages.values())

    @property
    def planned(self) -> list[str]:
        """The stages that it has or means to have, in their order."""
        return [name for name in STAGES if name in self.stages or self.recipe.get(name) is not None]

    def refresh(self, deadline: float) -> bool:
        """Whether there was news."""
        now = time.monotonic()
        if now < self.due and not self.behind:
            return False
        held = self._roots.holds(self.path / LOCK) and is_held(self.path / LOCK)
        news = [held != self.held]
        self.held = held  # first: whoever has let it go by now has written what ended it
        news += [file.refresh() for file in (self.about, self.ended, self._recipe) if self._roots.holds(file.path)]
        there = [name for name in STAGES if os.path.isdir(self.path / name)]
        news.append(there != list(self.stages))
        self.stages = {name: self.stages.get(name) or LiveStage(self.path / name, self._roots) for name in there}
        news += [stage.refresh(deadline) for stage in self.stages.values()]
        still = time.time() - self.changed_at > _STILL
        self.due = now + (_SELDOM if still and not any(news) else _EVERY)
        return any(news)

    def report(self) -> bytes | None:
        """The page that `keel report` wrote into its directory, or for it and its neighbours into the one above."""
        path = self._report
        file = open_regular(path) if path else None
        if file is None:
            return None
        with file:
            return bytes(file.read(_LARGEST_REPORT))

    @property
    def has_report(self) -> bool:
        return self._report is not None

    @property
    def _report(self) -> Path | None:
        paths = (folder / "report.html" for folder in (self.path, self.path.parent))
        return next((path for path in paths if os.path.isfile(path) and self._roots.holds(path)), None)

    def setting(self, *keys: str) -> Any:
        """A key of its recipe, None where it has none."""
        found: Any = self.recipe
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def numeric(self, *keys: str) -> float | None:
        """A key of its recipe that is a number."""
        return number(self.setting(*keys))


class Runs:
    """Every run at or below the named directories, as they are now. Several threads may ask."""

    def __init__(self, named: Sequence[Path]) -> None:
        """Raises UserError for what is no directory."""
        self.version = 0
        self.searched = 0  # the version at which runs last came or went
        self._server = secrets.token_hex(4)  # the versions of another process mean nothing here
        self._roots = Roots(named)
        self._runs: dict[Path, LiveRun] = {}
        self._ids: dict[str, Path] = {}  # also of what is gone, so that a name never changes its meaning
        self._lock = threading.RLock()
        self._looked_for = -_SELDOM

    @contextmanager
    def seen(self) -> Iterator[Mapping[str, LiveRun]]:
        """The runs by name, none older than a second, and still while the context lasts."""
        with self._lock:
            self._look()
            yield {run.id: run for run in self._runs.values()}

    @contextmanager
    def one(self, run_id: str) -> Iterator[LiveRun]:
        """That run, as `seen`. Raises Refused if there is none of that name."""
        with self.seen() as runs:
            if run_id not in runs:
                raise Refused("not_found", "There is no run of that name among those that are watched.")
            run = runs[run_id]
            if run.behind:
                self._read(run, time.monotonic() + _READING)
            yield run

    def cursor_of(self, version: int) -> str:
        """The version as clients keep it."""
        return f"{self._server}-{version}"

    @property
    def cursor(self) -> str:
        """The cursor of now."""
        return self.cursor_of(self.version)

    def version_at(self, cursor: str) -> int:
        """What a client has seen; nothing, where its cursor is another server's."""
        server, _, version = cursor.partition("-")
        return int(version) if server == self._server and re.fullmatch("[0-9]{1,15}", version) else 0

    @property
    def behind(self) -> bool:
        """Whether files that are there have not been read to their end."""
        return any(run.behind for run in self._runs.values())

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_for >= (_SELDOM if self._runs else _EVERY):
            self._search()
            self._looked_for = now
        for run in sorted(self._runs.values(), key=lambda run: run.due):
            self._read(run, now + _READING)
            if time.monotonic() >= now + _READING:
                break

    def _read(self, run: LiveRun, deadline: float) -> None:
        if run.refresh(deadline):
            self.version += 1
            run.version = self.version

    def _search(self) -> None:
        found = {path: label for label, path in self._roots.runs()}
        if found.keys() == self._runs.keys():
            return
        self.version += 1
        self.searched = self.version
        self._runs = {
            path: self._runs.get(path) or LiveRun(self._id(label, path), label, path, self._roots)
            for path, label in found.items()
        }

    def _id(self, label: str, path: Path) -> str:
        base = _OTHER.sub("-", label).strip(".-") or "run"
        names = [base, *(f"{base}-{number}" for number in range(2, len(self._ids) + 3))]
        name = next(name for name in names if self._ids.get(name, path) == path)
        self._ids[name] = path
        return name
