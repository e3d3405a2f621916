"""The losses of one policy update. Each is a sum over counted tokens divided by `denominator`.

With the minibatch's number of counted tokens as `denominator`, the losses of its micro-batches add up to that of the
minibatch however it is cut. What is named a loss is minimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keel.functional.kl import k3
from keel.functional.masked import keep


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor  # scalar
    ratio: Tensor  # [B, T] pi / pi_old, detached; 1 outside the mask
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
    importance: Tensor | None = None,
) -> PolicyLoss:
    """-sum over counted tokens of w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) / denominator.

    r = exp(logprobs - old_logprobs); all tensors are [B, T], only `logprobs` gets a gradient. The minimum holds for
    either sign of A. w is `importance`, 1 unless given (see `importance_weights`). ValueError unless
    0 <= clip_low <= 1, clip_high >= 0 and denominator > 0.
    Schulman et al. (2017).
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"need 0 <= clip_low <= 1 and clip_high >= 0, got {clip_low} and {clip_high}")
    _check_denominator(denominator)
    advantages = keep(advantages.detach(), response_mask)
    ratio = keep(logprobs - old_logprobs.detach(), response_mask).exp()
    unclipped_gain = ratio * advantages
    clipped_gain = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    gain = torch.minimum(unclipped_gain, clipped_gain)
    return PolicyLoss(
        loss=-(gain if importance is None else gain * keep(importance.detach(), response_mask)).sum() / denominator,
        ratio=ratio.detach(),
        clipped=(clipped_gain < unclipped_gain).detach(),
    )


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, response_mask: Tensor, *, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) of every counted token [B, T], 1 elsewhere.

    For responses drawn by other kernels or in another precision than the learner's: the loss is then the expectation
    under the learner's old policy, its variance bounded by the cap (truncated importance sampling, Ionides, 2008).
    ValueError unless cap >= 1.
    """
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    return keep(old_logprobs - sampler_logprobs, response_mask).exp().clamp(max=cap)


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


def _check_denominator(denominator: float) -> None:
    if not denominator > 0:
        raise ValueError(f"denominator must be above 0, got {denominator}")
