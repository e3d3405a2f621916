"""Rates and their uncertainty where labels of one prompt are not independent; the logistic slope; a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keel.assessment.statistics import Floats, Interval, effective_count, wilson_interval

RESAMPLES = 2000
_BOOTSTRAP_SEED = 0
_AT_ONCE = 1 << 22  # numbers drawn
_ENOUGH = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A number with a 95% interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Rate:
    """`hits` of `total`, with a 95% interval."""

    hits: int
    total: int
    interval: Interval

    @property
    def share(self) -> float:
        return self.hits / self.total if self.total else math.nan


@dataclass(frozen=True)
class Slope:
    """b of P = σ(b·x), and its standard error."""

    value: float
    standard_error: float


def rate(hit: NDArray[np.bool_], cluster: NDArray[Any]) -> Rate:
    """How many of n are hits, clusters (prompts) being independent and what is in one not.

    Wilson's interval for as many independent labels as they are worth.
    """
    hits, total = int(hit.sum()), len(hit)
    if not total:
        return Rate(0, 0, (0.0, 1.0))
    return Rate(hits, total, wilson_interval(hits / total, effective_count(hit, cluster)))


def _clustered(scores: NDArray[Any], cluster: NDArray[Any]) -> float:
    """C/(C − 1)·Σ over clusters of the squared sum of scores; 0 of one cluster."""
    number = np.unique(cluster, return_inverse=True)[1]
    sums = np.bincount(number, weights=scores)
    return float((sums**2).sum() * len(sums) / (len(sums) - 1)) if len(sums) > 1 else 0.0


def logistic_slope(x: Floats, cluster: NDArray[Any]) -> Slope | None:
    """b that maximises Σ log σ(b·x), by Newton's method; its error is the sandwich estimate with clusters.

    `x` is a difference, chosen minus rejected, so the model has no intercept. None where no finite b fits: all x have
    one sign, or none has any.
    """
    x, cluster = x[x != 0], cluster[x != 0]
    if not len(x) or (x > 0).all() or (x < 0).all():
        return None
    slope = 0.0
    for _ in range(100):
        wrong = 1 / (1 + np.exp(np.clip(slope * x, -500, 500)))
        step = float((wrong * x).sum() / (wrong * (1 - wrong) * x * x).sum())
        slope += max(-1.0, min(1.0, step))
        if abs(step) < _ENOUGH:
            break
    wrong = 1 / (1 + np.exp(np.clip(slope * x, -500, 500)))
    curvature = float((wrong * (1 - wrong) * x * x).sum())
    variance = _clustered(wrong * x, cluster)
    return Slope(slope, math.sqrt(variance) / curvature if variance else 1 / math.sqrt(curvature))


def bootstrap(parts: Floats, statistic: Callable[[Floats], Floats]) -> Interval:
    """95% percentile interval of a statistic of sums, clusters being drawn anew RESAMPLES times.

    `parts` [C, k] is what each cluster adds to k sums; `statistic` takes sums [.., k] to numbers [..], NaN where a
    resample has none. Equal clusters are drawn together, which changes nothing but the time. Raises ValueError where
    there is no cluster.
    """
    if not len(parts):
        raise ValueError("a bootstrap needs one cluster at least, got none")
    patterns, counts = np.unique(parts, axis=0, return_counts=True)
    draw = np.random.default_rng(_BOOTSTRAP_SEED)
    at_once = max(1, _AT_ONCE // len(patterns))
    values = []
    for start in range(0, RESAMPLES, at_once):
        drawn = draw.multinomial(len(parts), counts / len(parts), size=min(at_once, RESAMPLES - start))
        values.append(statistic(drawn @ patterns))
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)
