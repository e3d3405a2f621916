"""What is drawn, under continuous batching and with shared prompts, against exact probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from keel.config.sampling import SamplingConfig
from keel.models.critic import ValueHead
from keel.models.policy import Policy
from keel.records import EncodedRow, PromptItem
from tests.engines.helpers import KEY, exact_logprobs, items, responses, sampler_of, tiny_policy
from tests.worlds import tiny_lm

LENGTHS = (1, 9, 4, 4, 13, 2, 7, 5, 11, 3)


def possible(vocab: int, longest: int, end: int) -> Iterator[tuple[int, ...]]:
    """Every response: up to its end token, or as long as may be."""
    beginnings: list[tuple[int, ...]] = [()]
    for length in range(1, longest + 1):
        longer = [(*row, token) for row in beginnings for token in range(vocab)]
        yield from (row for row in longer if row[-1] == end or length == longest)
        beginnings = [row for row in longer if row[-1] != end]


def probability(policy: Policy, prompt: PromptItem, row: tuple[int, ...]) -> float:
    encoded = EncodedRow((*prompt.tokens, *row), len(prompt.tokens))
    return math.exp(float(exact_logprobs(policy.backbone, encoded, 1.0).sum()))


@pytest.mark.parametrize("batch", [7, 150])
def test_responses_come_with_their_probabilities(batch: int) -> None:
    """A chi-squared test over all 85 responses of at most three tokens of five, to each of three prompts."""
    policy, number = Policy(tiny_lm(vocab=5)).eval(), {7: 500, 150: 1500}[batch]
    prompts = [PromptItem(tokens, text="", row={}, source="") for tokens in ((1,), (2, 0, 3, 1, 1), (3, 3, 2))]
    asked = [prompt for prompt in prompts for _ in range(number)]
    drawn = responses(sampler_of(policy).sample(asked, SamplingConfig(max_new_tokens=3, batch=batch), KEY))
    statistic, cells = 0.0, 0
    for which, prompt in enumerate(prompts):
        found = Counter(tuple(row) for row in drawn[which * number : (which + 1) * number])
        expected = {row: number * probability(policy, prompt, row) for row in possible(5, 3, end=0)}
        assert sum(expected.values()) == pytest.approx(number)
        assert found.keys() <= expected.keys()
        likely = [row for row, count in expected.items() if count >= 5]
        rest = number - sum(expected[row] for row in likely), number - sum(found[row] for row in likely)
        counts = [(expected[row], found[row]) for row in likely] + ([rest] if rest[0] >= 5 else [])
        statistic += sum((seen - wanted) ** 2 / wanted for wanted, seen in counts)
        cells += len(counts) - 1
    assert cells > 15
    assert statistic < cells + 4 * math.sqrt(2 * cells)  # exceeded once in some ten thousand seeds


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "mistral", "qwen3"])
def test_logprobs_and_values_are_those_of_the_policys_own_forward(family: str) -> None:
    policy, prompts = tiny_policy(family, critic=True), [prompt for prompt in items(LENGTHS) for _ in range(2)]
    sampling = SamplingConfig(max_new_tokens=12, temperature=0.8, batch=6)
    samples = sampler_of(policy, range(40)).sample(prompts, sampling, KEY)
    with torch.no_grad():
        own = policy(samples.sequences, temperature=0.8, values=True)
    assert isinstance(policy.critic, ValueHead)
    assert samples.logprobs is not None
    assert samples.values is not None
    assert float(own.values.std()) > 0.1
    torch.testing.assert_close(samples.logprobs, own.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(samples.values, own.values, rtol=0, atol=1e-5)


def test_bfloat16_is_drawn_from_as_well_as_it_rounds() -> None:
    policy, prompts = tiny_policy(critic=True), items(LENGTHS)
    policy.backbone.to(torch.bfloat16)
    samples = sampler_of(policy, range(40)).sample(prompts, SamplingConfig(max_new_tokens=12, batch=4), KEY)
    with torch.no_grad():
        own = policy(samples.sequences, values=True)
    assert samples.logprobs is not None
    assert samples.values is not None
    gap = (samples.logprobs - own.logprobs)[samples.sequences.response_mask]
    assert samples.values.dtype == samples.logprobs.dtype == torch.float32
    assert 0 < float(gap.square().mean().sqrt()) < 0.1
    torch.testing.assert_close(samples.values, own.values, rtol=0, atol=0.1)


def test_without_a_critic_there_are_no_values() -> None:
    assert sampler_of(tiny_policy()).sample(items((3, 4)), SamplingConfig(max_new_tokens=3), KEY).values is None


def test_a_slot_that_was_filled_to_its_end_may_stand_empty() -> None:
    """Rows are rounded up, so an empty slot goes through the model beside those that draw."""
    sampler, prompts = sampler_of(tiny_policy(), range(40)), items([5] * 15)
    sampling = SamplingConfig(max_new_tokens=8)
    alone = sampler.sample(prompts, sampling.model_copy(update={"batch": 1}), KEY)
    lengths = alone.sequences.response_lengths.tolist()
    assert lengths.count(8) >= 2
    assert len(set(lengths)) >= 3
    for batch in range(2, 8):
        found = sampler.sample(prompts, sampling.model_copy(update={"batch": batch}), KEY)
        assert responses(found) == responses(alone)
