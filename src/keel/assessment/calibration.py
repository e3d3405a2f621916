"""Does a difference of scores come true as often as a preference model says? P(chosen wins) = sigmoid(gap)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keel.assessment.statistics import Floats, hits

_BINS = 10
_STEPS = 200  # bisections: more than a float64 has bits


def calibration(gaps: Floats) -> dict[str, Any]:
    """Reliability, its error, and what one temperature would mend; `gaps` [N] are log-odds, chosen minus rejected."""
    bins = reliability(gaps)
    temperature = fit_temperature(gaps)
    mended = None if temperature is None else gaps / temperature
    return {
        "reliability": bins,
        "ece": calibration_error(bins),
        "ece_by_chance": chance_error(bins),
        "nll": nll(gaps),
        "temperature": temperature,
        "nll_at_temperature": None if mended is None else nll(mended),
        "ece_at_temperature": None if mended is None else calibration_error(reliability(mended)),
    }


def reliability(gaps: ArrayLike) -> list[dict[str, float]]:
    """Pairs in up to ten bins of equal counts by sigmoid(|gap|): its mean, the share right, the count.

    `gaps` [N] is the score of the chosen minus that of the rejected, as log-odds.
    """
    gaps = np.asarray(gaps, dtype=np.float64)
    order = np.argsort(np.abs(gaps), kind="stable")
    right, sure = hits(gaps)[order], 1 / (1 + np.exp(-np.abs(gaps[order])))
    parts = np.array_split(np.arange(len(gaps)), min(_BINS, len(gaps)))
    return [
        {"predicted": float(sure[part].mean()), "right": float(right[part].mean()), "pairs": float(len(part))}
        for part in parts
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """ECE: the mean over pairs of |share right − predicted| in their bin (Naeini, Cooper, Hauskrecht, 2015)."""
    total = sum(one["pairs"] for one in bins)
    return sum(one["pairs"] * abs(one["right"] - one["predicted"]) for one in bins) / total


def chance_error(bins: list[dict[str, float]]) -> float:
    """What the ECE of a calibrated model would be about, for a bin of n pairs is off by chance.

    Normal approximation: E|share − p| = √(2 p (1 − p) / (π n)).
    """
    total = sum(one["pairs"] for one in bins)
    spread = (one["predicted"] * (1 - one["predicted"]) / one["pairs"] for one in bins)
    return sum(one["pairs"] * math.sqrt(2 * part / math.pi) for one, part in zip(bins, spread, strict=True)) / total


def nll(gaps: Floats) -> float:
    """Mean −log sigmoid(gap), nats a pair; a coin's is log 2."""
    return float(np.logaddexp(0.0, -gaps).mean())


def fit_temperature(gaps: Floats) -> float | None:
    """The T that minimises `nll(gaps / T)`: above 1 the model is surer than it should be (Guo et al., 2017).

    The nll is convex in 1/T, so the root of its derivative, −mean(gap · sigmoid(−gap/T)), is found by bisection. None
    where no finite T > 0 is best: no gap below 0, or a mean gap of at most 0.
    """
    if gaps.min() >= 0 or gaps.mean() <= 0:
        return None

    def slope(inverse: float) -> float:
        return -float((gaps * np.exp(-np.logaddexp(0.0, gaps * inverse))).mean())

    low, high = 0.0, 1.0 / float(np.abs(gaps).max())
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)
