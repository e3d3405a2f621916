"""The mean and the variance of a policy gradient over every response there is, instead of over samples (float64).

The estimators are the functions that training calls; what is enumerated is what they would be given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from keel.functional.kl import k1
from keel.functional.policy import policy_gradient_loss
from keel.functional.rewards import shape_rewards
from keel.verify.tabular import TableScorer, TabularPolicy, all_sequences
from keel.verify.worlds import World, response_logprobs


@dataclass(frozen=True)
class Enumeration:
    """A policy in a world, and all that a rollout of every response to every prompt would hold: B = P x N rows.

    Rows are prompt by prompt, in the tree's order. The price of the KL is in the reward.
    """

    world: World
    logits: Tensor  # [P, S, V]
    beta: float

    @cached_property
    def mask(self) -> Tensor:
        """bool [B, T]"""
        return all_sequences(self.world).response_mask

    @cached_property
    def probs(self) -> Tensor:
        """pi(y|x), [B]"""
        return response_logprobs(self.world.tree, self.logits).exp().flatten()

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each response as a float, [B, 1]."""
        return self.mask.sum(dim=1, keepdim=True).double()

    @cached_property
    def scores(self) -> Tensor:
        """[B]"""
        return self.world.rewards.flatten()

    @cached_property
    def logprobs(self) -> Tensor:
        """[B, T]"""
        return TableScorer(TabularPolicy(self.world, self.logits)).logprobs(all_sequences(self.world))

    @cached_property
    def ref_logprobs(self) -> Tensor:
        """[B, T]"""
        return TableScorer(TabularPolicy(self.world)).logprobs(all_sequences(self.world))

    @cached_property
    def rewards(self) -> Tensor:
        """[B, T], the score at the end and the price of k1 on the way."""
        return shape_rewards(
            self.scores,
            k1(self.logprobs, self.ref_logprobs),
            self.mask,
            torch.ones(len(self.mask), dtype=torch.bool),
            kl_coef=self.beta,
        )

    @cached_property
    def state_values(self) -> Tensor:
        """V(s) [P, S]: the mean under the policy of the reward from a state on."""
        tree, prompts = self.world.tree, self.world.num_prompts
        to_go = self.rewards.flip(1).cumsum(dim=1).flip(1).reshape(prompts, -1, tree.longest)
        passing = self.probs.reshape(prompts, -1, 1).expand_as(to_go)
        zeros = torch.zeros(prompts, tree.num_states, dtype=to_go.dtype)
        met = zeros.index_add(1, tree.states[tree.mask], passing[:, tree.mask])
        return zeros.index_add(1, tree.states[tree.mask], (passing * to_go)[:, tree.mask]) / met

    def values(self, states: Tensor) -> Tensor:
        """What a critic [P, S] says before each token, [B, T]."""
        tree = self.world.tree
        return states[:, tree.states].where(tree.mask, 0.0).flatten(0, 1)

    def advantages(self, estimator: Callable[..., Tensor], **settings: Tensor | float) -> Tensor:
        """What a function of `functional.advantages` makes of all responses, [B, T]."""
        return estimator(rewards=self.rewards, response_mask=self.mask, **settings)

    def gradient(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """-d loss / d logits, [P, S, V]; `loss` takes the policy's logprobs [B, T], which carry the gradient."""
        policy = TabularPolicy(self.world, self.logits)
        (slope,) = torch.autograd.grad(loss(policy(all_sequences(self.world)).logprobs), policy.logits)
        return -slope

    def mean(self, advantages: Tensor, *, weights: Tensor | float = 1.0) -> Tensor:
        """The expected policy gradient [P, S, V] of one response a prompt, summed over its tokens by `weights`."""
        shares = self.probs[:, None] * weights * torch.ones_like(advantages)
        return self.gradient(
            lambda logprobs: policy_gradient_loss(logprobs, advantages, self.mask, weights=shares, denominator=1.0)
        )

    def variance(self, advantages: Tensor) -> float:
        """The trace of the covariance of one response's gradient, a mean over prompts.

        The gradient of log pi(a|s) in the logits of s is e_a - pi(.|s), and a response meets a state but once.
        """
        tree, policy = self.world.tree, self.logits.softmax(dim=-1)
        said = policy[:, tree.states, tree.tokens]
        squares = 1 - 2 * said + policy.square().sum(dim=-1)[:, tree.states]
        squares = squares.where(tree.mask, 0.0).flatten(0, 1)
        second = (self.probs * (advantages.square() * squares).sum(dim=1)).sum()
        return float(second - self.mean(advantages).square().sum()) / self.world.num_prompts


@dataclass(frozen=True)
class Groups:
    """Every ordered way to draw n responses to one prompt: N^n groups a prompt, G in all, each of n rows of B."""

    space: Enumeration
    rows: Tensor  # int64 [G, n], into the rows of `space`

    @cached_property
    def probs(self) -> Tensor:
        """[G]"""
        return self.space.probs[self.rows].prod(dim=1)

    def advantages(self, estimator: Callable[..., Tensor]) -> Tensor:
        """What a function that reads `group` makes of all groups, [G x n, T]."""
        rows = self.rows.flatten()
        group = torch.arange(len(self.rows)).repeat_interleave(self.rows.shape[1])
        return estimator(self.space.rewards[rows], self.space.mask[rows], group=group)

    def mean(self, advantages: Tensor) -> Tensor:
        """The expected gradient [P, S, V] of a group, the mean over its responses."""
        rows, size = self.rows.flatten(), self.rows.shape[1]
        mask = self.space.mask[rows]
        shares = self.probs.repeat_interleave(size)[:, None].expand(mask.shape)
        return self.space.gradient(
            lambda logprobs: policy_gradient_loss(logprobs[rows], advantages, mask, weights=shares, denominator=size)
        )

    def variance(self, advantages: Tensor) -> float:
        """The trace of the covariance of a group's gradient times n, a mean over prompts: the price of one response.

        For advantages that are one number a response.
        """
        overlap, size = _score_products(self.space), self.rows.shape[1]
        prompt, response = self.rows // overlap.shape[1], self.rows % overlap.shape[1]
        per_response = advantages[:, 0].reshape(self.rows.shape)
        second = 0.0
        for i, j in product(range(size), repeat=2):
            products = overlap[prompt[:, i], response[:, i], response[:, j]] * per_response[:, i] * per_response[:, j]
            second += float(self.probs @ products) / size**2
        return size * (second - float(self.mean(advantages).square().sum())) / self.space.world.num_prompts


def all_groups(space: Enumeration, size: int) -> Groups:
    """Every group of `size` responses to each prompt."""
    count = len(space.world.tree.tokens)
    one_prompt = torch.cartesian_prod(*(torch.arange(count),) * size)
    starts = count * torch.arange(space.world.num_prompts)
    return Groups(space, (starts[:, None, None] + one_prompt).flatten(0, 1))


def _score_products(space: Enumeration) -> Tensor:
    """<grad log pi(y|x), grad log pi(y'|x)> of every two responses, [P, N, N]."""
    tree, policy = space.world.tree, space.logits.softmax(dim=-1)
    prompts, states, symbols = policy.shape
    scores = torch.zeros(prompts, len(tree.tokens), states, symbols, dtype=policy.dtype)
    response, position = tree.mask.nonzero(as_tuple=True)
    at, said = tree.states[response, position], tree.tokens[response, position]
    scores[:, response, at] = -policy[:, at]
    scores[:, response, at, said] += 1
    flat = scores.flatten(2)
    return flat @ flat.transpose(1, 2)
