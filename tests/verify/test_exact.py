from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from keel.verify import exact
from keel.verify.exact_checks import climb
from keel.verify.worlds import World, bandit, list_responses, response_logprobs, sequences


@pytest.fixture
def two_responses() -> World:
    """math.md §8: pi_ref 1/2, 1/2 and rewards 1, 3, for every prompt."""
    return replace(
        bandit(),
        tree=list_responses(2, longest=1, eos=None),
        ref_logits=torch.zeros((8, 1, 2), dtype=torch.float64),
        rewards=torch.tensor([[1.0, 3.0]] * 8, dtype=torch.float64),
    )


def test_the_two_responses_by_hand(two_responses: World) -> None:
    best = exact.optimal_logprobs(two_responses, 0.5).exp()
    assert best[0].tolist() == pytest.approx([0.0179862, 0.9820138], abs=5e-8)
    assert exact.optimal_logprobs(two_responses, 10.0).exp()[0].tolist() == pytest.approx(
        [0.450166, 0.549834], abs=5e-7
    )
    assert float(exact.optimal_value(two_responses, 0.5)[0]) == pytest.approx(2.662501, abs=5e-7)
    assert float(exact.optimal_value(two_responses, 10.0)[0]) == pytest.approx(2.049917, abs=5e-7)
    logits = exact.optimal_logits(two_responses, 0.5)
    assert float(exact.kl_to_reference(two_responses, logits)[0]) == pytest.approx(0.603052, abs=5e-7)
    assert float(exact.objective(two_responses, logits, 0.5)[0]) == pytest.approx(2.662501, abs=5e-7)
    # the reference itself: J = 2, so 0.662501 is missing
    assert float(exact.gap(two_responses, two_responses.ref_logits, 0.5)[0]) == pytest.approx(0.662501, abs=5e-7)


def naive_value(world: World, prompt: int, state: int, beta: float) -> float:
    """W by recursion over the tree, one response at a time."""
    total = 0.0
    probs = world.ref_logits[prompt, state].softmax(dim=-1).tolist()
    for action, prob in enumerate(probs):
        response = int(world.tree.response[state, action])
        if response >= 0:
            value = float(world.rewards[prompt, response])
        else:
            value = naive_value(world, prompt, int(world.tree.next_state[state, action]), beta)
        total += prob * math.exp(value / beta)
    return beta * math.log(total)


@pytest.mark.parametrize("state", [0, 2, 9, 60])
def test_soft_values_against_a_recursion(state: int) -> None:
    world = sequences("independent")
    values = exact.soft_values(world, 0.5)[0]
    for prompt in (0, 5):
        assert float(values[prompt, state]) == pytest.approx(naive_value(world, prompt, state, 0.5), rel=1e-12)


def test_the_value_of_the_empty_response_is_that_of_the_optimum() -> None:
    world = sequences("structured")
    torch.testing.assert_close(exact.soft_values(world, 0.3)[0][:, 0], exact.optimal_value(world, 0.3))


def test_the_gradient_against_finite_differences() -> None:
    world, beta, step = sequences("structured"), 0.5, 1e-6
    logits = world.ref_logits + 0.3 * torch.sin(torch.arange(world.ref_logits.numel())).view_as(world.ref_logits)
    slope = exact.gradient(world, logits, beta)
    for place in ((0, 0, 0), (2, 3, 4), (7, 80, 1)):
        up, down = logits.clone(), logits.clone()
        up[place] += step
        down[place] -= step
        rise = exact.objective(world, up, beta).sum() - exact.objective(world, down, beta).sum()
        assert float(slope[place]) == pytest.approx(float(rise) / (2 * step), rel=1e-4, abs=1e-9)


def test_visits_against_the_product_along_the_way() -> None:
    world = sequences("structured")
    probs: Tensor = world.ref_logits.softmax(dim=-1)
    met = exact.visits(world, world.ref_logits)
    first = int(world.tree.next_state[0, 3])
    second = int(world.tree.next_state[first, 2])
    assert met[:, 0].tolist() == pytest.approx([1.0] * 8)
    assert float(met[4, second]) == pytest.approx(float(probs[4, 0, 3] * probs[4, first, 2]), rel=1e-12)


def test_climbing_with_another_beta_ends_elsewhere() -> None:
    world = sequences("structured")
    assert float(exact.gap(world, climb(world, 0.5), 0.5).max()) < 1e-12
    assert float(exact.gap(world, climb(world, 0.4), 0.5).max()) > 1e-3


def test_the_gap_is_what_the_objective_lacks() -> None:
    world = sequences("independent")
    log_ref = response_logprobs(world.tree, world.ref_logits)
    best = (log_ref.exp() * (world.rewards / 0.5).exp()).sum(dim=1).log() * 0.5  # beta log Z, written out
    lacking = best - exact.objective(world, world.ref_logits, 0.5)
    torch.testing.assert_close(exact.gap(world, world.ref_logits, 0.5), lacking)
