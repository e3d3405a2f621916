from __future__ import annotations

import torch

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.records import Samples
from keel.seeds import Draws
from keel.verify.tabular import (
    RewardTable,
    TableSampler,
    TableScorer,
    TabularPolicy,
    all_sequences,
    prompt_items,
)
from keel.verify.worlds import EOS, World, bandit, response_logprobs, sequences

WORLD = sequences("structured")


def drawn(world: World, count: int, iteration: int = 0) -> Samples:
    config = SamplingConfig(max_new_tokens=world.tree.longest)
    key = DrawKey(Draws(0, "ppo"), "rollout", iteration)
    items = [item for item in prompt_items(world) for _ in range(count)]
    return TableSampler(TabularPolicy(world)).sample(items, config, key)


def test_the_forward_gives_every_response_its_probability() -> None:
    for world in (WORLD, bandit()):
        logprobs = TableScorer(TabularPolicy(world)).logprobs(all_sequences(world))
        expected = response_logprobs(world.tree, world.ref_logits)
        torch.testing.assert_close(logprobs.sum(dim=1).view_as(expected), expected, rtol=1e-12, atol=1e-12)


def test_a_temperature_divides_the_logits() -> None:
    logprobs = TableScorer(TabularPolicy(WORLD), temperature=2.0).logprobs(all_sequences(WORLD))
    expected = response_logprobs(WORLD.tree, WORLD.ref_logits / 2)
    torch.testing.assert_close(logprobs.sum(dim=1).view_as(expected), expected, rtol=1e-12, atol=1e-12)


def test_entropy_and_value_are_those_of_the_state() -> None:
    policy = TabularPolicy(WORLD, critic=True)
    assert policy.critic is not None
    with torch.no_grad():
        policy.critic.copy_(torch.arange(policy.critic.numel()).view_as(policy.critic))
    sequences_ = all_sequences(WORLD)
    output = policy(sequences_, entropy=True, values=True)
    prompt, response = 6, 250
    row = prompt * len(WORLD.tree.tokens) + response
    for t, state in enumerate(WORLD.tree.states[response].tolist()):
        probs = WORLD.ref_logits[prompt, state].softmax(dim=-1)
        assert output.values[row, t] == prompt * WORLD.tree.num_states + state
        torch.testing.assert_close(output.entropy[row, t], -(probs * probs.log()).sum())
    assert not output.values[~sequences_.response_mask].any()


def test_rewards_are_looked_up() -> None:
    everything = all_sequences(WORLD)
    count = len(everything)
    items = prompt_items(WORLD)
    samples = Samples(everything, None, torch.ones(count, dtype=torch.bool), (items[0],) * count, ("",) * count)
    torch.testing.assert_close(RewardTable(WORLD).score(samples).total.view_as(WORLD.rewards), WORLD.rewards)


def test_responses_are_drawn_as_often_as_they_are_likely() -> None:
    count = 20_000
    samples = drawn(WORLD, count)
    first = samples.sequences.response_tokens()[:, 0].view(8, count)
    for prompt in range(8):
        shares = first[prompt].bincount(minlength=5) / count
        expected = WORLD.ref_logits[prompt, 0].softmax(dim=-1)
        assert float((shares - expected).abs().max()) < 4 * 0.5 / count**0.5
    logprobs = samples.logprobs
    assert logprobs is not None
    torch.testing.assert_close(logprobs, TableScorer(TabularPolicy(WORLD)).logprobs(samples.sequences))


def test_a_response_ends_with_its_first_end_token_or_at_the_limit() -> None:
    samples = drawn(WORLD, 200)
    rows, lengths = samples.sequences.response_tokens().tolist(), samples.sequences.response_lengths.tolist()
    for row, length, ended in zip(rows, lengths, samples.ended.tolist(), strict=True):
        assert EOS not in row[: length - 1]
        assert ended == (row[length - 1] == EOS)
        assert ended or length == 4


def test_a_round_has_its_own_draws_and_the_same_again() -> None:
    one, again, other = drawn(WORLD, 50), drawn(WORLD, 50), drawn(WORLD, 50, iteration=1)
    assert one.sequences.tokens.equal(again.sequences.tokens)
    assert not one.sequences.tokens.equal(other.sequences.tokens)
