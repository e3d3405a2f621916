"""Distances between policy and reference, in nats, and the controller of their price.

The sampled estimates are those of Schulman (2020), "Approximating KL divergence".
"""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.logprobs import row_chunks, scaled_copy


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
        divergences[rows] = _chunk_kl(
            scaled_copy(logits[rows], temperature), scaled_copy(ref_logits[rows], temperature)
        )
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
