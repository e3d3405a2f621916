from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keel.batching import (
    cut_by_tokens,
    flatten,
    pad_rows,
    row_batches,
    take,
    take_tokens,
    text_batches,
    to_device,
)
from keel.records import EncodedRow, EncodedText

TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@st.composite
def encoded(draw: st.DrawFn) -> EncodedRow:
    tokens = draw(TOKENS)
    return EncodedRow(tuple(tokens), draw(st.integers(1, len(tokens))))


ROWS = st.lists(encoded(), min_size=1, max_size=8)


def unpadded(tokens: torch.Tensor, lengths: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def test_pad_rows_by_hand() -> None:
    batch = pad_rows([EncodedRow((5, 6, 7), 1), EncodedRow((8, 9), 1), EncodedRow((4,), 1)])
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 0], [4, 0, 0]]
    assert batch.prompt_lengths.tolist() == [1, 1, 1]
    assert batch.response_mask.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.tokens.dtype == batch.prompt_lengths.dtype == torch.int64


@given(ROWS)
def test_padding_loses_nothing_and_adds_no_more_than_needed(rows: list[EncodedRow]) -> None:
    batch = pad_rows(rows)
    assert unpadded(batch.tokens, batch.lengths) == [row.tokens for row in rows]
    assert batch.prompt_lengths.tolist() == [row.prompt_length for row in rows]
    assert batch.tokens.shape == (len(rows), max(len(row.tokens) for row in rows))
    assert batch.response_mask.shape[1] == max(row.response_length for row in rows)
    # The mask has no hole: its first `response_length` entries are True, the rest are not.
    assert [sorted(row, reverse=True) for row in batch.response_mask.tolist()] == batch.response_mask.tolist()
    assert batch.response_lengths.tolist() == [row.response_length for row in rows]


@given(ROWS, st.data())
def test_taking_rows_is_padding_them_alone(rows: list[EncodedRow], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch = pad_rows(rows)
    part, alone = take(batch, chosen), pad_rows([rows[index] for index in chosen])
    assert torch.equal(part.tokens, alone.tokens)
    assert torch.equal(part.prompt_lengths, alone.prompt_lengths)
    assert torch.equal(part.response_mask, alone.response_mask)
    # A per-token field is cut with it: here each token's value is its id.
    values = take_tokens(batch.response_tokens(), batch, chosen)
    assert torch.equal(values[part.response_mask], part.response_tokens()[part.response_mask])
    assert values.shape == part.response_mask.shape


ITEMS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), max_size=20)


@given(ITEMS, st.integers(1, 100), st.booleans())
def test_cut_holds_every_item_once_within_the_budget(
    items: list[tuple[int, int]], budget: int, with_counts: bool
) -> None:
    lengths = [length for length, _ in items]
    counts = [count if with_counts else 1 for _, count in items]
    groups = cut_by_tokens(lengths, budget, counts if with_counts else None)
    in_order = [item for group in groups for item in group]
    assert sorted(in_order) == list(range(len(items)))
    assert [lengths[item] for item in in_order] == sorted(lengths, reverse=True)
    for group in groups:
        padded = max(lengths[item] for item in group) * sum(counts[item] for item in group)
        assert padded <= budget or len(group) == 1


@given(ITEMS, st.integers(1, 100))
def test_cut_opens_no_group_that_it_does_not_need(items: list[tuple[int, int]], budget: int) -> None:
    lengths = [length for length, _ in items]
    groups = cut_by_tokens(lengths, budget)
    for group in groups[:-1]:
        assert (len(group) + 1) * lengths[group[0]] > budget


def test_cut_by_hand() -> None:
    assert cut_by_tokens([], 10) == []
    assert cut_by_tokens([3, 9, 4, 4, 1], 8) == [[1], [2, 3], [0, 4]]
    assert cut_by_tokens([2, 2, 2], 4) == [[0, 1], [2]]  # among equals the first comes first
    # 3 rows of 2 and one more fill a budget of 8; two items of 3 rows do not fit together
    assert cut_by_tokens([2, 2, 2], 8, [3, 1, 3]) == [[0, 1], [2]]


@given(ROWS, st.integers(1, 40))
def test_row_batches_hold_every_row_once(rows: list[EncodedRow], budget: int) -> None:
    batches = row_batches(rows, budget)
    seen = [
        (tokens, prompt)
        for batch in batches
        for tokens, prompt in zip(unpadded(batch.tokens, batch.lengths), batch.prompt_lengths.tolist(), strict=True)
    ]
    assert sorted(seen) == sorted((row.tokens, row.prompt_length) for row in rows)
    assert all(batch.tokens.numel() <= budget or len(batch) == 1 for batch in batches)
    assert sum(batch.weight for batch in batches) == sum(row.response_length for row in rows)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        pad_rows([])


def test_to_device_moves_every_field() -> None:
    batch = pad_rows([EncodedRow((5, 6, 7), 1)])
    moved = to_device(batch, torch.device("meta"))
    assert {field.device.type for field in (moved.tokens, moved.prompt_lengths, moved.response_mask)} == {"meta"}


# --- texts of which some tokens train ---


@st.composite
def texts(draw: st.DrawFn) -> EncodedText:
    tokens = draw(TOKENS)
    marks = draw(st.lists(st.booleans(), min_size=len(tokens) - 1, max_size=len(tokens) - 1))
    return EncodedText(tuple(tokens), (False, *marks))


TEXTS = st.lists(texts(), min_size=1, max_size=8)


def test_texts_by_hand() -> None:
    one = EncodedText((5, 6, 7), (False, True, False))
    (batch,) = text_batches([EncodedText((8, 9), (False, True)), one], 100)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.trained.tolist() == [[False, True, False], [False, True, False]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.weight == 2.0
    assert batch.target_positions().tolist() == [[0, 1, 2], [0, 1, 2]]


def test_flat_rows_by_hand() -> None:
    tokens = torch.tensor([[8, 9, 0, 0], [1, 2, 3, 4], [5, 0, 0, 0]])
    flat = flatten(tokens, torch.tensor([2, 4, 1]))
    assert flat is not None
    assert flat.tokens.tolist() == [[8, 9, 1, 2, 3, 4, 5, 0]]  # seven tokens, and one that makes the number round
    assert flat.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 0, 0]]
    assert flat.starts.tolist() == [0, 2, 6]
    assert (flat.rows, flat.width) == (4, 8)
    assert flat.slots.tolist() == [0, 1, 8, 9, 10, 11, 16, 24]


def test_no_position_goes_beyond_those_of_the_batch() -> None:
    flat = flatten(torch.ones(4, 30, dtype=torch.long), torch.tensor([30, 30, 1, 5]))
    assert flat is not None
    assert int(flat.position_ids.max()) == 29


def test_rows_of_like_length_are_left_alone() -> None:
    assert flatten(torch.zeros(8, 10, dtype=torch.long), torch.tensor([10, 10, 9, 10, 10, 9, 10, 10])) is None


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_flat_rows_hold_every_token_once_and_lie_apart(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = torch.randint(1, 99, (len(lengths), max(lengths)), generator=generator)
    flat = flatten(tokens, torch.tensor(lengths))
    if flat is None:
        assert sum(lengths) > 0.95 * tokens.numel()
        return
    assert flat.tokens.shape == flat.position_ids.shape
    assert sum(lengths) <= flat.tokens.numel() < sum(lengths) + 32
    assert len(set(flat.slots.tolist())) == flat.tokens.numel()
    assert int(flat.slots.max()) < flat.rows * flat.width
    for row, (start, length) in enumerate(zip(flat.starts.tolist(), lengths, strict=True)):
        place = slice(start, start + length)
        assert flat.tokens[0, place].tolist() == tokens[row, :length].tolist()
        assert flat.position_ids[0, place].tolist() == list(range(length))
        assert flat.slots[place].tolist() == list(range(row * flat.width, row * flat.width + length))


@given(TEXTS, st.integers(1, 40))
def test_text_batches_hold_every_text_once(rows: list[EncodedText], budget: int) -> None:
    found = []
    for batch in text_batches(rows, budget):
        assert batch.tokens.numel() <= budget or len(batch.tokens) == 1
        assert batch.tokens.shape[1] == batch.lengths.max()
        for tokens, trained, length in zip(
            batch.tokens.tolist(), batch.trained.tolist(), batch.lengths.tolist(), strict=True
        ):
            found.append((tuple(tokens[:length]), tuple(trained[:length])))
            assert not any(tokens[length:])
            assert not any(trained[length:])
    assert sorted(found) == sorted((row.tokens, row.trains) for row in rows)


def test_a_batch_moves_as_a_whole() -> None:
    (batch,) = text_batches([EncodedText((5, 6), (False, True)), EncodedText((5,), (False,))], 100)
    moved = to_device(batch, torch.device("meta"))
    assert moved.trained.device.type == moved.tokens.device.type == moved.lengths.device.type == "meta"
