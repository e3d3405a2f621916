"""α held to published values, and to its formula value by value."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from keel.data.audit.reliability import interval, met, nominal, reliability

# Krippendorff (2011), "Computing Krippendorff's alpha-reliability": example C, four observers, twelve units, gaps.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
COUNTS = np.array([[sum(row[unit] == value for row in OBSERVERS) for value in range(1, 6)] for unit in range(12)])


@pytest.mark.parametrize(("alike", "alpha"), [(nominal(5), 0.743), (interval(5), 0.849)])
def test_alpha_of_krippendorffs_own_example(
    alike: np.ndarray[tuple[int, ...], np.dtype[np.float64]], alpha: float
) -> None:
    found = reliability(COUNTS, np.arange(12), alike)
    assert found is not None
    assert found[0].value == pytest.approx(alpha, abs=5e-4)
    assert found[0].interval[0] < alpha < found[0].interval[1]


def test_agreement_is_how_alike_two_values_of_a_unit_are() -> None:
    """Each value meets each other one of its unit; a unit counts by its values."""
    alike, likeness, values = interval(5), 0.0, 0
    for unit in zip(*OBSERVERS, strict=True):
        given = [value - 1 for value in unit if value is not None]
        if len(given) > 1:
            likeness += sum(alike[a, b] for a, b in permutations(given, 2)) / (len(given) - 1)
            values += len(given)
    found = reliability(COUNTS, np.arange(12), alike)
    assert found is not None
    assert found[1].value == pytest.approx(likeness / values)


def test_what_a_value_meets_leaves_itself_out() -> None:
    assert met(np.array([[2, 1]]), nominal(2)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("counts", [[[1, 0], [0, 1]], [[2, 0], [3, 0]], [[2, 0], [0, 1]]])
def test_of_single_judgements_or_one_value_there_is_no_alpha(counts: list[list[int]]) -> None:
    assert reliability(np.array(counts), np.arange(2), nominal(2)) is None
