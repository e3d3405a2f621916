"""The only owner of padding, packing and token budgets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from keel.dist.crew import shares
from keel.records import EncodedRow, EncodedText, Sequences, Texts

Batch = TypeVar("Batch", bound=Sequences | Texts)

FILL = 0  # padded positions are found by length, so any id serves
_WORTH = 0.95  # share of a padded batch below which its real tokens are worth picking out


def pad_rows(rows: Sequence[EncodedRow]) -> Sequences:
    """Rows of token ids as one right-padded batch of len(rows) rows."""
    longest = max(len(row.tokens) for row in rows)
    longest_response = max(row.response_length for row in rows)
    tokens = torch.full((len(rows), longest), FILL, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens, dtype=torch.long)
    response_lengths = torch.tensor([row.response_length for row in rows])
    return Sequences(
        tokens=tokens,
        prompt_lengths=torch.tensor([row.prompt_length for row in rows]),
        response_mask=torch.arange(longest_response)[None, :] < response_lengths[:, None],
    )


def take(sequences: Sequences, rows: Sequence[int]) -> Sequences:
    """The given rows, padded no further than they need."""
    index = torch.tensor(list(rows), device=sequences.tokens.device)
    lengths = sequences.lengths[index]
    return Sequences(
        tokens=sequences.tokens[index, : int(lengths.max())],
        prompt_lengths=sequences.prompt_lengths[index],
        response_mask=take_tokens(sequences.response_mask, sequences, rows),
    )


def take_tokens(values: Tensor, sequences: Sequences, rows: Sequence[int]) -> Tensor:
    """The given rows of a per-token field [B, T], cut to their longest response."""
    index = torch.tensor(list(rows), device=values.device)
    return values[index, : int(sequences.response_lengths[index].max())]


def cut_by_tokens(lengths: Sequence[int], token_budget: int, counts: Sequence[int] | None = None) -> list[list[int]]:
    """Item numbers in groups whose padded size (rows x longest) keeps to the budget, longest items first.

    An item is a row, or `counts` rows of at most its length. One that is larger than the budget gets a group of
    its own. Items of like length meet, so little is padding.
    """
    groups: list[list[int]] = []
    widest = rows = 0
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        count = 1 if counts is None else counts[item]
        if groups and (rows + count) * widest <= token_budget:
            groups[-1].append(item)
            rows += count
        else:
            groups.append([item])
            widest, rows = lengths[item], count
    return groups


def cut_to_train(lengths: Sequence[int], token_budget: int, counts: Sequence[int] | None = None) -> list[list[int]]:
    """As `cut_by_tokens`, so that processes may share the groups evenly: each one's items are cut for themselves."""
    groups = []
    for part in shares(lengths if counts is None else list(map(operator.mul, lengths, counts))):
        mine = None if counts is None else [counts[item] for item in part]
        for group in cut_by_tokens([lengths[item] for item in part], token_budget, mine):
            groups.append([part[index] for index in group])
    return groups


def row_batches(rows: Sequence[EncodedRow], token_budget: int) -> list[Sequences]:
    """The rows in padded batches of like length, each within the token budget."""
    groups = cut_by_tokens([len(row.tokens) for row in rows], token_budget)
    return [pad_rows([rows[index] for index in group]) for group in groups]


def text_batches(rows: Sequence[EncodedText], token_budget: int) -> list[Texts]:
    """The texts in padded batches of like length, each within the token budget."""
    groups = cut_to_train([len(row.tokens) for row in rows], token_budget)
    return [_pad_texts([rows[index] for index in group]) for group in groups]


def round_up(size: int) -> int:
    """The next multiple of 32, or of 8 for what is short."""
    step = 32 if size > 64 else 8
    return -(-size // step) * step


@dataclass(frozen=True)
class Flat:
    """The N real tokens of a padded batch [B, L] side by side, and where each stands in `rows` rows of `width`.

    Rows and width may be more than B and L: N and the width are made round, by tokens that nobody asks for, because a
    kernel is made anew for every shape.
    """

    tokens: Tensor  # int64 [1, N]
    position_ids: Tensor  # int64 [1, N], 0 where a row begins
    starts: Tensor  # int64 [B], the place of each row's first token among the N
    slots: Tensor  # int64 [N], row x width + position
    rows: int
    width: int


def flatten(tokens: Tensor, lengths: Tensor) -> Flat | None:
    """The first `lengths` [B] tokens of each row of int64 [B, L], flat; None where that saves little."""
    total, width = int(lengths.sum()), round_up(tokens.shape[1])
    spare = round_up(total) - total
    if total > _WORTH * tokens.numel():
        return None
    longest = tokens.shape[1]  # no position beyond those of the batch
    more = [longest] * (spare // longest) + ([spare % longest] if spare % longest else [])
    counts = torch.cat([lengths, lengths.new_tensor(more)])
    ends = counts.cumsum(dim=0)
    starts = ends - counts
    row = torch.repeat_interleave(torch.arange(len(counts), device=tokens.device), counts)
    position = torch.arange(total + spare, device=tokens.device) - starts[row]
    flat = tokens.new_full((total + spare,), FILL)
    flat[:total] = tokens[row[:total], position[:total]]
    return Flat(flat[None], position[None], starts[: len(lengths)], row * width + position, len(counts), width)


def _pad_texts(rows: Sequence[EncodedText]) -> Texts:
    lengths = [len(row.tokens) for row in rows]
    tokens = torch.full((len(rows), max(lengths)), FILL, dtype=torch.long)
    trained = torch.zeros((len(rows), max(lengths)), dtype=torch.bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[index, :length] = torch.tensor(row.tokens)
        trained[index, :length] = torch.tensor(row.trains)
    return Texts(tokens=tokens, trained=trained, lengths=torch.tensor(lengths))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved: dict[str, Any] = {name: one.to(device) for name, one in tensors.items()}
    return replace(batch, **moved)
