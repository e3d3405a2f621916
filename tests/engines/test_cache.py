"""The cache of rows of unequal length, against transformers' own decoding of each prompt alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from keel.config.sampling import SamplingConfig
from keel.models.policy import Policy
from keel.records import PromptItem
from tests.engines.helpers import KEY, exact_logits, items, responses, rows_of, sampler_of, tiny_policy
from tests.worlds import VOCAB

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "mistral", "gpt_neox")
LENGTHS = (1, 9, 4, 4, 13, 2, 7, 5, 11, 3)


def generated(policy: Policy, prompt: PromptItem, length: int) -> list[int]:
    """transformers' own greedy decoding of one prompt alone, without end."""
    model: Any = policy.backbone
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.tokens])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=VOCAB - 1
    )
    tokens: list[int] = output[0, len(prompt.tokens) :].tolist()
    return tokens


def ends_of_many_lengths(rows: list[list[int]]) -> list[int]:
    """End tokens, 0 among them, that cut the rows to at least four lengths and leave one whole."""
    for pair in combinations(sorted({token for row in rows for token in row}), 2):
        ends = [0, *pair]
        lengths = {min((row.index(end) + 1 for end in ends if end in row), default=len(row)) for row in rows}
        if len(lengths) >= 4 and len(rows[0]) in lengths:
            return ends
    raise AssertionError("no two tokens would do")


def to_end(row: list[int], ends: list[int]) -> list[int]:
    return row[: min((row.index(end) + 1 for end in ends if end in row), default=len(row))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_generate_whatever_the_batch(family: str) -> None:
    policy, prompts = tiny_policy(family), items(LENGTHS)
    prompts = [*prompts, prompts[4], prompts[4], prompts[7], prompts[4]]  # some are asked for several times
    alone = {prompt.tokens: generated(policy, prompt, 14) for prompt in prompts}
    rows = [alone[prompt.tokens] for prompt in prompts]
    ends = ends_of_many_lengths(rows)
    expected = [to_end(row, ends) for row in rows]
    assert len({len(row) for row in expected}) >= 4
    for batch in (3, 7, 64):
        sampling = SamplingConfig(max_new_tokens=14, temperature=0.0, batch=batch)
        samples = sampler_of(policy, ends).sample(prompts, sampling, KEY)
        assert responses(samples) == expected
        assert samples.ended.tolist() == [row[-1] in ends for row in expected]
    best_two = torch.cat([exact_logits(policy.backbone, row) for row in rows_of(samples.sequences)]).topk(2).values
    assert float((best_two[:, 0] - best_two[:, 1]).min()) > 1e-4, "a tie would make this test mean nothing"
