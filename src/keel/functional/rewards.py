"""From the reward model's scores [B] to one reward a token [B, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.masked import keep, require_prefix
from keel.functional.masked import whiten as whiten_values


@torch.no_grad()
def transform_scores(scores: Tensor, *, scale: float = 1.0, clip: float | None = None, whiten: bool = False) -> Tensor:
    """Scores [B] divided by `scale`, clipped to [-clip, clip], then whitened over the batch.

    Each changes what is optimised: the policy is then held to the optimum of the *transformed* score.
    ValueError for clip <= 0 or scale <= 0.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    scores = scores / scale
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        scores = scores.clamp(-clip, clip)
    if whiten:
        scores = whiten_values(scores, torch.ones_like(scores, dtype=torch.bool))
    return scores


@torch.no_grad()
def length_penalty(lengths: Tensor, *, per_token: float = 0.0, buffer: int = 0, max_length: int = 1) -> Tensor:
    """What a response's length [B] (tokens) costs it: per_token T, and the soft over-length penalty.

    The latter is 0 up to max_length - buffer tokens, rises evenly from there, and is 1 at max_length; without a buffer
    it is 0. ValueError for a negative per_token or a buffer outside [0, max_length]. Yu et al. (2025), DAPO.
    """
    if not per_token >= 0:
        raise ValueError(f"per_token must not be negative, got {per_token}")
    if not 0 <= buffer <= max_length:
        raise ValueError(f"buffer must be between 0 and max_length {max_length}, got {buffer}")
    penalty = per_token * lengths.to(torch.get_default_dtype())
    if buffer:
        penalty = penalty + ((lengths - (max_length - buffer)) / buffer).clamp(0, 1)
    return penalty


@torch.no_grad()
def shape_rewards(
    scores: Tensor,
    logprob_gap_k1: Tensor,
    response_mask: Tensor,
    ended: Tensor,
    *,
    kl_coef: float,
    eos_penalty: float = 0.0,
    length_cost: Tensor | float = 0.0,
) -> Tensor:
    """R_t = 1[t = last real token] (score - eos_penalty (not ended) - length_cost) - kl_coef k1_t, [B, T].

    0 outside the mask.

    `scores` [B]; `logprob_gap_k1` [B, T] = log pi_old - log pi_ref in nats; `response_mask` [B, T] bool, a prefix of
    each row that includes EOS; `ended` [B] bool, whether the response has its EOS; `length_cost` [B] or one number. The
    rewards carry no gradient.
    ValueError for a row without a token or with a hole in its mask. Ziegler et al. (2019).
    """
    require_prefix(response_mask)
    lengths = response_mask.sum(dim=1)
    if (lengths == 0).any():
        raise ValueError(f"row {int((lengths == 0).nonzero()[0])} of the mask is empty, so its score has no token")
    rewards = -kl_coef * keep(logprob_gap_k1, response_mask)
    final = (torch.where(ended, scores, scores - eos_penalty) - length_cost).to(rewards.dtype)
    return rewards.scatter_add(1, lengths[:, None] - 1, final[:, None])
