"""Fewer points of a curve that look the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def thin(y: Floats, most: int) -> NDArray[np.intp]:
    """Which of the points of `y` [N] to draw: at most `most` ≥ 5 of them, in order, both ends among them.

    What lies between the ends is cut into equal buckets; each gives its lowest and its highest point, and its first
    NaN, so that neither a peak nor a gap is lost. (M4 of Jugel et al., 2014, without the buckets' own ends.)
    """
    if most < 5:
        raise ValueError(f"{most} points show no curve; ask for at least 5")
    if len(y) <= most:
        return np.arange(len(y))
    buckets = (most - 2) // 3
    edges = np.linspace(1, len(y) - 1, buckets + 1).astype(np.intp)
    starts, counts = edges[:-1], np.diff(edges)
    bucket = np.repeat(np.arange(buckets), counts)
    inside = y[1:-1]
    gap = np.isnan(inside)
    kept = np.zeros(len(y), dtype=bool)
    kept[[0, -1]] = True
    for value, reduce in ((np.where(gap, np.inf, inside), np.minimum), (np.where(gap, -np.inf, inside), np.maximum)):
        extreme = reduce.reduceat(value, starts - 1)
        _keep_first(kept, bucket, ~gap & (value == extreme[bucket]))
    _keep_first(kept, bucket, gap)
    return np.flatnonzero(kept)


def _keep_first(kept: NDArray[np.bool_], bucket: NDArray[np.intp], found: NDArray[np.bool_]) -> None:
    """Mark the first of the `found` points of each bucket; both are of the points between the ends."""
    places = np.flatnonzero(found)
    _, first = np.unique(bucket[places], return_index=True)
    kept[places[first] + 1] = True
