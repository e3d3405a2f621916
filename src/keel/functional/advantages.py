"""Advantages [B, T] from per-token rewards and the critic's values. The critic's target is the caller's line:
`returns = advantages + values`, with the advantages *before* any whitening.

`values[:, t]` is the critic at the position that precedes token t. A response ends at its last counted token: the
value after it is 0, at the length limit too. Results carry no gradient and are 0 outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.masked import keep, require_prefix


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimation: A_t = d_t + gamma lam A_{t+1}, d_t = R_t + gamma V_{t+1} - V_t.

    All tensors are [B, T], `response_mask` a prefix of each row. lam = 0 is the one-step advantage d_t, lam = 1 is
    `monte_carlo`. ValueError for gamma or lam outside [0, 1] or a mask with a hole.
    Schulman et al. (2016).
    """
    require_prefix(response_mask)
    _check_fraction("lam", lam)
    _check_fraction("gamma", gamma)
    values = keep(values, response_mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = keep(rewards, response_mask) + gamma * next_values - values
    return _discounted_sum(deltas, gamma * lam)


@torch.no_grad()
def monte_carlo(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """A_t = G_t - V_t with the return-to-go G_t = sum_{k >= t} gamma^(k-t) R_k. Arguments and errors as in `gae`."""
    require_prefix(response_mask)
    _check_fraction("gamma", gamma)
    return _discounted_sum(keep(rewards, response_mask), gamma) - keep(values, response_mask)


def _discounted_sum(terms: Tensor, discount: float) -> Tensor:
    """S_t = terms_t + discount S_{t+1} along the last dimension."""
    sums = torch.empty_like(terms)
    running = torch.zeros_like(terms[:, 0])
    for t in reversed(range(terms.shape[1])):
        running = terms[:, t] + discount * running
        sums[:, t] = running
    return sums


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
