"""How far people agree with each other, and so how right a reward model can be at best."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from keel.assessment.statistics import Bools, Floats, Interval, Ints, share_right

LEVELS = (0.5, 0.65, 0.8, 0.95)  # a coin as good as decides; some agree, most, all


def votes_of(pairs: Ints, first: Bools, annotators: Ints) -> tuple[Ints, Bools]:
    """One vote of each named annotator on each pair: the label it was first given by [m], and if it is for the first.

    `pairs` [N] numbers the two responses that a label is of, `first` [N] says if it prefers the first of them,
    `annotators` [N] numbers who gave it, below 0 where nobody is named. Of who preferred either as often there is no
    vote. An annotator's repeats, and those of nobody named, say nothing of how far people agree.
    """
    named = np.flatnonzero(annotators >= 0)
    key = pairs[named] * (annotators.max(initial=0) + 1) + annotators[named]
    _, earliest, vote = np.unique(key, return_index=True, return_inverse=True)
    lead = np.bincount(vote.reshape(-1), np.where(first[named], 1, -1), len(earliest))
    return named[earliest[lead != 0]], lead[lead != 0] > 0


def agreeing(counts: Ints) -> Floats:
    """With how many of each pair's votes another of its votes agrees on average, [pairs]; 0 where there is no other.

    `counts` [pairs, 2] are the votes for either side. Of n votes with k for the first, the share
    a = [k(k−1) + (n−k)(n−k−1)] / [n(n−1)] estimates p² + (1−p)², the chance that two votes agree, without bias.
    """
    return np.asarray((counts * (counts - 1)).sum(axis=1) / np.maximum(counts.sum(axis=1) - 1, 1))


def bounds(agreement: float) -> Interval:
    """Between what accuracies on votes the best rule lies, from A, with how many of the votes another one agrees.

    Let p be the chance that a vote on a pair goes the first way. The best rule is right max(p, 1 − p) of the time, and
    two votes agree a = p² + (1−p)² of the time. A and an accuracy on votes weigh a pair by its votes alike, so
    A ≤ E max(p, 1−p) ≤ ½ + ½√(2A − 1): the first since each weight of p·p + (1−p)(1−p) is below the maximum, the
    second since max(p, 1−p) = ½ + ½√(2a − 1), which is concave in a. The upper one is reached where all pairs are
    equally hard, the lower one where each is either clear or a coin's toss. Assumes that the votes on a pair are
    independent and of annotators drawn alike.
    """
    return max(agreement, 0.5), 0.5 + 0.5 * math.sqrt(max(0.0, 2 * agreement - 1))


def agreement_of(items: Ints, first: Bools, annotators: Ints, probabilities: Floats) -> Floats:
    """How far a comparison's annotators agree, [N]: max(p, 1 − p) where that is known, else what the votes say.

    They say the share of an item's votes (`votes_of`) that are on its majority's side. NaN for an item of fewer than
    two whose `probabilities` [N] are NaN.
    """
    place, _, _, counts = _tally(items, first, annotators)
    votes = counts.sum(axis=1)
    share = np.where(votes > 1, counts.max(axis=1) / np.maximum(votes, 1), np.nan)[place]
    return np.asarray(np.where(np.isnan(probabilities), share, np.maximum(probabilities, 1 - probabilities)))


def ceiling(items: Ints, first: Bools, annotators: Ints, right: Floats, prompts: Ints) -> dict[str, Any] | None:
    """The `bounds` of the best rule from items that have several votes (`votes_of`), and how right the model is on
    those: `right` [N] is the model's on each label. None without any such item."""
    place, labels, sides, counts = _tally(items, first, annotators)
    several = counts.sum(axis=1) > 1
    if not several.any():
        return None
    agreement = float(agreeing(counts[several]).sum() / counts[several].sum())
    lowest, highest = bounds(agreement)
    mine = several[place[labels]]
    labels, sides = labels[mine], sides[mine]
    return {
        "items": int(several.sum()),
        "votes": len(labels),
        "agreement": agreement,
        "lowest": lowest,
        "highest": highest,
        "model": share_right(np.where(sides == first[labels], right[labels], 1 - right[labels]), prompts[labels]),
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


def _tally(items: Ints, first: Bools, annotators: Ints) -> tuple[Ints, Ints, Bools, Ints]:
    """Each label's item by number [N], the votes by `votes_of`, and those for either side of each item [items, 2]."""
    found, place = np.unique(items, return_inverse=True)
    place = place.reshape(-1)
    labels, sides = votes_of(place, first, annotators)
    counts = [np.bincount(place[labels[sides == side]], minlength=len(found)) for side in (True, False)]
    return place, labels, sides, np.stack(counts, axis=1)
