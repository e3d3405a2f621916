"""The only owner of padding and of token budgets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keel.records import EncodedRow, Sequences

FILL = 0  # padded positions are found by length, so any id serves


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


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length aligned at their ends, for sampling: int64 [B, P] and their bool mask [B, P]."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), FILL, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        tokens[index, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[index, longest - len(prompt) :] = True
    return tokens, mask


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


def to_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same batch on another device."""
    return Sequences(
        tokens=sequences.tokens.to(device),
        prompt_lengths=sequences.prompt_lengths.to(device),
        response_mask=sequences.response_mask.to(device),
    )
