"""Distances between policy and reference, in nats, and the controller of their price.

The sampled estimates are those of Schulman (2020), "Approximating KL divergence".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keel.functional.logprobs import row_chunks, scaled
from keel.functional.masked import keep


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref at sampled tokens, elementwise: unbiased for KL(pi || pi_ref), of any sign."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 squared, halved: never negative, biased as a value. Elementwise."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-k1) - 1 + k1, elementwise: unbiased for KL(pi || pi_ref) and never negative."""
    difference = logprobs - ref_logprobs
    return torch.expm1(-difference) + difference


def sequence_k2_term(
    logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, response_mask: Tensor, baseline: Tensor
) -> Tensor:
    """The leash as a term of the loss [B, T]: (D - b) r_t, D = sum_t log pi / pi_ref of the whole response, detached.

    Its gradient, on samples of pi, is that of the reverse KL between *sequences*, as half of D squared has it: every
    token answers for how it moves the later ones. `ratio` r [B, T] = pi / pi_old carries the gradient and makes it
    hold on samples of pi_old; `baseline` b [B] is independent of the response (its neighbours' mean) and takes off
    variance alone. All tensors but `baseline` are [B, T]. Its value is no KL.
    """
    whole = keep(k1(logprobs, ref_logprobs).detach(), response_mask).sum(dim=1)
    return keep((whole - baseline)[:, None] * ratio, response_mask)


def token_k2_term(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, response_mask: Tensor) -> Tensor:
    """r_t k2_t [B, T], r detached: each token's own KL, blind to how it moves the later states.

    Its fixed point is not the optimum of J but pi(a|s) ~ pi_ref exp(Q(s, a) / beta), Q = E_pi[r | s, a].
    """
    return keep(ratio.detach(), response_mask) * k2(keep(logprobs, response_mask), keep(ref_logprobs, response_mask))


def token_k3_term(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, response_mask: Tensor) -> Tensor:
    """r_t k3_t [B, T], r detached: never negative, and with the gradient of the *forward* KL of each token.

    With one token, its fixed point is pi = beta pi_ref / (lambda - r) instead of the optimum of J.
    """
    return keep(ratio.detach(), response_mask) * k3(keep(logprobs, response_mask), keep(ref_logprobs, response_mask))


@torch.no_grad()
def exact_kl(logits: Tensor, ref_logits: Tensor, *, temperature: float = 1.0, chunk_tokens: int = 512) -> Tensor:
    """KL(pi || pi_ref) [N] of each row, summed over the vocabulary. For evaluation: it carries no gradient.

    Both logits are [N, V] and divided by `temperature`. A token that pi cannot draw (-inf) adds nothing; one that
    only pi can draw makes the KL inf. Float32, or float64 for float64 logits. ValueError for temperature <= 0,
    chunk_tokens < 1 or unequal shapes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if logits.dim() != 2 or logits.shape != ref_logits.shape:
        raise ValueError(f"need two logits [N, V], got {tuple(logits.shape)} and {tuple(ref_logits.shape)}")
    divergences = logits.new_empty(len(logits), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    for rows in row_chunks(len(logits), chunk_tokens):
        divergences[rows] = _chunk_kl(scaled(logits[rows], temperature), scaled(ref_logits[rows], temperature))
    return divergences


def _chunk_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    logprobs = logits.log_softmax(dim=-1)
    log_ratio = logprobs - ref_logits.log_softmax(dim=-1)
    probabilities = logprobs.exp_()
    return probabilities.mul_(log_ratio.masked_fill_(probabilities == 0, 0.0)).sum(dim=-1)


def adaptive_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, num_responses: float) -> float:
    """The next coefficient of the KL penalty: beta (1 + err n / horizon), err = clip(kl / target - 1, +-0.2).

    `kl` and `target` are nats a response, `num_responses` (n) the responses since the last call, `horizon` is counted
    in responses. ValueError unless target and horizon are above 0. Source: Ziegler et al. (2019), section 2.2.
    """
    if not (target > 0 and horizon > 0):
        raise ValueError(f"target and horizon must be above 0, got {target} and {horizon}")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_responses / horizon)


def dual_kl_coef(kl_coef: float, kl: float, *, limit: float, lr: float, minimum: float) -> float:
    """The next price of the constraint E[KL] <= limit: log beta + lr (kl / limit - 1), not below log(minimum).

    Ascent on the dual: the price rises while the KL (nats a response) is above the limit, falls while it is below, and
    rests where the constraint is met. However far the KL is off, one step multiplies it by e at most.
    ValueError unless limit, lr and minimum are above 0.
    Boyd and Vandenberghe (2004), chapter 5.
    """
    if not (limit > 0 and lr > 0 and minimum > 0):
        raise ValueError(f"limit, lr and minimum must be above 0, got {limit}, {lr} and {minimum}")
    return max(minimum, kl_coef * math.exp(min(lr * (kl / limit - 1.0), 1.0)))


def annealed_kl_coef(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1 and beyond, in equal steps of the logarithm.

    ValueError unless both are above 0 and progress is not negative.
    """
    if not (start > 0 and end > 0 and progress >= 0):
        raise ValueError(f"need start, end > 0 and progress >= 0, got {start}, {end} and {progress}")
    return end * math.pow(start / end, 1 - min(progress, 1.0))
