"""How far people agree, by hand; and bounds that hold where the best rule is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.assessment.agreement import agreement_of, by_agreement, ceiling

NONE = np.nan


def test_agreement_is_the_majoritys_share_unless_the_chance_is_known() -> None:
    items = np.array([5, 5, 5, 8, 9, 9])
    first = np.array([1, 0, 0, 1, 1, 0])
    known = np.array([NONE, NONE, NONE, NONE, 0.1, 0.9])
    found = agreement_of(items, first, known)
    assert found[:3] == pytest.approx([2 / 3] * 3)
    assert np.isnan(found[3])  # one vote agrees with nobody
    assert found[4:] == pytest.approx([0.9, 0.9])


def test_the_ceiling_by_hand() -> None:
    """Votes 3:1 agree in 6/12 of their ordered twos, 2:0 in all: A = 3/4, so at most ½ + ½√½. The lone vote is out."""
    items = np.array([1, 1, 1, 1, 2, 2, 3])
    first = np.array([1, 1, 1, 0, 0, 0, 1])
    right = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    found = ceiling(items, first, right, np.arange(7))
    assert found is not None
    assert (found["items"], found["votes"]) == (2, 6)
    assert found["agreement"] == found["lowest"] == pytest.approx(0.75)
    assert found["highest"] == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert found["model"]["accuracy"] == pytest.approx(5 / 6)
    assert ceiling(items[-1:], first[-1:], right[-1:], items[-1:]) is None


@pytest.mark.parametrize("chances", [(0.8, 0.8), (0.55, 0.95)])
def test_the_best_rule_lies_between_the_bounds(chances: tuple[float, float]) -> None:
    """3,000 items of three votes, half of each chance; with one chance alone the upper bound is the best rule's."""
    draws = np.random.default_rng(0)
    chance = np.repeat(chances, 1500)
    first = (draws.random((3000, 3)) < chance[:, None]).astype(int).reshape(-1)
    found = ceiling(np.repeat(np.arange(3000), 3), first, first.astype(float), np.repeat(np.arange(3000), 3))
    assert found is not None
    best = float(np.mean(chances))
    assert found["lowest"] < best < found["highest"] + 0.01
    assert found["model"]["accuracy"] == pytest.approx(best, abs=0.02)  # it always says "first", the best rule here
    if chances[0] == chances[1]:
        assert found["highest"] == pytest.approx(best, abs=0.01)


def test_votes_that_agree_less_than_coins_bound_nothing() -> None:
    found = ceiling(np.array([1, 1]), np.array([0, 1]), np.array([1.0, 0.0]), np.array([1, 1]))
    assert found is not None
    assert (found["agreement"], found["lowest"], found["highest"]) == (0.0, 0.5, 0.5)


def test_accuracy_at_each_level_of_agreement() -> None:
    agreement = np.array([0.5, 0.6, 0.9, 1.0, np.nan])
    found = by_agreement(agreement, np.array([1.0, 0.0, 1.0, 1.0, 1.0]), np.arange(5))
    assert [(one["from"], one["to"], one["agreement"], one["accuracy"], one["pairs"]) for one in found] == [
        (0.5, 0.65, 0.55, 0.5, 2),
        (0.8, 0.95, 0.9, 1.0, 1),
        (0.95, 1.0, 1.0, 1.0, 1),
    ]
