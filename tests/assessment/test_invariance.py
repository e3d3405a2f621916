"""The detector is silent on a sound scorer, and fires on each way of breaking one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from keel.assessment.invariance import invariance
from keel.assessment.statistics import Floats

LENGTHS = [3, 9, 5, 4]


def sound(rows: Sequence[int]) -> Floats:
    return np.array([float(row) for row in rows])


def with_its_batch(rows: Sequence[int]) -> Floats:
    """As batch normalisation would."""
    return sound(rows) + 0.25 * len(rows)


def with_padding(rows: Sequence[int]) -> Floats:
    """Each padding token costs a hundredth."""
    longest = max(LENGTHS[row] for row in rows)
    return sound(rows) - 0.01 * np.array([longest - LENGTHS[row] for row in rows])


def by_place(rows: Sequence[int]) -> Floats:
    """Scores handed back in another order than that of the texts."""
    return sound(sorted(rows))


def test_a_sound_scorer_passes() -> None:
    found = invariance(sound, LENGTHS, 1e-6)
    assert found == {"texts": 4, "batch": 0.0, "padding": 0.0, "order": 0.0, "tolerance": 1e-6, "holds": True}


@pytest.mark.parametrize(
    ("broken", "name", "change"),
    [(with_its_batch, "batch", 0.75), (with_padding, "padding", 0.06), (by_place, "order", 3.0)],
)
def test_a_broken_one_does_not(broken: Callable[[Sequence[int]], Floats], name: str, change: float) -> None:
    found = invariance(broken, LENGTHS, 1e-3)
    assert not found["holds"]
    assert found[name] == pytest.approx(change)


def test_rounding_within_the_tolerance_holds() -> None:
    assert invariance(lambda rows: with_its_batch(rows) * 1e-5, LENGTHS, 1e-4)["holds"]
