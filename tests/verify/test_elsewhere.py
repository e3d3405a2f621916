from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from keel.functional.kl import token_k3_term
from keel.verify import elsewhere_direct as direct
from keel.verify import elsewhere_points as points
from keel.verify import exact
from keel.verify.elsewhere import CHECKS, Case, arrives
from keel.verify.elsewhere_training import WeightedPolicy, every_group, every_response
from keel.verify.registry import CHECKS as ALL_CHECKS
from keel.verify.result import Finding
from keel.verify.worlds import World, bandit, response_logprobs, sequences

DOUBLE = torch.float64


def two_responses() -> World:
    """One prompt, pi_ref one half each, rewards 1 and 3."""
    world = bandit(num_actions=2)
    return replace(
        world,
        prompts=world.prompts[:1],
        ref_logits=torch.zeros(1, 1, 2, dtype=DOUBLE),
        rewards=torch.tensor([[1.0, 3.0]], dtype=DOUBLE),
    )


def stop_or_go() -> World:
    """One prompt; end at once (reward 0), or go on and end in one of two ways (rewards 1, 3); pi_ref even."""
    world = sequences("structured")
    tree = world.tree
    tree = replace(
        tree,
        tokens=torch.tensor([[0, 0], [1, 0], [1, 1]]),
        mask=torch.tensor([[True, False], [True, True], [True, True]]),
        states=torch.tensor([[0, 0], [0, 1], [0, 1]]),
        ended=torch.tensor([True, True, False]),
        next_state=torch.tensor([[-1, 1], [-1, -1]]),
        response=torch.tensor([[0, -1], [1, 2]]),
    )
    rewards = torch.tensor([[0.0, 1.0, 3.0]], dtype=DOUBLE)
    return replace(
        world, tree=tree, prompts=torch.tensor([[1, 1]]), ref_logits=torch.zeros(1, 2, 2, dtype=DOUBLE), rewards=rewards
    )


def probs(logprobs: Tensor) -> list[float]:
    return logprobs[0].exp().tolist()


def test_k3_of_two_responses_solves_its_quadratic() -> None:
    """beta (1/2) / (l - 1) + beta (1/2) / (l - 3) = 1 at beta 1/2: l^2 - 4.5 l + 4 = 0."""
    lam = (4.5 + math.sqrt(4.5**2 - 16)) / 2
    assert probs(points.token_k3(two_responses(), 0.5)) == pytest.approx(
        [0.25 / (lam - 1), 0.25 / (lam - 3)], abs=1e-12
    )


def test_at_the_k3_point_its_loss_has_no_slope() -> None:
    """The exact sum over both responses, by autograd through the function that users run."""
    world, beta = two_responses(), 0.5
    logits = points.token_k3(world, beta).requires_grad_()
    pi = logits.log_softmax(dim=1).T  # [B, T] = one token a row
    mask = torch.ones(2, 1, dtype=torch.bool)
    term = token_k3_term(pi, torch.full_like(pi, math.log(0.5)), torch.ones_like(pi), mask)
    weights = pi.detach().exp()
    (weights * (beta * term - world.rewards.T * pi)).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.zeros_like(logits), atol=1e-12)


def test_token_k2_goes_on_by_the_mean_reward_alone() -> None:
    """At beta 1 the last state is softmax(1, 3); going on is worth its mean reward, not its soft value."""
    last = math.exp(2) / (1 + math.exp(2))
    go = 1 / (1 + math.exp(-(1 + 2 * last)))
    expected = [1 - go, go * (1 - last), go * last]
    assert probs(points.token_k2(stop_or_go(), 1.0)) == pytest.approx(expected, abs=1e-12)


def test_a_discount_takes_a_share_of_what_is_later() -> None:
    later = math.log((math.e + math.exp(3)) / 2)
    go = 1 / (1 + math.exp(-0.5 * later))
    assert probs(points.discounted(stop_or_go(), 1.0, 0.5))[0] == pytest.approx(1 - go, abs=1e-12)


def test_an_entropy_bonus_does_not_see_the_entropy_that_follows() -> None:
    """beta 1, bonus 1: the last state is softmax(1/2, 3/2), and is worth r - KL there, without its entropy."""
    last = math.e / (1 + math.e)
    kl = math.log(2) + last * math.log(last) + (1 - last) * math.log(1 - last)
    go = 1 / (1 + math.exp(-(1 + 2 * last - kl) / 2))
    assert probs(points.entropy_bonus(stop_or_go(), 1.0, 1.0))[0] == pytest.approx(1 - go, abs=1e-12)


def test_sequence_mean_taxes_length_by_a_constant() -> None:
    """(r - beta log pi / pi_ref) / T is the same number for every response."""
    world, beta = stop_or_go(), 0.7
    log_ratio = points.sequence_mean(world, beta) - response_logprobs(world.tree, world.ref_logits)
    credit = (world.rewards - beta * log_ratio) / torch.tensor([1, 2, 2])
    assert torch.allclose(credit, credit[:, :1], atol=1e-12)
    assert torch.allclose(log_ratio.exp() @ torch.tensor([0.5, 0.25, 0.25], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE))


def test_whitened_scores_of_two_responses_cost_beta_sd() -> None:
    """sd = 2 sqrt(p (1 - p)), and the log odds are 2 / (beta sd)."""
    low, high = probs(points.whitened_score(two_responses(), 1.6))
    assert math.log(high / low) == pytest.approx(2 / (1.6 * 2 * math.sqrt(high * low)), abs=1e-9)


def test_groups_of_two_give_a_sign() -> None:
    """(r - mean) / sd is +1 or -1 where the two differ: E[A | a] is the chance of the other, of either sign."""
    beta = 0.8
    low, high = probs(points.grpo_groups(two_responses(), beta, 2, eps=0.0 + 1e-12))
    assert math.log(high / low) == pytest.approx((low + high) / beta, abs=1e-9)


def test_large_groups_hold_a_cheap_reward_and_collapse_on_a_dear_one() -> None:
    """Two responses: u sd = 2 u sqrt(p (1 - p)) is at most .663 (x = u with x tanh x = 1), so held above beta 1.51."""
    world = two_responses()
    held = points.grpo_large_groups(world, 1.6)
    low, high = probs(held)
    assert 2 * math.sqrt(low * high) * math.log(high / low) / 2 == pytest.approx(1 / 1.6, abs=0.01)
    assert probs(points.grpo_large_groups(world, 1.4)) == [0.0, 1.0]


def test_simpo_without_a_margin_has_a_closed_form() -> None:
    """The length-mean log-probabilities differ by the rewards' differences over beta, whatever the lengths."""
    world, beta = sequences("structured"), 0.5
    small = replace(world, rewards=world.rewards[:1], ref_logits=world.ref_logits[:1], prompts=world.prompts[:1])
    mean = direct.simpo_point(small, beta=beta, gamma=0.0) / small.tree.mask.sum(dim=1)
    assert torch.allclose(mean - mean[:, :1], (small.rewards - small.rewards[:, :1]) / beta, atol=1e-8)


def test_orpo_of_two_responses_by_a_grid() -> None:
    p = torch.linspace(1e-4, 1 - 1e-4, 100_001, dtype=DOUBLE)  # of the second, which wins at odds e^2
    odds, win = 2 * torch.log(p / (1 - p)), 1 / (1 + math.exp(-2))
    loss = win * (-p.log() + torch.log1p(torch.exp(-odds))) + (1 - win) * (
        -torch.log1p(-p) + torch.log1p(torch.exp(odds))
    )
    assert probs(direct.orpo_point(two_responses(), lam=1.0))[1] == pytest.approx(float(p[loss.argmin()]), abs=2e-5)


def test_every_group_is_as_likely_as_its_draws() -> None:
    """Against all ordered draws of three: the chance that a row holds an action is three times its mean share."""
    world = bandit(num_actions=3)
    logprobs = response_logprobs(world.tree, world.ref_logits)
    enumeration = every_group(world, 3)
    weights = enumeration.weights(logprobs)
    groups: dict[tuple[int, ...], float] = {}
    p = logprobs[0].exp().tolist()
    for draw in product(range(3), repeat=3):
        key = tuple(sorted(draw))
        groups[key] = groups.get(key, 0.0) + math.prod(p[a] for a in draw) / 3
    tokens = enumeration.samples.sequences.response_tokens()[:30, 0].view(10, 3).tolist()
    assert weights[:30:3].tolist() == pytest.approx([groups[tuple(row)] for row in tokens], abs=1e-14)


def test_a_weighted_row_counts_its_weight_and_keeps_its_value() -> None:
    world = bandit()
    policy, enumeration = WeightedPolicy(world), every_response(world)
    logprobs = response_logprobs(world.tree, world.ref_logits)
    policy.row_weights = enumeration.weights(logprobs)
    outputs = policy(enumeration.samples.sequences)
    assert isinstance(outputs.logprobs, Tensor)
    assert torch.allclose(outputs.logprobs[:, 0], logprobs.flatten())
    gradient = torch.autograd.grad((world.rewards.flatten() * outputs.logprobs[:, 0]).sum(), policy.logits)[0]
    assert torch.allclose(gradient, exact.gradient(world, world.ref_logits, beta=0.0), atol=1e-12)


def _finding(landed: Tensor, own: Tensor) -> Finding:
    return arrives(Case(bandit, lambda world: own, lambda world: landed))


def test_a_method_that_lands_on_the_optimum_fails_its_check() -> None:
    world = bandit()
    own, optimum = points.token_k3(world, 0.5), exact.optimal_logits(world, 0.5)
    assert all(bound.holds for bound in _finding(own[:, None], own).bounds)
    assert not any(bound.holds for bound in _finding(optimum, own).bounds)


def test_a_point_that_is_the_optimum_is_not_elsewhere() -> None:
    """Were a fixed point mistaken for pi*, training that goes elsewhere would miss it."""
    world = bandit()
    own, optimum = points.token_k3(world, 0.5), exact.optimal_logprobs(world, 0.5)
    assert not _finding(own[:, None], optimum).bounds[0].holds


@pytest.mark.parametrize("name", ["token-k3-bandit", "orpo"])
def test_a_check_of_the_laboratory_passes(name: str) -> None:
    check = next(check for check in CHECKS if check.name == f"elsewhere-{name}")
    assert all(bound.holds for bound in check.measure().bounds)
    assert check in ALL_CHECKS
