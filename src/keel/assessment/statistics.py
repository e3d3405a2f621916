"""Shares with intervals that know of prompts, and correlations: what an assessment is counted with."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Interval = tuple[float, float]


def hits(gaps: ArrayLike) -> Floats:
    """1 where a gap [N] is above 0, ½ where it is 0, else 0: equal scores are right half of the time."""
    gaps = np.asarray(gaps, dtype=np.float64)
    return np.asarray((gaps > 0) + 0.5 * (gaps == 0))


def effective_count(right: ArrayLike, groups: NDArray[Any] | Sequence[Hashable]) -> float:
    """How many independent trials are worth as much as these [N], which are alike within a group [N] (Kish, 1965).

    The variance of the share is taken over groups; never more than there are trials, nor fewer than groups / 2.
    """
    if not isinstance(groups, np.ndarray):
        numbers: dict[Hashable, int] = {}
        groups = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    right = np.asarray(right, dtype=np.float64)
    share = float(right.mean())
    residuals = np.bincount(np.unique(groups, return_inverse=True)[1].reshape(-1), right - share)
    if share * (1 - share) == 0:  # nothing varies, so nothing is known of how alike a group is
        return float(len(residuals))
    spread = float(residuals @ residuals) / len(right)
    count = share * (1 - share) / spread * len(right) if spread > 0 else math.inf
    return min(float(len(right)), max(len(residuals) / 2, count))


def wilson_interval(share: float, count: float, confidence: float = 0.95) -> Interval:
    """The interval of a share of `count` independent trials (Wilson, 1927); (0, 1) of none."""
    if count <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_right(right: Floats, prompts: Ints) -> dict[str, Any]:
    """The mean of `right` [N] with its 95 % interval; trials of one prompt (`prompts` [N]) are not independent."""
    if not len(right):
        return {"accuracy": None, "interval": None, "pairs": 0}
    share = float(right.mean())
    low, high = wilson_interval(share, effective_count(right, prompts))
    return {"accuracy": share, "interval": [low, high], "pairs": len(right)}


def by_value(right: Floats, values: Floats, prompts: Ints, bins: int) -> list[dict[str, Any]]:
    """`share_right` in at most `bins` bins of about equal counts along `values` [N]; equal values share a bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, values, side="left")
    found = []
    for place in np.unique(places):
        mine = places == place
        inside = values[mine]
        ends = {"from": float(inside.min()), "to": float(inside.max()), "mean": float(inside.mean())}
        found.append(ends | share_right(right[mine], prompts[mine]))
    return found


def by_name(right: Floats, names: Sequence[str], prompts: Ints) -> list[dict[str, Any]]:
    """`share_right` of those of each name, in the order in which names [N] first appear."""
    own = np.asarray(names, dtype=object)
    return [{"name": name, **share_right(right[own == name], prompts[own == name])} for name in dict.fromkeys(names)]


def pearson(xs: Floats, ys: Floats) -> float | None:
    """The correlation of xs [N] and ys [N]; None where either does not vary."""
    return _cosine(xs - xs.mean(), ys - ys.mean()) if len(xs) else None


def spearman(xs: Floats, ys: Floats) -> float | None:
    """The correlation of their ranks."""
    return pearson(ranks(xs), ranks(ys))


def pearson_within(xs: Floats, ys: Floats, groups: Ints) -> float | None:
    """The correlation of what xs and ys are beyond the mean of their group (`groups` [N]).

    What differs between groups plays no part; a group of one says nothing.
    """
    return _cosine(xs - _means(xs, groups), ys - _means(ys, groups)) if len(xs) else None


def spearman_within(xs: Floats, ys: Floats, groups: Ints) -> float | None:
    """The same of ranks within the group."""
    return pearson_within(_ranks_within(xs, groups), _ranks_within(ys, groups), groups)


def ranks(values: Floats) -> Floats:
    """1 for the lowest of [N]; equals share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray((ends - (counts - 1) / 2)[place.reshape(-1)])


def share_below(values: Floats, others: Floats) -> Floats:
    """For each of `values` [N] the share of `others` [M] below it, equal ones half."""
    ordered = np.sort(others)
    below, at_most = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((below + at_most) / (2 * len(others)))


def _cosine(xs: Floats, ys: Floats) -> float | None:
    size = math.sqrt(float(xs @ xs) * float(ys @ ys))
    return float(xs @ ys) / size if size > 1e-12 * max(1.0, len(xs)) else None


def _means(values: Floats, groups: Ints) -> Floats:
    """Of each one's group [N]."""
    _, place = np.unique(groups, return_inverse=True)
    place = place.reshape(-1)
    return np.asarray((np.bincount(place, values) / np.bincount(place))[place])


def _ranks_within(values: Floats, groups: Ints) -> Floats:
    found = np.empty(len(values))
    for group in np.unique(groups):
        mine = groups == group
        found[mine] = ranks(values[mine])
    return found
