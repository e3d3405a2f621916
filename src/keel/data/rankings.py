"""Rankings and the preferences between each two of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from keel.config.data import Outcome


def pairs(count: int) -> list[tuple[int, int]]:
    """(0, 1), (0, 2), …, (1, 2), …: each two of `count` responses once, in the order that outcomes are given in."""
    return list(combinations(range(count), 2))


def outcomes_of(ranks: Sequence[int]) -> list[Outcome]:
    """Which of each two responses ranks better (lower), by `pairs`; equal ranks are a tie."""
    return [_outcome(ranks[one], ranks[other]) for one, other in pairs(len(ranks))]


def ranks_of(outcomes: Sequence[Outcome], count: int) -> list[int] | None:
    """The ranks of `count` responses from the outcomes by `pairs`; None if these agree with no ranking.

    The best has rank 1, and of three the ranks may be 1, 1, 3. In a ranking, wins minus losses order the responses;
    so if those disagree with an outcome, there is no ranking.
    """
    net = [0] * count
    for (one, other), outcome in zip(pairs(count), outcomes, strict=True):
        won = (outcome == "first") - (outcome == "second")
        net[one] += won
        net[other] -= won
    ranks = [1 + sum(other > mine for other in net) for mine in net]
    return ranks if outcomes_of(ranks) == list(outcomes) else None


def _outcome(one: int, other: int) -> Outcome:
    if one == other:
        return "tie"
    return "first" if one < other else "second"
