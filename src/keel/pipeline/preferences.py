"""What a policy learns from directly, as token ids: pairs and labels, grouped by prompt, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from keel.batching import cut_by_tokens, pad_rows
from keel.data.mix import Mixture
from keel.errors import UserError
from keel.functional.direct import kto_reference_point
from keel.records import Choices, EncodedRow, Labels, Sequences
from keel.seeds import Draws


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

RefLogprobs = Mapping[EncodedRow, float]
"""Log-probability of each whole response under the reference; empty where there is none."""


@dataclass(frozen=True)
class EncodedChoice:
    """A comparison as token ids."""

    chosen: EncodedRow
    rejected: EncodedRow
    weight: float = 1.0
    source: int = 0
    kind: str | None = None

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True)
class EncodedLabel:
    """A response as token ids, and whether it was accepted."""

    row: EncodedRow
    accepted: bool
    weight: float = 1.0
    source: int = 0
    kind: str | None = None

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        return (self.row,)


def by_prompt(judgements: Sequence[J], most: int) -> list[list[J]]:
    groups: dict[tuple[int, tuple[int, ...]], list[J]] = {}
    for one in judgements:
        groups.setdefault((one.source, prompt_of(one)), []).append(one)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


def mixture_of(groups: Sequence[Sequence[J]], weights: Sequence[float]) -> Mixture:
    sources = [group[0].source for group in groups]
    return Mixture(tuple(sources.count(source) for source in range(len(weights))), tuple(weights))


def microbatches(groups: Sequence[Sequence[J]], token_budget: int, collate: Collate[J, B]) -> list[B]:
    rows = [list(dict.fromkeys(row for judgement in group for row in judgement.rows)) for group in groups]
    lengths = [max(len(row.tokens) for row in group) for group in rows]
    batches = []
    for items in cut_by_tokens(lengths, token_budget, [len(group) for group in rows]):
        unique = list(dict.fromkeys(row for item in items for row in rows[item]))
        number = {row: index for index, row in enumerate(unique)}
        batches.append(collate(pad_rows(unique), number, [judgement for item in items for judgement in groups[item]]))
    return batches


def prompt_of(judgement: Encoded) -> tuple[int, ...]:
    """The prompt's ids."""
    row = judgement.rows[0]
    return row.tokens[: row.prompt_length]


def choices_batch(reference: RefLogprobs) -> Collate[EncodedChoice, Choices]:
    """What makes a batch of comparisons."""

    def collate(rows: Sequences, number: Mapping[EncodedRow, int], pairs: Sequence[EncodedChoice]) -> Choices:
        return Choices(
            rows=rows,
            ref_logprobs=_of(list(number), reference),
            chosen=torch.tensor([number[pair.chosen] for pair in pairs]),
            rejected=torch.tensor([number[pair.rejected] for pair in pairs]),
            weights=torch.tensor([pair.weight for pair in pairs]),
        )

    return collate


def labels_batch(reference: RefLogprobs, reference_point: Tensor) -> Collate[EncodedLabel, Labels]:
    """What makes a batch of labels; all batches of a minibatch have its one reference point."""

    def collate(rows: Sequences, number: Mapping[EncodedRow, int], labels: Sequence[EncodedLabel]) -> Labels:
        return Labels(
            rows=rows,
            ref_logprobs=_of(list(number), reference),
            judged=torch.tensor([number[label.row] for label in labels]),
            desirable=torch.tensor([label.accepted for label in labels]),
            weights=torch.tensor([label.weight for label in labels]),
            reference_point=reference_point,
        )

    return collate


def mismatched(
    judgements: Sequence[J], draws: Draws, room: int, cut: Callable[[Sequence[int], int], Sequence[int]]
) -> dict[tuple[int, ...], EncodedRow]:
    """For each prompt, by its ids, that prompt with a response to another one, drawn once for the whole stage.

    `cut` shortens a prompt to the given number of tokens where both are longer than `room`. Raises UserError where
    there is one prompt only.
    """
    responses: dict[tuple[int, ...], tuple[int, ...]] = {}
    for one in judgements:
        row = one.rows[0]
        responses.setdefault(prompt_of(one), row.tokens[row.prompt_length :])
    prompts = list(responses)
    if len(prompts) < 2:
        raise UserError("direct: kto needs at least two prompts, for it takes its reference point across them")
    order = draws.permutation("mismatched", len(prompts)).tolist()
    found = {}
    for index, other in zip(order, order[1:] + order[:1], strict=True):
        prompt, response = prompts[index], responses[prompts[other]]
        ids = prompt if len(prompt) + len(response) <= room else cut(prompt, room - len(response))
        found[prompt] = EncodedRow((*ids, *response), len(ids))
    return found


def reference_point(
    groups: Sequence[Sequence[EncodedLabel]],
    mismatches: Mapping[tuple[int, ...], EncodedRow],
    reference: RefLogprobs,
    logprobs: Callable[[Sequence[EncodedRow]], Tensor],
) -> Tensor:
    """KTO's z0 of a minibatch, from its prompts' mismatched responses; `logprobs` is the policy as it is now."""
    rows = list(dict.fromkeys(mismatches[prompt_of(group[0])] for group in groups))
    return kto_reference_point(logprobs(rows) - _of(rows, reference))


def _of(rows: Sequence[EncodedRow], reference: RefLogprobs) -> Tensor:
    return torch.tensor([reference[row] for row in rows] if reference else [0.0] * len(rows))
