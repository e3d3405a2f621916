"""Training without sampling: every response goes through the functions that users run, counted by its probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import torch
from torch import Tensor

from keel.config.ppo import PPOConfig
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.models.policy import TokenOutputs
from keel.pipeline.credit import estimate_advantages, leash_in_loss, shape
from keel.records import PolicyBatch, Rollout, Samples, Targets
from keel.verify.tabular import RewardTable, TableScorer, TabularPolicy, all_sequences, prompt_items, world_sequences
from keel.verify.worlds import World, response_logprobs


class WeightedPolicy(TabularPolicy):
    """A table whose gradient from each row of a batch counts `row_weights` [B] times; its values are as they are.

    A loss that is a sum over rows then has the gradient of the weighted sum, whatever the loss.
    """

    row_weights: Tensor

    def forward(self, sequences: Targets, **asked: Any) -> TokenOutputs:
        outputs = super().forward(sequences, **asked)
        return TokenOutputs(*(self._weighted(part) for part in (outputs.logprobs, outputs.entropy, outputs.values)))

    def _weighted(self, part: Any) -> Any:
        return part if part is None else part.detach() + self.row_weights[:, None] * (part - part.detach())


@dataclass(frozen=True)
class Enumeration:
    """Everything that a rollout could be: B responses, group by group, and how likely each group is."""

    samples: Samples
    group: Tensor  # int64 [B]
    weights: Callable[[Tensor], Tensor]  # log pi of all responses [P, N] -> the probability [B] of each one's group


def every_response(world: World) -> Enumeration:
    """For estimators that see one response at a time: each is a group, but for its number."""
    count = len(world.tree.tokens)
    sequences = all_sequences(world)
    items = [item for item in prompt_items(world) for _ in range(count)]
    ended = world.tree.ended.repeat(world.num_prompts)
    samples = Samples(sequences, None, ended, tuple(items), ("",) * len(items))
    return Enumeration(samples, torch.arange(len(items)), lambda logprobs: logprobs.exp().flatten())


def every_group(world: World, size: int) -> Enumeration:
    """For estimators that compare `size` responses to a prompt of a bandit: every multiset of its actions."""
    actions = range(len(world.tree.tokens))
    members = torch.tensor(list(combinations_with_replacement(actions, size)))
    ways = torch.tensor([factorial(size) / prod(factorial(row.count(a)) for a in actions) for row in members.tolist()])
    rows = members.flatten().repeat(world.num_prompts)
    prompts = world.prompts.repeat_interleave(members.numel(), dim=0)
    items = [item for item in prompt_items(world) for _ in range(members.numel())]
    samples = Samples(
        world_sequences(prompts, world.tree.tokens[rows], world.tree.mask[rows]),
        None,
        world.tree.ended[rows],
        tuple(items),
        ("",) * len(items),
    )

    def weights(logprobs: Tensor) -> Tensor:
        chances = ways.to(logprobs.dtype) * logprobs[:, members].sum(dim=-1).exp() / size
        return chances.flatten().repeat_interleave(size)

    return Enumeration(samples, torch.arange(len(rows)) // size, weights)


def train_expected(world: World, config: PPOConfig, enumeration: Enumeration) -> Tensor:
    """The table [P, S, V] after the iterations of `config`: shaped, credited and updated as the stage does it.

    Nothing here may be a statistic of the batch, which is no sample: no critic, no whitening.
    """
    assert config.critic == "none"
    assert not config.advantage.whitens
    assert not config.shaping.whiten
    assert config.update.minibatches == 1
    policy = WeightedPolicy(world)
    learner = GradientLearner[PolicyBatch](
        "ppo", policy, ppo_loss(config), config.update, total_steps=config.iterations * config.update.epochs
    )
    reference, scores = TableScorer(TabularPolicy(world)), RewardTable(world).score(enumeration.samples)
    sequences = enumeration.samples.sequences
    ref_logprobs = reference.logprobs(sequences)
    for iteration in range(config.iterations):
        policy.row_weights = enumeration.weights(response_logprobs(world.tree, policy.logits.detach()))
        rollout = Rollout(
            enumeration.samples,
            TableScorer(policy).logprobs(sequences),
            ref_logprobs,
            torch.zeros_like(ref_logprobs),
            scores,
            enumeration.group,
            iteration,
        )
        advantages = estimate_advantages(shape(rollout, config.kl.coef, 1.0, config), rollout, config.advantage)
        leash = leash_in_loss(rollout, config.kl.coef, config.kl)
        batch = PolicyBatch(sequences, rollout.logprobs, rollout.values, advantages, advantages, leash=leash)
        for _ in range(config.update.epochs):
            learner.step([batch])
    return policy.logits.detach().clone()
