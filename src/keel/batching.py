"""The only owner of padding, packing and token budgets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from keel.records import EncodedRow, EncodedText, Sequences, Texts

Batch = TypeVar("Batch", bound=Sequences | Texts)

FILL = 0  # padded positions are found by length, so any id serves
_WORTH = 0.9  # share of a padded batch below which it is worth packing


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


def row_batches(rows: Sequence[EncodedRow], token_budget: int) -> list[Sequences]:
    """The rows in padded batches of like length, each within the token budget."""
    groups = cut_by_tokens([len(row.tokens) for row in rows], token_budget)
    return [pad_rows([rows[index] for index in group]) for group in groups]


def text_batches(rows: Sequence[EncodedText], token_budget: int) -> list[Texts]:
    """The texts in padded batches of like length, each within the token budget."""
    groups = cut_by_tokens([len(row.tokens) for row in rows], token_budget)
    return [_pad_texts([rows[index] for index in group]) for group in groups]


@dataclass(frozen=True)
class Packed:
    """A padded batch of B rows with its tokens side by side in R rows, R <= B; what is padded still is a document of
    its own, a token long.
    """

    tokens: Tensor  # int64 [R, C]
    position_ids: Tensor  # int64 [R, C], 0 where a document begins
    starts: Tensor  # int64 [B], where each document begins, counted over all R x C places


def pack(tokens: Tensor, lengths: Tensor) -> Packed | None:
    """The rows of int64 [B, L], of which the first `lengths` [B] tokens are real, packed; None where it saves little.

    Rows are shared up to the longest one's length: as little padding as may be, and no more attention than it takes.
    """
    counts: list[int] = lengths.tolist()
    groups = share_rows(counts, max(counts))
    width = max(counts)
    if len(groups) * width > _WORTH * tokens.numel():
        return None
    starts = [0] * len(counts)
    for row, group in enumerate(groups):
        place = row * width
        for item in group:
            starts[item] = place
            place += counts[item]
    begins = torch.tensor(starts, device=tokens.device)
    steps = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    real = steps < lengths[:, None]
    places = (begins[:, None] + steps)[real]
    packed, positions = (tokens.new_full((len(groups) * width,), fill) for fill in (FILL, 0))
    packed[places], positions[places] = tokens[real], steps[real]
    return Packed(packed.view(-1, width), positions.view(-1, width), begins)


def share_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Item numbers in groups whose lengths sum to `capacity` at most: longest first, each where least room is left.

    An item longer than `capacity` gets a group of its own.
    """
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, group), sorted
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(room, (lengths[item], 0))
        if place < len(room):
            left, group = room.pop(place)
        else:
            left, group = capacity, len(groups)
            groups.append([])
        groups[group].append(item)
        insort(room, (left - lengths[item], group))
    return groups


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
