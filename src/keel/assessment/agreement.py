"""How far people agree with each other, and so how right a reward model can be at best."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from keel.assessment.statistics import Floats, Ints, share_right

LEVELS = (0.5, 0.65, 0.8, 0.95)  # a coin as good as decides; some agree, most, all


def agreement_of(items: Ints, first: Ints, probabilities: Floats) -> Floats:
    """How far a comparison's annotators agree, [N]: max(p, 1 − p) where that is known, else what the votes say.

    `items` [N] says which two responses a vote is of, `first` [N] (0 or 1) which of them it prefers; the votes say the
    share of an item's that are on its majority's side. NaN for an item of one vote whose `probabilities` [N] are NaN.
    """
    place, votes, wins = _tally(items, first)
    share = np.where(votes > 1, np.maximum(wins, votes - wins) / votes, np.nan)[place]
    return np.asarray(np.where(np.isnan(probabilities), share, np.maximum(probabilities, 1 - probabilities)))


def ceiling(items: Ints, first: Ints, right: Floats, prompts: Ints) -> dict[str, Any] | None:
    """How often any rule at best agrees with one more vote, bounded from items that have several; None without any.

    Let p be the chance that a vote on an item goes the first way. The best rule is right max(p, 1 − p) of the time.
    Of n votes with k wins, a = [k(k−1) + (n−k)(n−k−1)] / [n(n−1)] estimates p² + (1−p)², the chance that two votes
    agree, without bias. With A its mean over items, A ≤ E max(p, 1−p) ≤ ½ + ½√(2A − 1): the first since each weight
    of p·p + (1−p)(1−p) is below the maximum, the second since max(p, 1−p) = ½ + ½√(2(p² + (1−p)²) − 1), which is
    concave. The upper one is reached where all items are equally hard. `right` [N] is the model's on the same votes.
    """
    place, votes, wins = _tally(items, first)
    several = votes > 1
    if not several.any():
        return None
    n, k = votes[several], wins[several]
    agree = float(((k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1))).mean())
    mine = several[place]
    return {
        "items": int(several.sum()),
        "votes": int(n.sum()),
        "agreement": agree,
        "lowest": max(agree, 0.5),
        "highest": 0.5 + 0.5 * math.sqrt(max(0.0, 2 * agree - 1)),
        "model": share_right(right[mine], prompts[mine]),
    }


def by_agreement(agreement: Floats, right: Floats, prompts: Ints) -> list[dict[str, Any]]:
    """The share right at each level of agreement, whose mean no rule can pass."""
    ends = [*LEVELS, math.inf]
    found = []
    for low, high in pairwise(ends):
        mine = (agreement >= low) & (agreement < high)
        if mine.any():
            bounds = {"from": low, "to": min(high, 1.0), "agreement": float(agreement[mine].mean())}
            found.append(bounds | share_right(right[mine], prompts[mine]))
    return found


def _tally(items: Ints, first: Ints) -> tuple[Ints, Floats, Floats]:
    """Each vote's item by number [N], and the votes and those for the first response of each item."""
    _, place = np.unique(items, return_inverse=True)
    place = place.reshape(-1)
    return place, np.bincount(place).astype(np.float64), np.bincount(place, first).astype(np.float64)
