"""Who judged, how far they agree, what a reward model can reach against them, and who stands out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keel.assessment import agreement
from keel.assessment.statistics import Floats, Interval, wilson_interval
from keel.data.audit.gather import Int64s
from keel.data.audit.grouping import combined, groups
from keel.data.audit.intervals import Estimate, Rate
from keel.data.audit.reliability import nominal, reliability
from keel.data.audit.simhash import UInt64s

_SURE = 0.99  # that nobody at all is called an outlier where all are alike
_ENOUGH_VOTES = 10


@dataclass(frozen=True)
class Person:
    """One annotator. `agreement` is with the others' votes on the same pairs, `first` on the reply that stood first.

    What others say of one pair is not independent: the interval of `agreement` takes the annotator's votes for that.
    """

    name: str
    votes: int
    agreement: Rate
    first: Rate
    longer: Rate
    remarks: Sequence[str]


@dataclass(frozen=True)
class Annotators:
    """`votes_per_pair`: how many pairs have how many votes. A vote is one named annotator's on one pair of replies.

    `alpha`, `agreement` (with how many votes another one on the pair agrees) and the ceiling's bounds are None where no
    pair has two votes.
    """

    votes: int
    pairs: int
    votes_per_pair: dict[int, int]
    alpha: Estimate | None
    agreement: Estimate | None
    ceiling: Interval | None
    people: Sequence[Person]  # by votes, most first

    @property
    def outlying(self) -> list[Person]:
        return [person for person in self.people if person.remarks]


@dataclass(frozen=True)
class Votes:
    """m votes, columns [m]: `label` is the label that a vote was first given by."""

    pair: Int64s  # numbers of pairs of replies
    side: NDArray[np.bool_]  # for the one of two replies with the smaller fingerprint
    annotator: Int64s
    prompt: UInt64s
    label: Int64s


def votes_of(prompt: UInt64s, chosen: UInt64s, rejected: UInt64s, annotator: Int64s, labels: Int64s) -> Votes:
    """`agreement.votes_of`, from columns of all labels, of which only `labels` are looked at."""
    one, other = chosen[labels], rejected[labels]
    pair = groups(combined(prompt[labels], np.minimum(one, other), np.maximum(one, other)))
    kept, side = agreement.votes_of(pair, one < other, annotator[labels])
    return Votes(pair[kept], side, annotator[labels[kept]], prompt[labels[kept]], labels[kept])


def annotators_of(votes: Votes, names: Sequence[str], first: NDArray[np.int8], longer: NDArray[np.int8]) -> Annotators:
    """`first` and `longer` are columns of all labels: 1 yes, 0 no, -1 not known."""
    counts = _counts(votes)
    per_pair = counts.sum(axis=1)
    sizes, how_many = np.unique(per_pair, return_counts=True)
    alpha, agree, ceiling = None, None, None
    if (per_pair >= 2).any():
        alpha, agree = _agreement(votes, counts)
        ceiling = agreement.bounds(agree.value)
    people = _people(votes, counts, names, first, longer)
    return Annotators(
        len(votes.pair), len(counts), dict(zip(sizes.tolist(), how_many.tolist(), strict=True)),
        alpha, agree, ceiling, people,
    )  # fmt: skip


def _counts(votes: Votes) -> NDArray[np.int64]:
    """Votes for either side, a pair a row [pairs, 2]; only pairs with votes."""
    pair = groups(votes.pair.astype(np.uint64))
    num = int(pair.max()) + 1 if len(pair) else 0
    return np.stack([np.bincount(pair[votes.side == side], minlength=num) for side in (True, False)], axis=1)


def _agreement(votes: Votes, counts: NDArray[np.int64]) -> tuple[Estimate, Estimate]:
    """Krippendorff's α, and with how many votes another one on the pair agrees; prompts are drawn anew.

    Which of two replies is called the first is nobody's choice, so α is that of every pair entered both ways round: it
    does not change when replies are swapped, and both answers are expected equally often.
    """
    prompt = votes.prompt[np.unique(votes.pair, return_index=True)[1]]
    found = reliability(np.concatenate([counts, counts[:, ::-1]]), np.tile(prompt, 2), nominal(2))
    assert found is not None
    return found


def _people(
    votes: Votes, counts: NDArray[np.int64], names: Sequence[str], first: NDArray[np.int8], longer: NDArray[np.int8]
) -> list[Person]:
    pair = groups(votes.pair.astype(np.uint64))
    mine = np.where(votes.side, 0, 1)
    same = counts[pair, mine] - 1
    others = counts[pair].sum(axis=1) - 1
    total = len(names)
    agreeing, met, shared = (
        np.bincount(votes.annotator, weights=each, minlength=total).astype(np.float64)
        for each in (same, others, others > 0)
    )
    given = np.bincount(votes.annotator, minlength=total)
    sides = {}
    for name, column in (("first", first), ("longer", longer)):
        known = column[votes.label]
        sides[name] = [np.bincount(votes.annotator[known == value], minlength=total).astype(int) for value in (1, 0)]
    independent = _independent(votes.annotator, same, others, agreeing, met, shared)
    usual = float(agreeing.sum() / met.sum()) if met.sum() else math.nan
    confidence = 1 - (1 - _SURE) / max(1, int((given > 0).sum()))
    people = []
    for number in np.argsort(-given, kind="stable").tolist():
        if given[number]:
            others_agree = _rate(agreeing[number], met[number], independent[number])
            tastes = {name: _rate(yes[number], yes[number] + no[number]) for name, (yes, no) in sides.items()}
            remarks = _remarks(tastes, confidence)
            if shared[number] >= _ENOUGH_VOTES:
                most = wilson_interval(others_agree.share, independent[number], confidence)[1]
                remarks = ["low agreement", *remarks] if most < usual else remarks
            people.append(Person(names[number], int(given[number]), others_agree, **tastes, remarks=remarks))
    return people


def _independent(
    annotator: Int64s, same: Int64s, others: Int64s, agreeing: Floats, met: Floats, shared: Floats
) -> Floats:
    """For how many independent others the agreement of each annotator counts: see `intervals.rate`."""
    share = agreeing / np.maximum(met, 1)
    squares = np.bincount(annotator, weights=(same - share[annotator] * others) ** 2, minlength=len(met))
    variance = squares / np.maximum(met, 1) ** 2 * shared / np.maximum(shared - 1, 1)
    return np.asarray(np.where(variance > 0, share * (1 - share) / np.where(variance > 0, variance, 1), shared))


def _rate(hits: float, total: float, independent: float | None = None) -> Rate:
    number = total if independent is None else independent
    return Rate(int(hits), int(total), wilson_interval(hits / total if total else 0.0, number))


def _remarks(tastes: dict[str, Rate], confidence: float) -> list[str]:
    """What stands out, beyond what chance does to the most extreme of that many annotators."""
    found = []
    for name, taste in tastes.items():
        if taste.total < _ENOUGH_VOTES:
            continue
        never = {"first": "second", "longer": "shorter"}[name]
        if taste.hits in (0, taste.total) and 2 * 0.5**taste.total < 1 - confidence:
            found.append(f"always the {name if taste.hits else never}")
        elif name == "first":
            low, high = wilson_interval(taste.share, taste.total, confidence)
            if not low <= 0.5 <= high:
                found.append(f"position bias: the {name if low > 0.5 else never}")
    return found
