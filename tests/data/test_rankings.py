from __future__ import annotations

from itertools import permutations, product
from typing import get_args

import pytest

from keel.config.data import Outcome
from keel.data.rankings import outcomes_of, pairs, ranks_of


def test_pairs_are_in_the_order_of_two_loops() -> None:
    assert pairs(4) == [(one, other) for one in range(4) for other in range(4) if one < other]


def test_outcomes_by_hand() -> None:
    assert outcomes_of([1, 2, 2]) == ["first", "first", "tie"]
    assert outcomes_of([3, 1, 7]) == ["second", "first", "first"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_are_found_for_exactly_the_outcomes_of_some_ranking(count: int) -> None:
    """All 3^(k(k-1)/2) sets of outcomes against all rankings, ties included, tried one by one."""
    rankings = list(product(range(1, count + 1), repeat=count))
    of_a_ranking = {tuple(outcomes_of(ranks)) for ranks in rankings}
    for outcomes in product(get_args(Outcome), repeat=len(pairs(count))):
        ranks = ranks_of(outcomes, count)
        assert (ranks is not None) == (outcomes in of_a_ranking)
        if ranks is not None:
            assert tuple(outcomes_of(ranks)) == outcomes
            assert ranks == [1 + sum(other < mine for other in ranks) for mine in ranks]


def test_a_circle_has_no_ranks() -> None:
    assert ranks_of(["first", "second", "first"], 3) is None
    assert ranks_of(["tie", "tie", "first"], 3) is None
    assert all(ranks_of(outcomes_of(ranks), 3) == list(ranks) for ranks in permutations((1, 2, 3)))
