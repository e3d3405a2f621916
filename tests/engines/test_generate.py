"""Sampling by transformers' generate, against the sampler with a cache of its own and against exact forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from keel.config.sampling import SamplingConfig
from keel.engines.generate import GenerateSampler
from tests.engines.helpers import KEY, exact_logits, exact_logprobs, items, responses, rows_of, sampler_of, tiny_policy

LENGTHS = (3, 9, 4, 4, 3, 2, 7, 3)
CONFIG = SamplingConfig(max_new_tokens=10, temperature=0.8, batch=2)


@pytest.mark.parametrize(
    "change", [{}, {"top_k": 4}, {"top_p": 0.7}, {"stop": ("a", "the", "er")}, {"temperature": 0.0}]
)
def test_its_draws_are_those_of_the_cached_sampler(change: dict[str, Any]) -> None:
    policy, prompts = tiny_policy(critic=True), items(LENGTHS)
    cached = sampler_of(policy, range(40))
    model: Any = policy.backbone
    model.generation_config.repetition_penalty = 2.0  # as some hub models come; it is no part of the policy
    config = CONFIG.model_copy(update=change)
    expected = cached.sample(prompts, config, KEY)
    found = GenerateSampler(policy, cached.renderer).sample(prompts, config, KEY)
    assert responses(found) == responses(expected)
    assert len({len(row) for row in responses(found)}) >= 3
    assert (found.texts, found.ended.tolist()) == (expected.texts, expected.ended.tolist())
    assert (found.judged is None) == (expected.judged is None)
    assert (found.logprobs is None) == (expected.logprobs is None)
    if found.logprobs is not None:
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
    assert model.generation_config.repetition_penalty == 2.0


@pytest.mark.parametrize("family", ["mamba", "gpt_neo"])
def test_it_drives_what_the_cache_cannot(family: str) -> None:
    policy, prompts = tiny_policy(family), items(LENGTHS)
    sampler = GenerateSampler(policy, sampler_of(policy, range(40)).renderer)
    samples = sampler.sample(prompts, CONFIG, KEY)
    assert samples.logprobs is not None
    for row, found in zip(rows_of(samples.sequences), samples.logprobs, strict=True):
        expected = exact_logprobs(policy.backbone, row, 0.8)
        torch.testing.assert_close(found[: len(expected)].double(), expected, rtol=0, atol=1e-4)
    greedy = sampler.sample(prompts, CONFIG.model_copy(update={"temperature": 0.0}), KEY)
    for row in rows_of(greedy.sequences):
        assert exact_logits(policy.backbone, row).argmax(dim=-1).tolist() == list(row.tokens[row.prompt_length :])


def test_a_watcher_hears_every_token() -> None:
    policy, prompts = tiny_policy(), items(LENGTHS)
    heard: dict[int, list[int]] = {row: [] for row in range(len(prompts))}

    def watch(rows: Sequence[int], tokens: Sequence[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            heard[row].append(token)

    sampler = GenerateSampler(policy, sampler_of(policy, range(40)).renderer, watch)
    assert responses(sampler.sample(prompts, CONFIG, KEY)) == list(heard.values())
