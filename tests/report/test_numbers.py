"""Numbers as words, by hand."""

from __future__ import annotations

import math
from pathlib import Path

from keel.report import numbers
from keel.runs.read import StageView


def stage(*rows: dict[str, float]) -> StageView:
    return StageView("ppo", Path(), False, None, None, list(rows), [])


def test_number() -> None:
    assert [numbers.number(value) for value in (1.005001, -1.5, 12345.678, -0.001, 0)] == [
        "1.01",
        "−1.50",
        "12,345.68",
        "0.00",
        "0.00",
    ]
    assert numbers.number(0.16261, 3) == "0.163"
    assert [numbers.number(value) for value in (None, math.nan, math.inf, "1")] == ["–"] * 4


def test_percent_and_its_interval() -> None:
    assert numbers.percent(0.8744) == "87%"
    assert numbers.percent(0.8744, 1) == "87.4%"
    assert numbers.percent(None) == "–"
    assert numbers.percent_interval([0.841, 0.902]) == "[84, 90]"
    assert numbers.percent_range([0.841, 0.902]) == "84–90%"
    assert [numbers.percent_range(bounds) for bounds in (None, [0.1], [None, 0.2])] == ["", "", ""]


def test_duration() -> None:
    assert [numbers.duration(s) for s in (9.44, 75.2, 119.6, 7384, None)] == [
        "9.4 s",
        "1 min 15 s",
        "2 min 00 s",
        "2 h 03 min",
        "–",
    ]


def test_series_skip_what_was_not_logged_or_not_finite() -> None:
    view = stage({"iteration": 0, "a": 1.0}, {"iteration": 1, "b": 5.0}, {"iteration": 2, "a": math.nan, "b": 6.0})
    assert numbers.series(view, "a") == numbers.Series((0,), (1.0,))
    assert numbers.series(view, "b") == numbers.Series((1, 2), (5.0, 6.0))
    assert not numbers.series(view, "c")
    assert not numbers.series(None, "a")


def test_joined_keeps_only_iterations_with_both() -> None:
    view = stage({"iteration": 0, "a": 1.0, "b": 2.0}, {"iteration": 1, "a": 3.0}, {"iteration": 2, "a": 0.5, "b": 4.0})
    assert numbers.joined(view, "a", "b") == numbers.Series((1.0, 0.5), (2.0, 4.0))
