"""One stage of a run as it grows: its curves, its last samples, and what else its directory says."""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keel.feedback.watch.downsample import Floats, thin
from keel.feedback.watch.roots import Roots
from keel.feedback.watch.tail import Tail, clean, open_regular, parse
from keel.runs.layout import CHECKPOINTS, CLOCK, DONE, FAULTS, FORKED, IDENTITY, METRICS, PROGRESS, SAMPLES

_MOST_METRICS = 2000
_MOST_SAMPLES = 1000  # the newest
_LARGEST_JSON = 8 << 20


@dataclass
class Curve:
    """A metric: the iterations at which it was measured, ascending, and its values; NaN where it was not finite."""

    xs: array[float] = field(default_factory=lambda: array("d"))
    ys: array[float] = field(default_factory=lambda: array("d"))

    def cut(self, x: float) -> None:
        """Drop what was measured at `x` and later."""
        while self.xs and self.xs[-1] >= x:
            self.xs.pop()
            self.ys.pop()

    @property
    def last(self) -> float:
        value: float = self.ys[-1]
        return value

    def at(self, x: float) -> float | None:
        """What was measured at `x`."""
        place = bisect_left(self.xs, x)
        return self.ys[place] if place < len(self.xs) and self.xs[place] == x else None

    def count_after(self, x: float) -> int:
        """How often it was measured after `x`."""
        return len(self.xs) - bisect_right(self.xs, x)

    def around(self, low: float, high: float) -> tuple[float, float]:
        """The nearest places before `low` and after `high` that were measured, so that lines reach a window's edges."""
        before, after = bisect_left(self.xs, low) - 1, bisect_right(self.xs, high)
        return self.xs[before] if before >= 0 else low, self.xs[after] if after < len(self.xs) else high

    def points(self, most: int, low: float, high: float) -> tuple[Floats, Floats]:
        """At most `most` points that show the curve from `low` to `high`."""
        start, end = bisect_left(self.xs, low), bisect_right(self.xs, high)
        xs, ys = np.array(self.xs[start:end]), np.array(self.ys[start:end])
        kept = thin(ys, most)
        return xs[kept], ys[kept]


class JsonFile:
    """A small JSON file that is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value: dict[str, Any] | None = None
        self.broken = False  # it is there, and no JSON object
        self._seen: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Whether it has changed."""
        file = open_regular(self.path)
        if file is None:
            changed = self._seen is not None
            self.value, self.broken, self._seen = None, False, None
            return changed
        with file:
            status = os.fstat(file.fileno())
            seen = status.st_ino, status.st_size, status.st_mtime_ns
            if seen == self._seen:
                return False
            self.value, self._seen = clean(parse(file.read(_LARGEST_JSON))), seen
        self.broken = self.value is None
        return True


class LiveStage:
    """A stage's directory, read as far as `refresh` has come."""

    def __init__(self, path: Path, roots: Roots) -> None:
        self.path = path
        self.name = path.name
        self._roots = roots
        self._metrics = Tail(path / METRICS)
        self._samples = Tail(path / SAMPLES)
        self.done = JsonFile(path / DONE)
        self.fork = JsonFile(path / FORKED)
        self.progress = JsonFile(path / PROGRESS)
        self.behind = False  # whether there is more to read at once
        self.changed_at = 0.0  # when something in it was last written, in seconds of the epoch
        self.faults: list[str] = []
        self.generation = 0  # counts how often what was read became void
        self.curves: dict[str, Curve] = {}
        self.iteration = -math.inf  # of the last line
        self.num_rows = 0
        self.samples: deque[dict[str, Any]] = deque(maxlen=_MOST_SAMPLES)
        self.num_samples = 0

    @property
    def readable(self) -> bool:
        """Whether it lies in what was named."""
        return self._roots.holds(self.path)

    @property
    def finished(self) -> bool:
        return self.done.value is not None

    def refresh(self, deadline: float) -> bool:
        """Read on till `time.monotonic()` reaches `deadline`; whether there was news."""
        if not self.readable:
            return False
        faults = _names(self.path / FAULTS) if self._within(self.path / FAULTS) else []
        files = (self.done, self.fork, self.progress)  # first: what is done by now has written its last line
        news = [file.refresh() for file in files if self._within(file.path)]
        news += [self._read_metrics(deadline), self._read_samples(deadline), faults != self.faults]
        self.faults = faults
        self.changed_at = _newest(self.path)
        return any(news)

    def _within(self, path: Path) -> bool:
        """Whether a file of the stage is no link to elsewhere."""
        return not os.path.islink(path) or self._roots.holds(path)

    def _read_metrics(self, deadline: float) -> bool:
        if not self._within(self._metrics.path):
            return False
        news = self._metrics.read(deadline)
        self.behind = news.behind
        if news.restarted:
            self._empty_metrics()
        for row in news.rows:
            self._add(row)
        return bool(news.rows) or news.restarted

    def _add(self, row: Mapping[str, Any]) -> None:
        x = number(row.get("iteration"))
        if x is None or not math.isfinite(x):
            return
        if x <= self.iteration:  # a run that went back: what came after is void
            self._go_back(x)
        self.iteration = x
        self.num_rows += 1
        for key, value in row.items():
            y = value if type(value) is float else math.nan if value is None else number(value)
            if y is None:
                continue
            curve = self.curves.get(key) or self._new_curve(key)
            if curve is not None:
                curve.xs.append(x)
                curve.ys.append(y)

    def _new_curve(self, key: str) -> Curve | None:
        """The curve of a metric under the name that a page can carry; none where there are too many."""
        name = clean(key)
        if key == "iteration" or len(self.curves) >= _MOST_METRICS:
            return None
        return self.curves.setdefault(name, Curve())

    def _go_back(self, x: float) -> None:
        self.generation += 1
        for curve in self.curves.values():
            curve.cut(x)
        self.curves = {key: curve for key, curve in self.curves.items() if curve.xs}

    def _read_samples(self, deadline: float) -> bool:
        if not self._within(self._samples.path):
            return False
        news = self._samples.read(deadline)
        self.behind = self.behind or news.behind
        if news.restarted:
            self._empty_samples()
        rows = [row for row in news.rows if number(row.get("iteration")) is not None]
        self.samples.extend(map(clean, rows[-_MOST_SAMPLES:]))
        self.num_samples += len(rows)
        return bool(rows) or news.restarted

    def _empty_metrics(self) -> None:
        self.generation += 1
        self.curves = {}
        self.iteration = -math.inf
        self.num_rows = 0

    def _empty_samples(self) -> None:
        self.samples.clear()
        self.num_samples = 0

    def last(self, *keys: str) -> float | None:
        """The last finite value of the first of these metrics that has one at its end."""
        for key in keys:
            if key in self.curves and math.isfinite(self.curves[key].last):
                return self.curves[key].last
        return None


def number(value: Any) -> float | None:
    """A number as JSON has it, NaN where it is beyond all floats; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _newest(folder: Path) -> float:
    """When the directory or one of the files in which a run's progress shows was written."""
    newest = 0.0
    for name in ("", METRICS, SAMPLES, IDENTITY, CLOCK, CHECKPOINTS, PROGRESS, DONE):
        try:
            newest = max(newest, (folder / name).stat().st_mtime)
        except OSError:
            continue
    return newest
