"""From the reward model's scores [B] to one reward a token [B, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.masked import keep, require_prefix
from keel.functional.masked import whiten as whiten_values


@torch.no_grad()
def transform_scores(scores: Tensor, *, clip: float | None = None, whiten: bool = False) -> Tensor:
    """Scores [B] clipped to [-clip, clip], then whitened over the batch.

    Each changes what is optimised: the policy is then held to the optimum of the *transformed* score.
    ValueError for clip <= 0.
    """
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        scores = scores.clamp(-clip, clip)
    if whiten:
        scores = whiten_values(scores, torch.ones_like(scores, dtype=torch.bool))
    return scores


@torch.no_grad()
def shape_rewards(
    scores: Tensor,
    logprob_gap_k1: Tensor,
    response_mask: Tensor,
    ended: Tensor,
    *,
    kl_coef: float,
    eos_penalty: float = 0.0,
) -> Tensor:
    """R_t = 1[t = last real token] (score - eos_penalty (not ended)) - kl_coef k1_t, [B, T]; 0 outside the mask.

    `scores` [B]; `logprob_gap_k1` [B, T] = log pi_old - log pi_ref in nats; `response_mask` [B, T] bool, a prefix of
    each row that includes EOS; `ended` [B] bool, whether the response has its EOS. The rewards carry no gradient.
    ValueError for a row without a token or with a hole in its mask. Ziegler et al. (2019).
    """
    require_prefix(response_mask)
    lengths = response_mask.sum(dim=1)
    if (lengths == 0).any():
        raise ValueError(f"row {int((lengths == 0).nonzero()[0])} of the mask is empty, so its score has no token")
    rewards = -kl_coef * keep(logprob_gap_k1, response_mask)
    final = torch.where(ended, scores, scores - eos_penalty).to(rewards.dtype)
    return rewards.scatter_add(1, lengths[:, None] - 1, final[:, None])
