"""Shares, bins and correlations against published numbers, hands and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.assessment.statistics import (
    by_name,
    by_value,
    effective_count,
    hits,
    pearson,
    pearson_within,
    ranks,
    share_below,
    share_right,
    spearman,
    spearman_within,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(right: int, count: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_comparisons_of_one_prompt_are_not_independent() -> None:
    """By hand: share 1/2. Alone, 4 residuals of 1/2 give variance 4 x 1/4 / 16 = 1/16, that of 4 trials. In two groups
    that are alike, the residuals add up to 1 and -1: 2 / 16 = 1/8, that of 2 trials."""
    right = [1.0, 1.0, 0.0, 0.0]
    assert effective_count(right, "abcd") == pytest.approx(4.0)
    assert effective_count(right, "aabb") == pytest.approx(2.0)
    assert effective_count(right, "abab") == 4.0  # groups that balance are worth more, but not more than all
    assert effective_count([1.0, 1.0, 1.0, 1.0], "aabb") == 2.0  # nothing varies: one trial a group


def test_wilson_interval_at_the_edges() -> None:
    z2 = 1.959964**2
    assert wilson_interval(1.0, 4) == pytest.approx((4 / (4 + z2), 1.0))
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1.0, 4, 0.99)[0] == pytest.approx(4 / (4 + 2.575829**2))
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    assert wilson_interval(0.5, 1)[0] == pytest.approx(1 - wilson_interval(0.5, 1)[1])


def test_equal_scores_are_right_half_of_the_time() -> None:
    assert hits([0.3, 0.0, -2.0]).tolist() == [1.0, 0.5, 0.0]


def test_a_share_knows_that_pairs_of_a_prompt_are_alike() -> None:
    """Four pairs of two prompts that agree within are worth two: the interval is Wilson's of two trials."""
    right = np.array([1.0, 1.0, 0.0, 0.0])
    found = share_right(right, np.array([7, 7, 9, 9]))
    assert found["accuracy"] == 0.5
    assert found["interval"] == pytest.approx(list(wilson_interval(0.5, 2)))
    assert found["pairs"] == 4
    assert share_right(right[:0], right[:0].astype(int)) == {"accuracy": None, "interval": None, "pairs": 0}


def test_bins_by_value_hold_like_counts_and_keep_equals_together() -> None:
    values = np.array([3.0, 1.0, 2.0, 4.0])
    right = np.array([1.0, 0.0, 0.0, 1.0])
    two = by_value(right, values, np.arange(4), 2)
    assert [(one["from"], one["to"], one["mean"], one["accuracy"]) for one in two] == [
        (1.0, 2.0, 1.5, 0.0),
        (3.0, 4.0, 3.5, 1.0),
    ]
    equal = by_value(right, np.array([0.0, 0.0, 0.0, 5.0]), np.arange(4), 4)
    assert [(one["from"], one["to"], one["pairs"]) for one in equal] == [(0.0, 0.0, 3), (5.0, 5.0, 1)]
    many = by_value(np.ones(1000), np.random.default_rng(0).normal(size=1000), np.arange(1000), 8)
    assert [one["pairs"] for one in many] == [125] * 8


def test_by_name_keeps_the_order_of_appearance() -> None:
    found = by_name(np.array([1.0, 0.0, 1.0]), ["b", "a", "b"], np.arange(3))
    assert [(one["name"], one["accuracy"], one["pairs"]) for one in found] == [("b", 1.0, 2), ("a", 0.0, 1)]


def test_correlations_by_hand() -> None:
    """xs 1, 2, 3 and ys 1, 2, 9: deviations −1, 0, 1 and −3, −2, 5 give 8 / √(2 · 38); in ranks they are one."""
    xs, ys = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 9.0])
    assert pearson(xs, ys) == pytest.approx(8 / math.sqrt(76))
    assert spearman(xs, ys) == pytest.approx(1.0)
    assert pearson(xs, np.full(3, 0.1)) is None  # a mean of which is not exactly 0.1


def test_pearson_is_numpys() -> None:
    draws = np.random.default_rng(1)
    xs = draws.normal(size=50)
    ys = xs + draws.normal(size=50)
    assert pearson(xs, ys) == pytest.approx(np.corrcoef(xs, ys)[0, 1])


def test_ranks_of_equals_are_shared() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_within_a_prompt_what_differs_between_prompts_plays_no_part() -> None:
    """Long prompts have high scores, and within each the longer reply scores lower: +1 over all, −1 within."""
    groups = np.array([0, 0, 1, 1, 2])
    lengths = np.array([1.0, 2.0, 101.0, 102.0, 500.0])
    scores = np.array([2.0, 1.0, 102.0, 101.0, 500.0])
    over_all = pearson(lengths, scores)
    assert over_all is not None
    assert over_all > 0.99
    assert pearson_within(lengths, scores, groups) == pytest.approx(-1.0)
    assert spearman_within(lengths, scores, groups) == pytest.approx(-1.0)
    assert pearson_within(lengths, scores, np.arange(5)) is None  # groups of one say nothing


def test_share_below_is_a_count() -> None:
    values, others = np.array([2.0, 0.0, 9.0]), np.array([1.0, 2.0, 2.0, 3.0])
    counted = [
        sum(1.0 if other < value else 0.5 if other == value else 0.0 for other in others) / 4 for value in values
    ]
    assert share_below(values, others).tolist() == counted == [0.5, 0.0, 1.0]
