from __future__ import annotations

import pytest

from keel.starters.facts import percentile, share_beyond


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_of_one_to_a_hundred(share: float, expected: int) -> None:
    assert percentile([*range(100, 0, -1)], share) == expected


def test_a_single_length_is_every_percentile() -> None:
    assert percentile([7], 0.5) == percentile([7], 0.99) == 7


def test_the_share_beyond_a_limit_is_strict() -> None:
    assert share_beyond([1, 2, 3, 4], 2) == 0.5
