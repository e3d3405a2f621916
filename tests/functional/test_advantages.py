from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.config.estimators import ESTIMATORS
from keel.functional import advantages as advantages_module
from keel.functional.advantages import (
    best_of_n,
    dr_grpo,
    gae,
    grpo,
    leave_one_out_mean,
    monte_carlo,
    n_step,
    reinforce,
    reinforce_pp,
    reward_to_go,
    rloo,
    sequence,
    td,
)
from keel.functional.rewards import shape_rewards

LENGTHS = [5, 1, 3]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def batch() -> tuple[Tensor, Tensor]:
    rewards, values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return rewards.masked_fill(~MASK, math.nan), values.masked_fill(~MASK, math.nan)


def naive(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_l (gamma lam)^l d_{t+l}, every term written out."""
    result = torch.zeros(3, 5, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            for k in range(t, length):
                result[row, t] += (gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k])
    return result


def test_gae_numbers_of_the_definition() -> None:
    rewards = torch.tensor([[-0.1, 0.2, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.3]], dtype=torch.float64)
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.52675, 0.765, 0.7])
    assert (advantages + values)[0].tolist() == pytest.approx([1.02675, 1.165, 1.0])


def test_advantage_of_a_single_terminal_reward() -> None:
    advantages = gae(torch.tensor([[5.0]]), torch.tensor([[1.5]]), torch.tensor([[True]]), gamma=0.9)
    assert advantages.item() == 3.5


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (1.0, 0.0)])
def test_mistake_4_gae_against_the_written_out_sum(gamma: float, lam: float) -> None:
    rewards, values = batch()
    assert_close(gae(rewards, values, MASK, gamma=gamma, lam=lam), naive(rewards, values, gamma, lam))


def test_gae_with_lam_0_is_the_one_step_advantage() -> None:
    rewards, values = batch()
    advantages = gae(rewards, values, MASK, gamma=0.9, lam=0.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            next_value = values[row, t + 1].item() if t + 1 < length else 0.0
            expected = rewards[row, t].item() + 0.9 * next_value - values[row, t].item()
            assert advantages[row, t].item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_gae_with_lam_1_is_monte_carlo(gamma: float) -> None:
    rewards, values = batch()
    assert_close(gae(rewards, values, MASK, gamma=gamma, lam=1.0), monte_carlo(rewards, values, MASK, gamma=gamma))


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_monte_carlo_against_the_written_out_sum(gamma: float) -> None:
    rewards, values = batch()
    advantages = monte_carlo(rewards, values, MASK, gamma=gamma)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            to_go = sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(to_go - values[row, t].item())
    assert torch.equal(advantages == 0, ~MASK)


def test_gae_is_the_weighted_mean_of_the_n_step_advantages() -> None:
    rewards, values = batch()
    advantages = gae(rewards, values, MASK, gamma=0.9, lam=0.6)
    r, v = rewards[0].tolist(), [*values[0].tolist(), 0.0]
    for t in range(5):
        longest = 5 - t
        steps = [sum(0.9**k * r[t + k] for k in range(n)) + 0.9**n * v[t + n] - v[t] for n in range(1, longest + 1)]
        weights = [0.4 * 0.6 ** (n - 1) for n in range(1, longest)] + [0.6 ** (longest - 1)]
        expected = sum(w * s for w, s in zip(weights, steps, strict=True))
        assert advantages[0, t].item() == pytest.approx(expected)


def test_mistake_5_no_whitening_hides_in_the_estimators() -> None:
    rewards, values = batch()
    assert_close(gae(3 * rewards, 3 * values, MASK), 3 * gae(rewards, values, MASK))
    assert_close(monte_carlo(3 * rewards, 3 * values, MASK), 3 * monte_carlo(rewards, values, MASK))


def test_erratum_05_a_critic_of_the_shaped_return_leaves_no_advantage() -> None:
    gaps = torch.tensor([[0.4, -0.1, 0.2]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards = shape_rewards(torch.tensor([2.0]), gaps, mask, torch.tensor([True]), kl_coef=0.5)
    shaped = torch.tensor([[2 - 0.25, 2 - 0.05, 2 - 0.1]], dtype=torch.float64)  # what is left of 2 - .5 k1 at each t
    score_only = torch.full((1, 3), 2.0, dtype=torch.float64)
    for lam in (0.0, 0.95, 1.0):
        assert_close(gae(rewards, shaped, mask, lam=lam), torch.zeros(1, 3, dtype=torch.float64))
    assert monte_carlo(rewards, score_only, mask)[0].tolist() == pytest.approx([-0.25, -0.05, -0.1])


def test_advantages_carry_no_gradient_and_empty_rows_are_zero() -> None:
    rewards, values = torch.ones(2, 3), torch.ones(2, 3).requires_grad_()
    mask = torch.tensor([[True, True, True], [False, False, False]])
    for advantages in (gae(rewards, values, mask), monte_carlo(rewards, values, mask)):
        assert not advantages.requires_grad
        assert advantages[1].tolist() == [0.0, 0.0, 0.0]


def test_gamma_lam_and_masks_out_of_range_are_refused() -> None:
    rewards, values = batch()
    with pytest.raises(ValueError, match="lam must be"):
        gae(rewards, values, MASK, lam=1.5)
    for estimate in (gae, monte_carlo):
        with pytest.raises(ValueError, match="gamma must be"):
            estimate(rewards, values, MASK, gamma=-0.1)
        with pytest.raises(ValueError, match="row 1 "):
            estimate(rewards, values, ~MASK, gamma=1.0)


# --- the rest of the ladder

GROUP = torch.tensor([7, 2, 7, 2, 2])  # in no order, of unlike sizes
TOTALS = [3.0, -1.0, 5.0, 2.0, 0.5]


def grouped() -> tuple[Tensor, Tensor]:
    """Rewards whose sums are TOTALS, in responses of unlike length; NaN where there is no token."""
    mask = torch.arange(4) < torch.tensor([1, 4, 2, 3, 1])[:, None]
    rewards = torch.full((5, 4), math.nan, dtype=torch.float64)
    for row, total in enumerate(TOTALS):
        length = int(mask[row].sum())
        rewards[row, :length] = torch.linspace(-1, 1, length, dtype=torch.float64)
        rewards[row, length - 1] += total - float(rewards[row, :length].sum())
    return rewards, mask


def test_reinforce_gives_every_token_the_whole_reward() -> None:
    rewards, mask = grouped()
    expected = torch.where(mask, torch.tensor(TOTALS, dtype=torch.float64)[:, None], 0.0)
    assert_close(reinforce(rewards, mask), expected)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_reward_to_go_is_what_is_still_to_come(gamma: float) -> None:
    rewards, _ = batch()
    to_go = reward_to_go(rewards, MASK, gamma=gamma)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected = sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, length))
            assert to_go[row, t].item() == pytest.approx(expected)
    assert torch.equal(reinforce_pp(rewards, MASK, gamma=gamma), to_go)


def test_sequence_takes_the_critics_opinion_of_the_prompt_off_every_token() -> None:
    rewards, values = batch()
    advantages = sequence(rewards, values, MASK)
    for row, length in enumerate(LENGTHS):
        expected = rewards[row, :length].sum().item() - values[row, 0].item()
        assert advantages[row, :length].tolist() == pytest.approx([expected] * length)
    assert torch.equal(advantages == 0, ~MASK)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_n_step_is_n_rewards_and_then_the_critic(n: int, gamma: float) -> None:
    rewards, values = batch()
    advantages = n_step(rewards, values, MASK, n=n, gamma=gamma)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            end = min(t + n, length)
            expected = sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, end))
            expected += gamma**n * values[row, end].item() if end < length else 0.0
            assert advantages[row, t].item() == pytest.approx(expected - values[row, t].item())
    assert torch.equal(advantages == 0, ~MASK)


def test_the_ends_of_the_ladder_meet() -> None:
    rewards, values = batch()
    one_step = td(rewards, values, MASK, gamma=0.9)
    assert_close(one_step, naive(rewards, values, 0.9, 0.0))
    assert_close(n_step(rewards, values, MASK, n=1, gamma=0.9), one_step)
    assert_close(n_step(rewards, values, MASK, n=5, gamma=0.9), monte_carlo(rewards, values, MASK, gamma=0.9))


def test_rloo_compares_with_the_other_responses_of_the_prompt() -> None:
    rewards, mask = grouped()
    expected = [3.0 - 5.0, -1.0 - 1.25, 5.0 - 3.0, 2.0 + 0.25, 0.5 - 0.5]  # prompt 2's others: (2+.5)/2, (-1+.5)/2, .5
    assert_close(rloo(rewards, mask, group=GROUP), torch.tensor(expected).double()[:, None] * mask)
    assert_close(leave_one_out_mean(torch.tensor(TOTALS), GROUP), torch.tensor([5.0, 1.25, 3.0, -0.25, 0.5]))


def test_grpo_divides_by_the_population_spread_of_the_group() -> None:
    rewards, mask = grouped()
    spread = math.sqrt(((-1.5) ** 2 + 1.5**2 + 0.0) / 3)  # of -1, 2, .5 about .5
    expected = [-1 / (1 + 1e-4), -1.5 / (spread + 1e-4), 1 / (1 + 1e-4), 1.5 / (spread + 1e-4), 0.0]
    assert_close(grpo(rewards, mask, group=GROUP), torch.tensor(expected).double()[:, None] * mask, atol=1e-6, rtol=0)
    alike = torch.full((4, 2), 0.1)  # sums that rounding may part
    everywhere = torch.ones(4, 2, dtype=torch.bool)
    assert float(grpo(alike, everywhere, group=torch.zeros(4)).abs().max()) < 1e-2


def test_dr_grpo_is_a_scaled_rloo() -> None:
    rewards, mask = grouped()
    share = torch.tensor([1 / 2, 2 / 3, 1 / 2, 2 / 3, 2 / 3], dtype=torch.float64)[:, None]  # 1 - 1/n
    assert_close(dr_grpo(rewards, mask, group=GROUP), share * rloo(rewards, mask, group=GROUP))


def test_best_of_n_names_the_best_of_each_group() -> None:
    rewards, mask = grouped()
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)[:, None] * mask
    assert_close(best_of_n(rewards, mask, group=GROUP), expected)
    everywhere = torch.ones(4, 1, dtype=torch.bool)
    tied = best_of_n(torch.tensor([[2.0], [1.0], [2.0], [0.0]]), everywhere, group=torch.tensor([5, 5, 5, 9]))
    assert tied[:, 0].tolist() == [0.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("estimate", [rloo, grpo, dr_grpo])
def test_a_group_of_one_is_refused(estimate: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="draw two or more a prompt"):
        estimate(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), group=torch.tensor([0, 0, 1]))


def test_n_below_one_is_refused() -> None:
    rewards, values = batch()
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        n_step(rewards, values, MASK, n=0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_table_says_what_each_estimator_reads(name: str) -> None:
    parameters = set(inspect.signature(getattr(advantages_module, name)).parameters)
    assert parameters - {"rewards", "response_mask", "eps"} == set(ESTIMATORS[name].reads)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_table_says_which_estimators_give_one_number_a_response(name: str) -> None:
    rewards, mask = grouped()
    values = torch.linspace(-1, 2, 20, dtype=torch.float64).reshape(5, 4)
    given = {"values": values, "group": GROUP, "gamma": 1.0, "lam": 0.9, "n": 2}
    estimate = getattr(advantages_module, name)
    result = estimate(rewards=rewards, response_mask=mask, **{key: given[key] for key in ESTIMATORS[name].reads})
    one_number = all(len(set(row[kept].tolist())) == 1 for row, kept in zip(result, mask, strict=True))
    assert one_number == ESTIMATORS[name].per_sequence
