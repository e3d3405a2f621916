"""Rates, slopes and bootstraps, held to hand numbers, naive loops and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.assessment.statistics import wilson_interval
from keel.data.audit.intervals import bootstrap, logistic_slope, rate


def test_a_rate_of_independent_labels_has_wilsons_interval() -> None:
    hit = np.arange(400) % 4 > 0
    found = rate(hit, np.arange(400))
    assert (found.hits, found.total, found.share) == (300, 400, 0.75)
    assert found.interval == pytest.approx(wilson_interval(0.75, 400))


def test_labels_of_one_prompt_are_not_independent() -> None:
    """100 prompts whose 10 labels all agree are worth 100 labels."""
    hit = np.repeat(np.arange(100) % 4 > 0, 10)
    found = rate(hit, np.repeat(np.arange(100), 10))
    assert (found.hits, found.total) == (750, 1000)
    assert found.interval == pytest.approx(wilson_interval(0.75, 100))


def test_a_rate_of_nothing_and_of_one_prompt() -> None:
    assert math.isnan(rate(np.zeros(0, bool), np.zeros(0)).share)
    assert rate(np.array([True, False]), np.zeros(2)).interval == wilson_interval(0.5, 2)


def test_labels_that_are_all_alike_count_once_a_prompt() -> None:
    """20 hits on 2 prompts: that labels of one prompt are alike cannot be seen, so 2 of 2, from 2 / (2 + z²)."""
    assert rate(np.ones(20, bool), np.repeat([0, 1], 10)).interval == pytest.approx((2 / (2 + 1.959964**2), 1.0))


def naive_slope(xs: list[float], clusters: list[int]) -> tuple[float, float]:
    """Bisection on the score, then the sandwich, label by label."""

    def score(b: float) -> float:
        return sum(x / (1 + math.exp(b * x)) for x in xs)

    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > 0 else (low, middle)
    curvature = sum(x * x * math.exp(low * x) / (1 + math.exp(low * x)) ** 2 for x in xs)
    sums: dict[int, float] = {}
    for x, cluster in zip(xs, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + x / (1 + math.exp(low * x))
    meat = sum(value**2 for value in sums.values()) * len(sums) / (len(sums) - 1)
    return low, math.sqrt(meat) / curvature


def test_the_slope_and_its_error_are_those_of_a_naive_loop() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=60)
    x = np.where(draw.random(60) < 1 / (1 + np.exp(-1.3 * np.abs(x))), np.abs(x), -np.abs(x))
    clusters = np.arange(60) // 3
    found = logistic_slope(x, clusters)
    assert found is not None
    assert (found.value, found.standard_error) == pytest.approx(naive_slope(x.tolist(), clusters.tolist()), rel=1e-8)


def test_a_slope_by_hand() -> None:
    """Three of four on x = log 2: σ(b·log 2) = 3/4, so b = log 3 / log 2."""
    found = logistic_slope(np.log([2, 2, 2, 0.5, 1]), np.arange(5))
    assert found is not None
    assert found.value == pytest.approx(math.log(3) / math.log(2))


@pytest.mark.parametrize("x", [[], [0.0, 0.0], [1.0, 2.0], [-1.0, 0.0]])
def test_no_slope_where_none_is_finite(x: list[float]) -> None:
    assert logistic_slope(np.array(x), np.arange(len(x))) is None


def test_the_error_of_the_slope_is_that_of_repeated_draws() -> None:
    draw = np.random.default_rng(2)
    size = np.abs(draw.normal(size=400))
    slopes, errors = [], []
    for _ in range(150):
        x = np.where(draw.random(400) < 1 / (1 + np.exp(-0.8 * size)), size, -size)
        found = logistic_slope(x, np.arange(400))
        assert found is not None
        slopes.append(found.value)
        errors.append(found.standard_error)
    assert np.mean(slopes) == pytest.approx(0.8, abs=0.03)
    assert np.std(slopes) == pytest.approx(np.mean(errors), rel=0.15)


def test_a_bootstrap_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        hits = (draw.random(80) < 0.3).astype(float)
        low, high = bootstrap(np.stack([hits, np.ones(80)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least, got none"):
        bootstrap(np.zeros((0, 2)), lambda sums: sums[..., 0])
