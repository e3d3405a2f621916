"""What a policy learns from directly, as token ids: pairs and labels, grouped by prompt, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keel.errors import UserError
from keel.functional.direct import kto_reference_point
from keel.pipeline.judgements import Collate, Encoded, prompt_of
from keel.records import Choices, EncodedRow, Labels, Sequences
from keel.seeds import Draws

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
    judgements: Sequence[Encoded], draws: Draws, room: int, cut: Callable[[Sequence[int], int], Sequence[int]]
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
