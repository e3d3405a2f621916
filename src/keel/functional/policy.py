"""The losses of one policy update. Each is a sum over counted tokens divided by `denominator`.

With the minibatch's denominator, the losses of its micro-batches add up to that of the minibatch however it is cut.
What is named a loss is minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keel.functional.kl import k3
from keel.functional.masked import keep

Ratio = Literal["token", "sequence", "gspo"]
Reduction = Literal["token_mean", "sequence_sum", "sequence_mean", "sequence_sum_by_max_length"]


def token_weights(response_mask: Tensor, reduction: Reduction, dtype: torch.dtype = torch.float32) -> Tensor:
    """What each token counts in a minibatch's loss [B, T], 0 outside the mask; `loss_denominator` divides the sum.

    1 for each token, but in `sequence_mean`, where a response of T tokens gives 1/T to each.
    """
    ones = response_mask.to(dtype)
    return ones / ones.sum(dim=1, keepdim=True).clamp(min=1) if reduction == "sequence_mean" else ones


def loss_denominator(reduction: Reduction, *, tokens: float, sequences: int, max_length: int) -> float:
    """What the weighted sum over a minibatch of `tokens` tokens in `sequences` responses is divided by.

    The number of tokens in `token_mean` (the gradient is that of J over the mean length, but for O(1/n)), of responses
    in `sequence_sum` (exactly the gradient of J) and in `sequence_mean` (which reaches the optimum only with a baseline
    that is exact there), of tokens that could have been in `sequence_sum_by_max_length` (`max_length` a response).
    """
    by_max_length = reduction == "sequence_sum_by_max_length"
    return tokens if reduction == "token_mean" else float(sequences * (max_length if by_max_length else 1))


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor  # scalar
    ratio: Tensor  # [B, T] pi / pi_old as it was clipped, detached; 1 outside the mask
    clipped: Tensor  # [B, T] bool: the clip took effect and the token has no gradient; False outside the mask


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float,
    ratio: Ratio = "token",
    weights: Tensor | None = None,
) -> PolicyLoss:
    """-sum over counted tokens of w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) / denominator.

    r = exp(logprobs - old_logprobs) of each token, or by `ratio` one of the whole response on each of its tokens: the
    product (`sequence`) or the geometric mean (`gspo`); these clip responses, so their advantages must be alike within
    one (ValueError), and with w = 1/T (`sequence_mean`) each response counts once. All tensors are [B, T], only
    `logprobs` gets a gradient. The minimum holds for either sign of A. w is `weights`, 1 unless given.
    ValueError unless 0 <= clip_low <= 1, clip_high >= 0 and denominator > 0.
    Schulman et al. (2017); Zheng et al. (2025) for the mean.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"need 0 <= clip_low <= 1 and clip_high >= 0, got {clip_low} and {clip_high}")
    _check_denominator(denominator)
    advantages = keep(advantages.detach(), response_mask)
    if ratio != "token":
        _require_alike(advantages, response_mask)
    ratios = policy_ratio(logprobs, old_logprobs, response_mask, ratio)
    unclipped_gain = ratios * advantages
    clipped_gain = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    gain = torch.minimum(unclipped_gain, clipped_gain)
    return PolicyLoss(
        loss=-(gain if weights is None else gain * keep(weights.detach(), response_mask)).sum() / denominator,
        ratio=ratios.detach(),
        clipped=(clipped_gain < unclipped_gain).detach(),
    )


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor, ratio: Ratio = "token") -> Tensor:
    """pi / pi_old [B, T] as `clipped_policy_loss` takes it, 1 outside the mask; only `logprobs` gets a gradient."""
    log_ratio = keep(logprobs - old_logprobs.detach(), response_mask)
    if ratio != "token":
        whole = log_ratio.sum(dim=1, keepdim=True)
        if ratio == "gspo":
            whole = whole / response_mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = keep(whole.expand(response_mask.shape), response_mask)
    return log_ratio.exp()


def policy_gradient_loss(
    logprobs: Tensor, advantages: Tensor, response_mask: Tensor, *, denominator: float, weights: Tensor | None = None
) -> Tensor:
    """-sum over counted tokens of w A log pi / denominator, a scalar: good for one pass over samples of this very pi.

    All tensors are [B, T], only `logprobs` gets a gradient; w is `weights`, 1 unless given. ValueError unless
    denominator > 0. Williams (1992); with a critic's advantages it is A2C, Mnih et al. (2016).
    """
    _check_denominator(denominator)
    gain = keep(advantages.detach(), response_mask) * keep(logprobs, response_mask)
    return -(gain if weights is None else gain * keep(weights.detach(), response_mask)).sum() / denominator


def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, response_mask: Tensor, *, cap: float, ratio: Ratio = "token"
) -> Tensor:
    """min(pi_old / pi_sampler, cap) of every counted token [B, T], 1 elsewhere; of the response unless `ratio: token`.

    For responses drawn by other kernels, in another precision than the learner's, or an update before: the loss is then
    the expectation under the learner's old policy, its variance bounded by the cap (truncated importance sampling,
    Ionides, 2008), the policy that drew apart from the one that the ratio is clipped around (Hilton et al., 2022).
    ValueError unless cap >= 1.
    """
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    level: Ratio = "token" if ratio == "token" else "sequence"  # a response's weight is the product, never its mean
    return policy_ratio(old_logprobs, sampler_logprobs, response_mask, level).clamp(max=cap)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    *,
    clip_range: float | None,
    denominator: float,
) -> Tensor:
    """Half of sum over counted tokens of max((V - R)^2, (clip(V, V_old +- clip_range) - R)^2) / denominator, a scalar.

    All tensors are [B, T], only `values` gets a gradient. `clip_range=None` is the plain squared error.
    ValueError unless clip_range and denominator are above 0. Schulman et al. (2017).
    """
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"clip_range must be above 0 or None, got {clip_range}")
    _check_denominator(denominator)
    values, old_values, returns = (keep(t, response_mask) for t in (values, old_values.detach(), returns.detach()))
    errors = (values - returns).square()
    if clip_range is not None:
        near_old = values.clamp(old_values - clip_range, old_values + clip_range)
        errors = torch.maximum(errors, (near_old - returns).square())
    return 0.5 * errors.sum() / denominator


def approx_kl_to_old(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """r - 1 - log r for each token [B, T], r = pi / pi_old: estimates KL(pi_old || pi), as pi_old drew the tokens.

    Never negative; 0 outside the mask. Schulman (2020).
    """
    return k3(keep(old_logprobs, response_mask), keep(logprobs, response_mask))


def _require_alike(advantages: Tensor, response_mask: Tensor) -> None:
    others = torch.where(response_mask, advantages, advantages[:, :1])
    if not torch.equal(others, advantages[:, :1].expand_as(others)):
        raise ValueError("a ratio of whole responses needs one advantage a response, and these differ between tokens")


def _check_denominator(denominator: float) -> None:
    if not denominator > 0:
        raise ValueError(f"denominator must be above 0, got {denominator}")
