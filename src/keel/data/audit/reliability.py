"""How far those who judge the same things agree: Krippendorff's α and plain agreement, for values alike by degrees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keel.assessment.statistics import Floats
from keel.data.audit.grouping import groups
from keel.data.audit.intervals import Estimate, bootstrap

Counts = NDArray[np.int64]


def nominal(values: int) -> Floats:
    """`alike` of so many values without an order: the same, or not."""
    return np.eye(values)


def interval(values: int) -> Floats:
    """`alike` of values at equal steps: 1 − δ², where δ is their distance by that of the lowest and the highest."""
    steps = np.arange(values)
    return np.asarray(1 - ((steps[:, None] - steps) / max(1, values - 1)) ** 2)


def reliability(counts: Counts, cluster: NDArray[Any], alike: Floats) -> tuple[Estimate, Estimate] | None:
    """Krippendorff's α, and how alike two judgements of one unit are, both with intervals, clusters being drawn anew.

    `counts` [units, V] is how often each unit was given each value, `cluster` [units] what is not independent, `alike`
    [V, V] in [0, 1]. α = 1 − D_o/D_e over units of two judgements or more (Krippendorff, 2011, "Computing
    Krippendorff's alpha-reliability"), where 1 − D_o is the agreement, and D_e is how unlike any two judgements are.
    None where no unit has two judgements, or where all of them are the same value: then D_e is 0.
    """
    several = counts.sum(axis=1) >= 2
    counts, number = counts[several], groups(cluster[several])
    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    agreeing = (counts * met(counts, alike)).sum(axis=1) / (counts.sum(axis=1) - 1)
    columns = (agreeing, *counts.T)
    parts = np.stack([np.bincount(number, weights=each) for each in columns], axis=1).astype(np.float64)

    def agree(sums: Floats) -> Floats:
        return np.asarray(sums[..., 0] / sums[..., 1:].sum(axis=-1))

    def alpha(sums: Floats) -> Floats:
        given = sums[..., 1:]
        total = given.sum(axis=-1)
        unlike = ((given @ (1 - alike)) * given).sum(axis=-1) / (total * (total - 1))
        known = np.where(unlike > 0, unlike, np.nan)
        return np.asarray(1 - (1 - agree(sums)) / known)

    found = [Estimate(float(part(parts.sum(axis=0))), bootstrap(parts, part)) for part in (alpha, agree)]
    return found[0], found[1]


def met(counts: Counts, alike: Floats) -> Floats:
    """How many of the others' judgements each value meets in its unit, weighed by how alike they are, [units, V]."""
    return np.asarray(counts @ alike - np.diag(alike))
