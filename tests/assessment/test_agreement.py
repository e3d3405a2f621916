"""How far people agree, by hand; and bounds that hold where the best rule is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.assessment.agreement import agreement_of, bounds, by_agreement, ceiling, votes_of

NONE = np.nan


def test_agreement_is_the_majoritys_share_unless_the_chance_is_known() -> None:
    items = np.array([5, 5, 5, 8, 9, 9])
    first = np.array([1, 0, 0, 1, 1, 0]) > 0
    known = np.array([NONE, NONE, NONE, NONE, 0.1, 0.9])
    found = agreement_of(items, first, np.arange(6), known)
    assert found[:3] == pytest.approx([2 / 3] * 3)
    assert np.isnan(found[3])  # one vote agrees with nobody
    assert found[4:] == pytest.approx([0.9, 0.9])


def test_one_annotator_is_one_vote_and_nobody_is_none() -> None:
    """Labels on two pairs: 0 says first, second, first; 1 says second; 2 both ways; nobody twice. Then 0."""
    pairs = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    first = np.array([1, 0, 1, 0, 1, 0, 1, 1, 0, 0]) > 0
    annotators = np.array([0, 0, 0, 1, 2, 2, -1, -1, 0, -1])
    labels, sides = votes_of(pairs, first, annotators)
    assert sorted(zip(labels.tolist(), sides.tolist(), strict=True)) == [(0, True), (3, False), (8, False)]
    found = agreement_of(pairs, first, annotators, np.full(10, NONE))
    assert found[:8] == pytest.approx([0.5] * 8)
    assert np.isnan(found[8:]).all()


def test_repeats_allow_no_bounds() -> None:
    """One annotator, each pair twice and the same way: nobody else has judged."""
    twice = np.repeat(np.arange(5), 2)
    for annotators in (np.zeros(10, dtype=int), np.full(10, -1)):
        assert ceiling(twice, twice % 2 == 0, annotators, np.ones(10), twice) is None


def test_the_ceiling_by_hand() -> None:
    """Another vote agrees with 2 of the 4 votes 3:1 and with both of 2:0: A = 4/6. The lone vote is out.

    The second annotator of the first pair said first twice and second once, and is right where the first is: the model
    is right on 3 of the 4 votes there and on one of the other two.
    """
    items = np.array([1, 1, 1, 1, 1, 1, 2, 2, 3])
    first = np.array([1, 0, 1, 1, 1, 0, 0, 0, 1]) > 0
    annotators = np.array([0, 1, 1, 1, 2, 3, 0, 1, 0])
    right = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    found = ceiling(items, first, annotators, right, np.arange(9))
    assert found is not None
    assert (found["items"], found["votes"]) == (2, 6)
    assert found["agreement"] == found["lowest"] == pytest.approx(4 / 6)
    assert found["highest"] == pytest.approx(0.5 + 0.5 * math.sqrt(1 / 3))
    assert found["model"]["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("easy", "hard"), [((9, 0.97), (2, 0.5)), ((2, 0.97), (9, 0.5)), ((3, 0.8), (3, 0.8)), ((3, 0.55), (3, 0.95))]
)
def test_the_best_rule_lies_between_the_bounds(easy: tuple[int, float], hard: tuple[int, float]) -> None:
    """1,500 pairs each of so many votes and such a chance, judged by a rule that always says "first", the best here."""
    draws = np.random.default_rng(0)
    votes, chance = (np.repeat(both, 1500) for both in zip(easy, hard, strict=True))
    items = np.repeat(np.arange(3000), votes.astype(int))
    first = draws.random(len(items)) < np.repeat(chance, votes.astype(int))
    found = ceiling(items, first, np.arange(len(items)), first.astype(float), items)
    assert found is not None
    best = (easy[0] * easy[1] + hard[0] * hard[1]) / (easy[0] + hard[0])
    assert found["lowest"] - 0.01 < best < found["highest"] + 0.01
    assert found["model"]["accuracy"] == pytest.approx(best, abs=0.02)
    if easy == hard:  # all equally hard
        assert found["highest"] == pytest.approx(best, abs=0.01)
    if 0.5 in hard:  # clear but for 3 %, or a coin's toss
        assert found["lowest"] == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(
    "shares",
    [[0.5], [1.0], [0.8], [0.5, 1.0], [0.55, 0.7, 0.9, 0.99], [0.2, 0.9]],
)
def test_bounds_of_known_shares(shares: list[float]) -> None:
    """Where all pairs are equally hard it is the upper one, where each is clear or a coin's toss the lower one."""
    agreement = sum(p * p + (1 - p) ** 2 for p in shares) / len(shares)
    best = sum(max(p, 1 - p) for p in shares) / len(shares)
    low, high = bounds(agreement)
    assert low - 1e-12 <= best <= high + 1e-12
    if len(shares) == 1:
        assert high == pytest.approx(best)
    if set(shares) <= {0.5, 1.0}:
        assert low == pytest.approx(best)


def test_votes_that_agree_less_than_coins_bound_nothing() -> None:
    assert bounds(0.0) == (0.5, 0.5)


def test_accuracy_at_each_level_of_agreement() -> None:
    agreement = np.array([0.5, 0.6, 0.9, 1.0, np.nan])
    found = by_agreement(agreement, np.array([1.0, 0.0, 1.0, 1.0, 1.0]), np.arange(5))
    assert [(one["from"], one["to"], one["agreement"], one["accuracy"], one["pairs"]) for one in found] == [
        (0.5, 0.65, 0.55, 0.5, 2),
        (0.8, 0.95, 0.9, 1.0, 1),
        (0.95, 1.0, 1.0, 1.0, 1),
    ]
