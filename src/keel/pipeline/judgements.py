"""What the reward model learns from, as token ids: judgements grouped by prompt, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from keel.batching import cut_to_train, pad_rows
from keel.data.mix import Mixture
from keel.records import EncodedRow, Pairs, Rankings, Ratings, Sequences


class Encoded(Protocol):
    """A judgement of one response or several to one prompt."""

    @property
    def rows(self) -> tuple[EncodedRow, ...]: ...

    @property
    def source(self) -> int:
        """Which of the stage's sources it is of."""
        ...

    @property
    def kind(self) -> str | None:
        """What that source calls it."""
        ...


J = TypeVar("J", bound=Encoded)
B = TypeVar("B")
Collate = Callable[[Sequences, Mapping[EncodedRow, int], Sequence[J]], B]
"""(the responses of a micro-batch, where each stands there, the judgements of them) -> the micro-batch."""


@dataclass(frozen=True)
class EncodedPair:
    """A comparison as token ids."""

    chosen: EncodedRow
    rejected: EncodedRow
    margin: float
    weight: float
    first_probability: float | None = None  # that the annotator prefers the one it did, where it is known
    source: int = 0
    kind: str | None = None
    drawn: tuple[int, ...] = ()  # how often each member of an ensemble has it in its own sample

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as token ids; a lower rank is better, and equal ranks are a tie."""

    rows: tuple[EncodedRow, ...]
    ranks: tuple[int, ...]
    source: int = 0
    kind: str | None = None


@dataclass(frozen=True)
class EncodedRating:
    """A rating as token ids; a label is one of two levels."""

    row: EncodedRow
    level: int  # from 0
    annotator: int = -1  # by number; -1 = nobody who is known
    source: int = 0
    kind: str | None = None

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        return (self.row,)


def mixture_of(groups: Sequence[Sequence[Encoded]], weights: Sequence[float]) -> Mixture:
    """How often each group of judgements is met; the groups stand source after source."""
    sources = [group[0].source for group in groups]
    return Mixture(tuple(sources.count(source) for source in range(len(weights))), tuple(weights))


def by_prompt(judgements: Sequence[J], most: int) -> list[list[J]]:
    """The judgements of each prompt together, in the order of its first one; at most `most` in a group.

    A group is of one source.

    They are trained on in one step: a response that is judged several times is computed once, and a prompt with many
    judgements is not met again and again within an epoch (Ouyang et al., 2022, section 3.5).
    """
    groups: dict[Hashable, list[J]] = {}
    for judgement in judgements:
        groups.setdefault((judgement.source, prompt_of(judgement)), []).append(judgement)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


def microbatches(groups: Sequence[Sequence[J]], token_budget: int, collate: Collate[J, B]) -> list[B]:
    """Judgements grouped by prompt, in padded batches of like length; each response stands in its batch once."""
    rows = [list(dict.fromkeys(row for judgement in group for row in judgement.rows)) for group in groups]
    lengths = [max(len(row.tokens) for row in group) for group in rows]
    batches = []
    for items in cut_to_train(lengths, token_budget, [len(group) for group in rows]):
        unique = list(dict.fromkeys(row for item in items for row in rows[item]))
        number = {row: index for index, row in enumerate(unique)}
        batches.append(collate(pad_rows(unique), number, [judgement for item in items for judgement in groups[item]]))
    return batches


def pairs_batch(rows: Sequences, number: Mapping[EncodedRow, int], pairs: Sequence[EncodedPair]) -> Pairs:
    """A batch of comparisons."""
    return Pairs(
        rows=rows,
        chosen=torch.tensor([number[pair.chosen] for pair in pairs]),
        rejected=torch.tensor([number[pair.rejected] for pair in pairs]),
        margins=torch.tensor([pair.margin for pair in pairs]),
        weights=torch.tensor([pair.weight for pair in pairs]),
        drawn=torch.tensor([pair.drawn for pair in pairs]).float() if pairs[0].drawn else None,
    )


def rankings_batch(rows: Sequences, number: Mapping[EncodedRow, int], rankings: Sequence[EncodedRanking]) -> Rankings:
    """A batch of rankings, padded to the longest."""
    shape = (len(rankings), max(len(ranking.ranks) for ranking in rankings))
    items, ranks = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    told_apart: list[tuple[int, int]] = []
    for index, ranking in enumerate(rankings):
        count = len(ranking.ranks)
        mine = [number[row] for row in ranking.rows]
        items[index, :count], ranks[index, :count] = torch.tensor(mine), torch.tensor(ranking.ranks)
        mask[index, :count] = True
        told_apart += _told_apart(mine, [-rank for rank in ranking.ranks])
    return Rankings(rows, items, ranks, mask, _pairs(told_apart))


def ratings_batch(rows: Sequences, number: Mapping[EncodedRow, int], ratings: Sequence[EncodedRating]) -> Ratings:
    """A batch of ratings."""
    judges: dict[Hashable, list[EncodedRating]] = {}
    for rating in ratings:
        judges.setdefault((rating.source, prompt_of(rating), rating.annotator), []).append(rating)
    told_apart = [
        pair
        for judged in judges.values()
        for pair in _told_apart([number[one.row] for one in judged], [one.level for one in judged])
    ]
    return Ratings(
        rows=rows,
        items=torch.tensor([number[rating.row] for rating in ratings]),
        levels=torch.tensor([rating.level for rating in ratings]),
        annotators=torch.tensor([rating.annotator for rating in ratings]),
        pairs=_pairs(told_apart),
    )


def prompt_of(judgement: Encoded) -> tuple[int, ...]:
    """The prompt's ids."""
    row = judgement.rows[0]
    return row.tokens[: row.prompt_length]


def _told_apart(rows: Sequence[int], values: Sequence[int]) -> list[tuple[int, int]]:
    """Each two different rows whose values differ, that of the higher one first."""
    return [
        (one, other) if value > beside else (other, one)
        for (one, value), (other, beside) in combinations(zip(rows, values, strict=True), 2)
        if value != beside and one != other
    ]


def _pairs(pairs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
