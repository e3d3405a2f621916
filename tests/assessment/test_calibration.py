"""Reliability, its error and the temperature, against hands, a grid, and data drawn with a known temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keel.assessment.calibration import (
    calibration,
    calibration_error,
    chance_error,
    fit_temperature,
    nll,
    reliability,
)


def test_reliability_bins_by_hand() -> None:
    gaps = np.array([0.1, -0.2, 3.0, 1.0, -0.4, 0.0])
    bins = reliability(gaps)
    assert len(bins) == 6  # fewer pairs than bins: one each, from the least to the most certain
    expected = [(0.0, 0.5), (0.1, 1.0), (0.2, 0.0), (0.4, 0.0), (1.0, 1.0), (3.0, 1.0)]
    for found, (size, right) in zip(bins, expected, strict=True):
        assert found == {"predicted": pytest.approx(1 / (1 + math.exp(-size))), "right": right, "pairs": 1.0}
    tens = reliability(np.linspace(-1, 1, 40))
    assert [found["pairs"] for found in tens] == [4.0] * 10
    assert [found["right"] for found in tens] == [0.5] * 10  # symmetric: it knows nothing
    assert tens[-1]["predicted"] == pytest.approx(
        sum(1 / (1 + math.exp(-abs(-1 + 2 * i / 39))) for i in (0, 1, 38, 39)) / 4
    )


def labelled(temperature: float, pairs: int, seed: int) -> np.ndarray:
    """Gaps of a model whose log-odds are `temperature` times too large: the higher one wins with σ(gap/T)."""
    draws = np.random.default_rng(seed)
    sizes = draws.normal(scale=3.0, size=pairs)
    wins = draws.random(pairs) < 1 / (1 + np.exp(-sizes / temperature))
    return np.where(wins, sizes, -sizes)


def test_calibration_error_by_hand() -> None:
    """3 pairs 0.1 off and 1 pair 0.3 off: (0.3 + 0.3) / 4."""
    bins = [{"predicted": 0.6, "right": 0.7, "pairs": 3.0}, {"predicted": 0.9, "right": 0.6, "pairs": 1.0}]
    assert calibration_error(bins) == pytest.approx(0.15)


def test_the_error_of_a_calibrated_model_is_chance() -> None:
    """What ECE 400 sets of 2,000 pairs have whose labels are drawn with the model's own probabilities."""
    errors, foretold = [], []
    for seed in range(400):
        bins = reliability(labelled(1.0, 2000, seed))
        errors.append(calibration_error(bins))
        foretold.append(chance_error(bins))
    assert np.mean(errors) == pytest.approx(np.mean(foretold), rel=0.05)


def test_nll_by_hand() -> None:
    assert nll(np.array([0.0, 2.0])) == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)
    assert nll(np.array([-2000.0])) == 2000.0  # no overflow


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(temperature: float) -> None:
    found = fit_temperature(labelled(temperature, 40_000, 3))
    assert found == pytest.approx(temperature, rel=0.04)  # about 1.5 % of sampling error


def test_the_temperature_is_the_best_of_a_grid() -> None:
    gaps = labelled(2.5, 300, 4)
    grid = np.linspace(0.5, 8, 7501)
    best = grid[np.argmin([nll(gaps / one) for one in grid])]
    assert fit_temperature(gaps) == pytest.approx(best, abs=1e-3)


def test_two_gaps_have_a_temperature_by_hand() -> None:
    """Three pairs of gap 2 right and one wrong: σ(2/T) = 3/4, so T = 2 / log 3."""
    assert fit_temperature(np.array([2.0, 2.0, 2.0, -2.0])) == pytest.approx(2 / math.log(3))


@pytest.mark.parametrize("gaps", [[1.0, 2.0], [-1.0, -2.0], [1.0, -1.0], [0.0, 0.0]])
def test_where_no_temperature_is_best_there_is_none(gaps: list[float]) -> None:
    found = calibration(np.array(gaps))
    assert found["temperature"] is None
    assert found["nll_at_temperature"] is None


def test_an_overconfident_model_is_mended() -> None:
    found = calibration(labelled(3.0, 5000, 5))
    assert found["temperature"] == pytest.approx(3.0, rel=0.1)
    assert found["nll_at_temperature"] < found["nll"]
    assert found["ece"] > 3 * found["ece_by_chance"]
    assert found["ece_at_temperature"] < 2 * found["ece_by_chance"]
