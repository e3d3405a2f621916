"""Numbers out of what a run has on disk, and numbers as words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from keel.instruments import words
from keel.instruments.alarms import comparable
from keel.instruments.words import known as known
from keel.runs.fork import measured_since
from keel.runs.read import StageView

ABSENT = "–"


@dataclass(frozen=True)
class Series:
    """One metric over the iterations that logged it; finite values only."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.xs)


def series(stage: StageView | None, key: str) -> Series:
    """The metric `key` of a stage; empty if the stage or the metric is not there."""
    rows = stage.metrics if stage else []
    points = [(row["iteration"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    return Series(tuple(x for x, _ in points), tuple(y for _, y in points))


def curves(stage: StageView | None) -> dict[str, Series]:
    """Every metric of a stage."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in stage.metrics if stage else []:
        for key, value in row.items():
            if key != "iteration" and isinstance(value, int | float) and math.isfinite(value):
                xs, ys = found.setdefault(key, ([], []))
                xs.append(row["iteration"])
                ys.append(value)
    return {key: Series(tuple(xs), tuple(ys)) for key, (xs, ys) in found.items()}


def joined(stage: StageView | None, x_key: str, y_key: str) -> Series:
    """One metric against another, in the order of the iterations that logged both."""
    xs, ys = series(stage, x_key), series(stage, y_key)
    at = dict(zip(ys.xs, ys.ys, strict=True))
    points = [(x, at[step]) for step, x in zip(xs.xs, xs.ys, strict=True) if step in at]
    return Series(tuple(x for x, _ in points), tuple(y for _, y in points))


def one_scale(stage: StageView | None) -> StageView | None:
    """The stage with those lines alone whose held-out scores can be compared: a fork's own, if it changed them."""
    return stage and replace(stage, metrics=comparable(stage.metrics, measured_since(stage.path)))


def dig(tree: Any, *keys: str) -> Any:
    """What lies under nested keys, or None where one of them is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: Any, digits: int = 2) -> str:
    """1.234 → 1.23, -1.234 → −1.23; a dash where there is no number."""
    value = known(value)
    return ABSENT if value is None else words.number(value, digits)


def count(value: Any) -> str:
    """5712 → 5,712; a dash where there is no number."""
    return number(value, 0)


def size(parameters: int) -> str:
    """949376 → 0.95 million; 1543714304 → 1.54 billion."""
    scale, name = (1e9, "billion") if parameters >= 999_500_000 else (1e6, "million")
    return f"{parameters / scale:.3g} {name}" if parameters >= 1e5 else f"{parameters:,}"


def percent(value: Any, digits: int = 0) -> str:
    """0.873 → 87%; a dash where there is no number."""
    value = known(value)
    return ABSENT if value is None else words.percent(value, digits)


def percent_interval(bounds: Any) -> str:
    """(0.84, 0.9) → [84, 90]; empty where there is none."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or None in map(known, bounds):
        return ""
    return f"[{number(100 * bounds[0], 0)}, {number(100 * bounds[1], 0)}]"


def percent_range(bounds: Any) -> str:
    """(0.84, 0.9) → 84–90%; empty where there is none."""
    text = percent_interval(bounds)
    return f"{text[1:-1].replace(', ', '–')}%" if text else ""


def duration(seconds: Any) -> str:
    """75 → 1 min 15 s; a dash where there is no number."""
    seconds = known(seconds)
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
