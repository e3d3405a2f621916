from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.kl import k3
from keel.functional.policy import (
    PolicyLoss,
    Ratio,
    Reduction,
    approx_kl_to_old,
    clipped_policy_loss,
    clipped_value_loss,
    importance_weights,
    loss_denominator,
    policy_gradient_loss,
    token_weights,
)

ONE = torch.tensor([[True]])


def one_token(new: float, old: float, advantage: float) -> tuple[PolicyLoss, float]:
    """Loss of one token with clip 0.2, and its gradient in log pi."""
    logprobs = torch.tensor([[new]], dtype=torch.float64).log().requires_grad_()
    old_logprobs = torch.tensor([[old]], dtype=torch.float64).log()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    result = clipped_policy_loss(logprobs, old_logprobs, advantages, ONE, clip_low=0.2, clip_high=0.2, denominator=1.0)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, gradient.item()


@pytest.mark.parametrize(
    ("new", "old", "advantage", "gain", "clipped"),
    [
        (0.06, 0.02, 4.0, 4.8, True),
        (0.13, 0.10, -3.0, -3.9, False),
        (0.75, 0.60, 3.5, 4.2, True),
        (0.05, 0.10, 1.0, 0.5, False),
        (0.05, 0.10, -1.0, -0.8, True),
        (0.30, 0.10, 1.0, 1.2, True),
        (0.30, 0.10, -1.0, -3.0, False),
        (0.10, 0.10, 2.0, 2.0, False),
    ],
)
def test_clipped_policy_loss_numbers(new: float, old: float, advantage: float, gain: float, clipped: bool) -> None:
    result, gradient = one_token(new, old, advantage)
    assert result.loss.item() == pytest.approx(-gain)
    assert result.ratio.item() == pytest.approx(new / old)
    assert result.clipped.item() is clipped
    assert gradient == pytest.approx(0.0 if clipped else -gain)  # d(r A) / d log pi = r A


def test_erratum_02_the_minimum_with_the_unclipped_term_and_a_minus_before_it() -> None:
    result, gradient = one_token(0.05, 0.10, 1.0)
    assert result.loss.item() == pytest.approx(-0.5)  # clip(c) A alone would be 0.8, without gradient and sign
    assert gradient < 0  # descending makes the good token likelier


def test_erratum_04_the_batch_is_weighed_against_the_policy_that_drew_it() -> None:
    new, old, reference = (
        torch.tensor([p], dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6])
    )
    advantages, mask = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)

    def expected_gain(drawn_from: Tensor) -> float:
        loss = clipped_policy_loss(
            new.log(), old.log(), drawn_from * advantages, mask, clip_low=1, clip_high=9, denominator=1
        ).loss
        return -loss.item()

    under_new = 0.5 * 1 - 0.3 * 2 + 0.2 * 3
    assert expected_gain(old) == pytest.approx(under_new)
    assert abs(expected_gain(reference) - under_new) > 0.5


def test_erratum_07_a_ratio_of_one_half_counts_by_the_sign_of_the_advantage() -> None:
    assert one_token(0.05, 0.10, 1.0)[0].loss.item() == pytest.approx(-0.5)
    assert one_token(0.05, 0.10, -1.0)[0].loss.item() == pytest.approx(0.8)


def test_erratum_09_the_minimum_holds_for_negative_advantages() -> None:
    result, gradient = one_token(0.13, 0.10, -3.0)
    assert result.loss.item() == pytest.approx(3.9)  # not 3.6
    assert gradient == pytest.approx(3.9)  # the full correction, where the maximum would leave 0


def test_erratum_10_the_clip_loss_falls_as_a_good_token_becomes_likelier() -> None:
    losses = [one_token(p, 0.10, 2.0)[0].loss.item() for p in (0.09, 0.10, 0.11)]
    assert losses == sorted(losses, reverse=True)


def random_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    old, noise, advantages = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 3])[:, None]
    return old + 0.3 * noise, old, advantages, mask


def naive_policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> float:
    total = 0.0
    for row, t in mask.nonzero().tolist():
        ratio = math.exp(logprobs[row, t].item() - old[row, t].item())
        advantage = advantages[row, t].item()
        total -= min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
    return total / 14


def test_mistake_2_policy_loss_against_a_loop_at_full_precision() -> None:
    logprobs, old, advantages, mask = random_batch()
    result = clipped_policy_loss(logprobs, old, advantages, mask, clip_low=0.1, clip_high=0.3, denominator=14)
    assert result.loss.item() == pytest.approx(naive_policy_loss(logprobs, old, advantages, mask), rel=1e-12)
    assert 0 < result.clipped.sum() < 14  # both kinds of token were there


def test_losses_of_microbatches_add_up_to_the_minibatch() -> None:
    logprobs, old, advantages, mask = random_batch()

    def loss(rows: slice) -> Tensor:
        policy = clipped_policy_loss(
            logprobs[rows], old[rows], advantages[rows], mask[rows], clip_low=0.2, clip_high=0.2, denominator=14
        )
        value = clipped_value_loss(
            logprobs[rows], old[rows], advantages[rows], mask[rows], clip_range=0.2, denominator=14
        )
        return torch.stack([policy.loss, value])

    assert_close(loss(slice(0, 1)) + loss(slice(1, 4)), loss(slice(0, 4)))
    assert loss(slice(0, 0)).tolist() == [0.0, 0.0]


def test_mistake_6_no_sentinel_of_the_padding_reaches_a_statistic() -> None:
    logprobs, old, advantages, mask = random_batch()
    old = old.masked_fill(~mask, 1.0)  # the sentinel of the lineage
    logprobs = logprobs.masked_fill(~mask, math.nan).requires_grad_()
    result = clipped_policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.2, denominator=14)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert torch.equal(result.ratio[~mask], torch.ones(10, dtype=torch.float64))
    assert not result.clipped[~mask].any()
    assert approx_kl_to_old(logprobs, old, mask)[~mask].tolist() == [0.0] * 10
    assert gradient.isfinite().all()
    assert torch.equal(gradient[~mask], torch.zeros(10, dtype=torch.float64))


def test_gradcheck_policy_loss() -> None:
    ratios = torch.tensor([[0.5, 0.95, 1.1, 2.0], [0.5, 0.95, 1.1, 2.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.5], [-0.7]], dtype=torch.float64).expand(2, 4)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])

    def loss(logprobs: Tensor) -> Tensor:
        return clipped_policy_loss(
            logprobs, torch.zeros_like(ratios), advantages, mask, clip_low=0.2, clip_high=0.3, denominator=7
        ).loss

    assert torch.autograd.gradcheck(loss, (ratios.log().requires_grad_(),))


def test_only_the_new_logprobs_get_a_gradient() -> None:
    logprobs, old, advantages, mask = random_batch()
    inputs = (logprobs.requires_grad_(), old.requires_grad_(), advantages.requires_grad_())
    result = clipped_policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.2, denominator=1)
    gradients = torch.autograd.grad(result.loss, inputs, allow_unused=True)
    assert [g is not None for g in gradients] == [True, False, False]
    assert not result.ratio.requires_grad
    assert not result.clipped.requires_grad


@pytest.mark.parametrize(
    ("value", "old", "target", "expected"),
    [
        (1.0, 0.0, 3.0, 0.5 * (0.2 - 3.0) ** 2),  # the clip holds back a value that ran ahead
        (1.0, 0.0, -1.0, 0.5 * 2.0**2),  # the worse of the two counts
        (0.1, 0.0, 3.0, 0.5 * 2.9**2),  # inside the range
    ],
)
def test_clipped_value_loss_numbers(value: float, old: float, target: float, expected: float) -> None:
    tensors = [torch.tensor([[x]], dtype=torch.float64) for x in (value, old, target)]
    loss = clipped_value_loss(tensors[0], tensors[1], tensors[2], ONE, clip_range=0.2, denominator=1)
    assert loss.item() == pytest.approx(expected)
    plain = clipped_value_loss(tensors[0], tensors[1], tensors[2], ONE, clip_range=None, denominator=2)
    assert plain.item() == pytest.approx(0.5 * (value - target) ** 2 / 2)


@pytest.mark.parametrize("clip_range", [None, 0.4])
def test_gradcheck_value_loss(clip_range: float | None) -> None:
    values = torch.tensor([[1.0, 0.1, -2.0], [0.3, 5.0, 0.0]], dtype=torch.float64)
    returns = torch.tensor([[3.0, 1.0, 1.0], [-2.0, 4.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    old = torch.zeros_like(values)

    def loss(x: Tensor) -> Tensor:
        return clipped_value_loss(x, old, returns, mask, clip_range=clip_range, denominator=5)

    assert torch.autograd.gradcheck(loss, (values.requires_grad_(),))


def test_value_loss_moves_only_the_new_values() -> None:
    values, old_values, returns = (torch.full((1, 1), float(x)).requires_grad_() for x in (1, 2, 3))
    loss = clipped_value_loss(values, old_values, returns, ONE, clip_range=5.0, denominator=1)
    gradients = torch.autograd.grad(loss, (values, old_values, returns), allow_unused=True)
    assert [None if g is None else g.item() for g in gradients] == [-2.0, None, None]


def test_approx_kl_to_old_by_hand() -> None:
    new, old = torch.tensor([[0.2, 0.5]], dtype=torch.float64), torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    estimate = approx_kl_to_old(new.log(), old.log(), mask)
    assert estimate[0].tolist() == pytest.approx([2 - 1 - math.log(2), 0.0], abs=1e-12)
    assert_close(estimate, k3(old.log(), new.log()))


@pytest.mark.parametrize("options", [{"clip_low": -0.1}, {"clip_low": 1.1}, {"clip_high": -0.1}, {"denominator": 0.0}])
def test_policy_loss_refuses_values_out_of_range(options: dict[str, float]) -> None:
    settings: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "denominator": 1.0} | options
    with pytest.raises(ValueError, match=next(iter(options))):
        clipped_policy_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), ONE, **settings)


@pytest.mark.parametrize("options", [{"clip_range": 0.0}, {"denominator": -1.0}])
def test_value_loss_refuses_values_out_of_range(options: dict[str, float]) -> None:
    settings = {"clip_range": 0.2, "denominator": 1.0} | options
    with pytest.raises(ValueError, match=next(iter(options))):
        clipped_value_loss(
            torch.zeros(1, 1),
            torch.zeros(1, 1),
            torch.zeros(1, 1),
            ONE,
            clip_range=settings["clip_range"],
            denominator=settings["denominator"],
        )


def test_importance_weights_numbers() -> None:
    old = torch.tensor([[0.6, 0.3, 0.5]]).log()
    sampled = torch.tensor([[0.2, 0.6, 0.5]]).log()
    mask = torch.tensor([[True, True, False]])
    weights = importance_weights(old, sampled + torch.tensor([[0.0, 0.0, 9.0]]), mask, cap=2.0)
    assert weights[0].tolist() == pytest.approx([2.0, 0.5, 1.0])  # 3 is capped; what does not count is 1
    with pytest.raises(ValueError, match=r"0\.5"):
        importance_weights(old, sampled, mask, cap=0.5)


def test_importance_weights_multiply_each_token_of_the_policy_loss() -> None:
    logprobs = torch.tensor([[0.5, 0.4]]).log().requires_grad_()
    old, advantages = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[2.0, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = clipped_policy_loss(
        logprobs, old, advantages, mask, clip_low=0.3, clip_high=0.3, denominator=2.0,
        weights=torch.tensor([[0.25, 2.0]]),
    ).loss  # fmt: skip
    torch.autograd.backward(loss)
    assert float(loss.detach()) == pytest.approx(-(0.25 * 2.0 + 2.0 * 0.8 * -1.0) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.25 * 2.0 / 2, 2.0 * 0.8 / 2])


# --- ratios of whole responses, the plain gradient, reductions


def naive_sequence_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, mean: bool) -> float:
    """One clipped gain a response."""
    total = 0.0
    for row in range(len(mask)):
        steps = [t for t in range(mask.shape[1]) if mask[row, t]]
        log_ratio = sum(logprobs[row, t].item() - old[row, t].item() for t in steps)
        ratio = math.exp(log_ratio / len(steps) if mean else log_ratio)
        advantage = advantages[row, steps[0]].item()
        total -= min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
    return total


@pytest.mark.parametrize("ratio", ["sequence", "gspo"])
def test_a_ratio_of_the_whole_response_counts_each_response_once(ratio: Ratio) -> None:
    logprobs, old, _, mask = random_batch()
    advantages = torch.where(mask, torch.tensor([1.5, -0.7, 0.3, -2.0], dtype=torch.float64)[:, None], math.nan)
    result = clipped_policy_loss(
        logprobs, old, advantages, mask, clip_low=0.1, clip_high=0.3, denominator=4, ratio=ratio,
        weights=token_weights(mask, "sequence_mean", torch.float64),
    )  # fmt: skip
    expected = naive_sequence_loss(logprobs, old, advantages, mask, mean=ratio == "gspo")
    assert result.loss.item() == pytest.approx(expected / 4, rel=1e-6)
    assert all(len(set(row[kept].tolist())) == 1 for row, kept in zip(result.ratio, mask, strict=True))


@pytest.mark.parametrize(("ratio", "spread"), [("sequence", 1.0), ("gspo", 1 / 3)])
def test_the_gradient_of_a_responses_ratio(ratio: Ratio, spread: float) -> None:
    """At pi = pi_old, A grad log pi of each token, and for the mean a share of it."""
    logprobs = torch.tensor([[0.5, 0.2, 0.4]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    weights = token_weights(mask, "sequence_mean", torch.float64)
    loss = clipped_policy_loss(
        logprobs, logprobs.detach(), torch.full((1, 3), 2.0), mask, clip_low=0.2, clip_high=0.2, denominator=1,
        ratio=ratio, weights=weights,
    ).loss  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient[0].tolist() == pytest.approx([-2.0 * spread] * 3)


def test_a_ratio_of_the_response_refuses_advantages_of_tokens() -> None:
    logprobs, old, advantages, mask = random_batch()
    with pytest.raises(ValueError, match="one advantage a response"):
        clipped_policy_loss(
            logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.2, denominator=1, ratio="sequence"
        )


def test_the_plain_gradient_is_minus_the_advantage_of_each_token() -> None:
    logprobs, _, advantages, mask = random_batch()
    logprobs.requires_grad_()
    loss = policy_gradient_loss(logprobs, advantages, mask, denominator=14)
    expected = -sum((advantages[i, t] * logprobs[i, t]).item() for i, t in mask.nonzero().tolist()) / 14
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, torch.where(mask, -advantages / 14, 0.0))
    with pytest.raises(ValueError, match="denominator"):
        policy_gradient_loss(logprobs, advantages, mask, denominator=0)


REDUCED = {  # of losses 1, 2, 3 in one response and 10 in another, of at most 5 tokens
    "token_mean": 16 / 4,
    "sequence_sum": (6 + 10) / 2,
    "sequence_mean": (2 + 10) / 2,
    "sequence_sum_by_max_length": (6 + 10) / (2 * 5),
}


@pytest.mark.parametrize("reduction", REDUCED)
def test_reductions_by_hand(reduction: Reduction) -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [10.0, 77.0, 77.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    denominator = loss_denominator(reduction, tokens=4.0, sequences=2, max_length=5)
    assert float((token_weights(mask, reduction) * losses).sum() / denominator) == pytest.approx(REDUCED[reduction])


def test_importance_of_a_response_is_the_product_of_its_tokens() -> None:
    old, sampled = torch.tensor([[0.6, 0.3, 0.5]]).log(), torch.tensor([[0.4, 0.6, 0.1]]).log()
    mask = torch.tensor([[True, True, False]])
    for ratio in ("sequence", "gspo"):
        weights = importance_weights(old, sampled, mask, cap=2.0, ratio=ratio)
        assert weights[0].tolist() == pytest.approx([0.75, 0.75, 1.0])  # 1.5 x 0.5
