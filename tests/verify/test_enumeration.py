"""What `enumeration` computes in closed form, against loops over responses with autograd, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from keel.functional import advantages as estimate
from keel.verify import exact
from keel.verify.biases import token_mean
from keel.verify.enumeration import Enumeration, all_groups
from keel.verify.worlds import sequences
from tests.verify.small import seven_responses, two_responses


def small() -> Enumeration:
    world = seven_responses()
    shift = torch.tensor([[[0.5, 0.1, -0.3], [0.2, -0.6, 0.0], [0.4, 0.0, 0.9]]]).double()
    return Enumeration(world, world.ref_logits + shift, 0.5)


def response_gradients(space: Enumeration) -> list[Tensor]:
    """grad log pi(y) of each response by autograd, with no mask and no scatter."""
    gradients = []
    for tokens, mask in zip(space.world.tree.tokens.tolist(), space.mask.tolist(), strict=True):
        table = space.logits.clone().requires_grad_()
        state, total = 0, torch.zeros(())
        for token in tokens[: sum(mask)]:
            total = total + table[0, state].log_softmax(dim=0)[token]
            state = int(space.world.tree.next_state[state, token])
        gradients.append(torch.autograd.grad(total, table)[0])
    return gradients


def moments(probs: Sequence[float], gradients: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Mean, and trace of the covariance."""
    mean = sum((p * g for p, g in zip(probs, gradients, strict=True)), torch.zeros(()))
    return mean, sum(p * float((g - mean).square().sum()) for p, g in zip(probs, gradients, strict=True))


def test_reinforce_on_two_responses_by_hand() -> None:
    """At p = (1/4, 3/4) and beta 1/2: R = r - beta log(p / (1/2)), and e_y - p is +-(3/4, -3/4) or (-1/4, 1/4)."""
    space = Enumeration(two_responses(), torch.tensor([[[0.25, 0.75]]]).double().log(), 0.5)
    low, high = 1 - 0.5 * math.log(0.5), 3 - 0.5 * math.log(1.5)
    assert space.rewards.flatten().tolist() == pytest.approx([low, high])
    slope = 0.25 * 0.75 * (high - low)  # p q (R_2 - R_1) on the second logit
    advantages = space.advantages(estimate.reinforce)
    assert space.mean(advantages).flatten().tolist() == pytest.approx([-slope, slope])
    second = 0.25 * low**2 * 2 * 0.75**2 + 0.75 * high**2 * 2 * 0.25**2
    assert space.variance(advantages) == pytest.approx(second - 2 * slope**2)


def test_the_value_of_a_state_at_the_optimum_is_its_soft_value() -> None:
    world = sequences("structured")
    space = Enumeration(world, exact.optimal_logits(world, 0.5), 0.5)
    torch.testing.assert_close(space.state_values, exact.soft_values(world, 0.5)[0])


def test_mean_and_variance_against_a_loop_over_responses() -> None:
    space = small()
    rewards = space.rewards.sum(dim=1).tolist()
    mean, variance = moments(
        space.probs.tolist(), [r * g for r, g in zip(rewards, response_gradients(space), strict=True)]
    )
    advantages = space.advantages(estimate.reinforce)
    torch.testing.assert_close(space.mean(advantages), mean)
    assert space.variance(advantages) == pytest.approx(variance)


def in_pairs(space: Enumeration, gradient: Callable[[int, int], Tensor]) -> tuple[Tensor, float]:
    """Moments over all ordered pairs of responses."""
    probs = space.probs.tolist()
    draws = list(product(range(len(probs)), repeat=2))
    return moments([probs[i] * probs[j] for i, j in draws], [gradient(i, j) for i, j in draws])


def test_rloo_of_two_against_a_loop_over_pairs() -> None:
    space = small()
    rewards, scores = space.rewards.sum(dim=1).tolist(), response_gradients(space)
    mean, variance = in_pairs(space, lambda i, j: (rewards[i] - rewards[j]) * (scores[i] - scores[j]) / 2)
    groups = all_groups(space, 2)
    advantages = groups.advantages(estimate.rloo)
    torch.testing.assert_close(groups.mean(advantages), mean)
    assert groups.variance(advantages) == pytest.approx(2 * variance)


def test_token_mean_of_two_against_a_loop_over_pairs() -> None:
    space = small()
    rewards, scores = space.rewards.sum(dim=1).tolist(), response_gradients(space)
    lengths = space.lengths.flatten().tolist()
    mean, _ = in_pairs(
        space, lambda i, j: (rewards[i] * scores[i] + rewards[j] * scores[j]) / (lengths[i] + lengths[j])
    )
    mean_length = float(space.probs @ space.lengths)
    found = token_mean(space, space.advantages(estimate.reinforce), 2)
    torch.testing.assert_close(found, mean_length * mean)
