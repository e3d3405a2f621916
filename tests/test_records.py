from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keel.batching import pad_rows
from keel.records import EncodedRow, Pairs, PolicyBatch, PromptItem, Rollout, Samples, Scores, Sequences

LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=6)


def batch_of(lengths: list[tuple[int, int]]) -> tuple[list[EncodedRow], Sequences]:
    """Rows whose ids are all different, so that a token says where it came from."""
    rows, first = [], 1
    for prompt, response in lengths:
        rows.append(EncodedRow(tuple(range(first, first + prompt + response)), prompt))
        first += prompt + response
    return rows, pad_rows(rows)


@given(LENGTHS)
def test_response_tokens_are_what_follows_the_prompt(lengths: list[tuple[int, int]]) -> None:
    rows, batch = batch_of(lengths)
    positions, tokens = batch.response_positions(), batch.response_tokens()
    assert positions.shape == tokens.shape == batch.response_mask.shape
    for index, row in enumerate(rows):
        for step, token in enumerate(row.tokens[row.prompt_length :]):
            assert batch.response_mask[index, step]
            assert positions[index, step] == row.prompt_length + step
            assert tokens[index, step] == token
    assert int(batch.response_mask.sum()) == sum(response for _, response in lengths)


@given(LENGTHS)
def test_lengths_and_weight(lengths: list[tuple[int, int]]) -> None:
    _, batch = batch_of(lengths)
    assert len(batch) == len(lengths)
    assert batch.response_lengths.tolist() == [response for _, response in lengths]
    assert batch.lengths.tolist() == [prompt + response for prompt, response in lengths]
    assert batch.weight == sum(response for _, response in lengths)


def test_pairs_weigh_by_their_weights() -> None:
    _, batch = batch_of([(2, 1), (2, 3), (2, 2)])
    pairs = Pairs(
        rows=batch,
        chosen=torch.tensor([0, 2]),
        rejected=torch.tensor([1, 1]),
        margins=torch.zeros(2),
        weights=torch.tensor([0.5, 2.0]),
    )
    assert pairs.weight == 2.5


def test_a_policy_batch_weighs_by_its_response_tokens() -> None:
    _, batch = batch_of([(2, 1), (2, 3)])
    field = torch.zeros(batch.response_mask.shape)
    part = PolicyBatch(batch, old_logprobs=field, old_values=field, advantages=field, returns=field)
    assert part.weight == 4.0


def test_a_rollout_shows_its_samples() -> None:
    rows, batch = batch_of([(1, 2)])
    field = torch.zeros(batch.response_mask.shape)
    prompt = PromptItem(tokens=rows[0].tokens[:1], text="a", row={}, source="a")
    samples = Samples(batch, logprobs=field, ended=torch.tensor([True]), prompts=(prompt,), texts=("b",))
    scores = Scores(total=torch.zeros(1), parts={})
    rollout = Rollout(samples, field, field, field, scores, group=torch.zeros(1, dtype=torch.int64), policy_version=0)
    assert rollout.sequences is batch
    assert rollout.response_mask is batch.response_mask


def test_records_are_frozen() -> None:
    _, batch = batch_of([(1, 1)])
    frozen: Any = batch
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.tokens = batch.tokens
