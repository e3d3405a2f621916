"""What decides without being read: length, the order shown; and how the labels are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keel.data.audit.gather import Gathered, Int64s, Labels
from keel.data.audit.intervals import Rate, Slope, logistic_slope, rate
from keel.data.audit.texts import Oddity
from keel.data.reasons import Reason

_SORTED = 0.98  # of the first winning, beyond which the order is taken for that of the file and not that shown


@dataclass(frozen=True)
class LengthBias:
    """How often the longer reply won, and b of P(chosen ≻ rejected) = σ(b·(log length − log length)), in characters.

    `doubled` is what b says of a reply twice as long: it wins with that probability, all else being as it was.
    """

    longer: Rate
    equal: int  # pairs of replies of one length, that say nothing
    slope: Slope | None

    @property
    def doubled(self) -> float | None:
        return None if self.slope is None else 1 / (1 + 2**-self.slope.value)


@dataclass(frozen=True)
class PositionBias:
    """How often the reply that stood first won, where an order is known.

    `sorted`: nearly always or nearly never, so the file lists the better one first (or last), and no order was shown.
    """

    first: Rate
    unknown: int

    @property
    def sorted(self) -> bool:
        return self.first.total > 0 and not 1 - _SORTED < self.first.share < _SORTED


@dataclass(frozen=True)
class Balance:
    """How the labels are spread."""

    ties: int
    numbers: Mapping[float, int]  # ratings, or labels (1 accepted, 0 not)
    labels_per_prompt: tuple[int, float, int]  # least, median, most
    empty_judged: int  # pairs with an empty reply that was there to be judged: a policy may say nothing
    cut_chosen: float  # share of the replies that were cut off, or end as if they had been
    cut_rejected: float
    noise_ceiling: float | None  # where every label comes with the probability that it was drawn with


def lengths_of(labels: Labels, prompt: NDArray[np.uint64], kept: Int64s) -> LengthBias:
    """Of the labels `kept`; those of one prompt are not independent."""
    kept = kept[(labels.chosen_length[kept] > 0) & (labels.rejected_length[kept] > 0)]
    x = np.log(labels.chosen_length[kept] / labels.rejected_length[kept])
    decided = x != 0
    return LengthBias(
        rate(x[decided] > 0, prompt[kept][decided]), int((~decided).sum()), logistic_slope(x, prompt[kept])
    )


def longer_of(labels: Labels) -> NDArray[np.int8]:
    """Whether the chosen reply is the longer one: 1 yes, 0 no, -1 neither is."""
    gap = labels.chosen_length - labels.rejected_length
    return np.where(gap == 0, -1, gap > 0).astype(np.int8)


def positions_of(labels: Labels, prompt: NDArray[np.uint64], kept: Int64s) -> PositionBias:
    """Of the labels `kept`."""
    known = kept[labels.first[kept] >= 0]
    return PositionBias(rate(labels.first[known] == 1, prompt[known]), len(kept) - len(known))


def balance_of(gathered: Gathered, kept: Int64s) -> Balance:
    """Ties are those of all records, the rest that of the labels `kept`."""
    labels = gathered.labels
    per_prompt = np.unique(gathered.prompt_keys[kept], return_counts=True)[1]
    numbers, times = np.unique(gathered.ratings.number, return_counts=True)
    cut = int(Oddity.CUT_OFF | Oddity.MID_SENTENCE)
    chosen, rejected = labels.chosen_odd[kept], labels.rejected_odd[kept]
    probability = labels.first_probability[kept]
    known = len(kept) > 0 and not np.isnan(probability).any()
    return Balance(
        ties=sum(check.counts.get(Reason.TIE, 0) for check in gathered.checks),
        numbers=dict(zip(numbers.tolist(), times.tolist(), strict=True)),
        labels_per_prompt=_spread(per_prompt),
        empty_judged=int((((chosen | rejected) & Oddity.EMPTY) > 0).sum()),
        cut_chosen=_share((chosen & cut) > 0),
        cut_rejected=_share((rejected & cut) > 0),
        noise_ceiling=float(np.maximum(probability, 1 - probability).mean()) if known else None,
    )


def _spread(counts: Int64s) -> tuple[int, float, int]:
    return (int(counts.min()), float(np.median(counts)), int(counts.max())) if len(counts) else (0, 0.0, 0)


def _share(found: NDArray[np.bool_]) -> float:
    return float(found.mean()) if len(found) else math.nan
