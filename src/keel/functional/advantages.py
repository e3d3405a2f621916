"""Advantages [B, T] from per-token rewards. `config.estimators` is the table of those that a recipe can name.

`values[:, t]` is the critic at the position that precedes token t. A response ends at its last counted token: the
value after it is 0, at the length limit too. `group` [B] is equal for responses to one prompt. Results carry no
gradient and are 0 outside the mask, a prefix of each row (ValueError for a mask with a hole). The critic's target is
the caller's line: advantages, *before* any whitening, plus the baseline that was taken off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keel.functional.masked import keep, require_prefix


@torch.no_grad()
def reinforce(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """A_t = R, the whole response's reward R = sum_k R_k on every token. Williams (1992)."""
    return _everywhere(_totals(rewards, response_mask), response_mask)


@torch.no_grad()
def reward_to_go(rewards: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """A_t = G_t = sum_{k >= t} gamma^(k-t) R_k: what came before a token is not its merit.

    ValueError for gamma outside [0, 1].
    """
    require_prefix(response_mask)
    _check_fraction("gamma", gamma)
    return _discounted_sum(keep(rewards, response_mask), gamma)


def reinforce_pp(rewards: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """`reward_to_go`, which its caller whitens over the whole batch: that is its baseline. Hu (2025), REINFORCE++."""
    return reward_to_go(rewards, response_mask, gamma=gamma)


@torch.no_grad()
def sequence(rewards: Tensor, values: Tensor, response_mask: Tensor) -> Tensor:
    """A_t = R - V(x), the same for every token; V(x) = values[:, 0] is the critic's opinion of the prompt."""
    return _everywhere(_totals(rewards, response_mask) - keep(values, response_mask)[:, 0], response_mask)


@torch.no_grad()
def monte_carlo(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """A_t = G_t - V_t with the return-to-go G_t of `reward_to_go`. ValueError for gamma outside [0, 1]."""
    return reward_to_go(rewards, response_mask, gamma=gamma) - keep(values, response_mask)


@torch.no_grad()
def td(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """A_t = d_t = R_t + gamma V_{t+1} - V_t, the one-step advantage. ValueError for gamma outside [0, 1]."""
    require_prefix(response_mask)
    _check_fraction("gamma", gamma)
    values = keep(values, response_mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return keep(rewards, response_mask) + gamma * next_values - values


@torch.no_grad()
def n_step(rewards: Tensor, values: Tensor, response_mask: Tensor, *, n: int, gamma: float = 1.0) -> Tensor:
    """A_t = sum_{l < n} gamma^l d_{t+l}, d as in `td`: n rewards, then the critic. n = 1 is `td`, n >= T `monte_carlo`.

    ValueError for n < 1 or gamma outside [0, 1].
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    deltas = td(rewards, values, response_mask, gamma=gamma)
    to_go = _discounted_sum(deltas, gamma)
    beyond = torch.zeros_like(to_go)
    beyond[:, : max(0, to_go.shape[1] - n)] = to_go[:, n:]
    return to_go - gamma**n * beyond


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimation: A_t = d_t + gamma lam A_{t+1}, d as in `td`.

    lam = 0 is `td`, lam = 1 is `monte_carlo`. ValueError for gamma or lam outside [0, 1]. Schulman et al. (2016).
    """
    _check_fraction("lam", lam)
    return _discounted_sum(td(rewards, values, response_mask, gamma=gamma), gamma * lam)


@torch.no_grad()
def rloo(rewards: Tensor, response_mask: Tensor, *, group: Tensor) -> Tensor:
    """A_t = R minus the mean R of the *other* responses to the prompt. ValueError for a group of one.

    Kool et al. (2019); Ahmadian et al. (2024).
    """
    totals = _totals(rewards, response_mask)
    return _everywhere(totals - leave_one_out_mean(totals, group), response_mask)


@torch.no_grad()
def grpo(rewards: Tensor, response_mask: Tensor, *, group: Tensor, eps: float = 1e-4) -> Tensor:
    """A_t = (R - mean) / (sd + eps) over the prompt's responses, sd that of the population (divided by n).

    R is the sum of the rewards given: with the KL inside it the optimum is that of J; with a KL in the loss instead,
    which is not divided, it is not. ValueError for a group of one. Shao et al. (2024).
    """
    gaps, group_of, counts = _group_gaps(_totals(rewards, response_mask), group)
    variances = torch.zeros_like(counts).index_add(0, group_of, gaps.square()) / counts
    return _everywhere(gaps / (variances.sqrt()[group_of] + eps), response_mask)


@torch.no_grad()
def dr_grpo(rewards: Tensor, response_mask: Tensor, *, group: Tensor) -> Tensor:
    """A_t = R minus the mean R of the prompt's responses, its own included: (1 - 1/n) of `rloo`.

    ValueError for a group of one. Liu et al. (2025).
    """
    return _everywhere(_group_gaps(_totals(rewards, response_mask), group)[0], response_mask)


@torch.no_grad()
def best_of_n(rewards: Tensor, response_mask: Tensor, *, group: Tensor) -> Tensor:
    """A_t = 1 for the best response to the prompt, 0 for the others; those that tie for best share the 1.

    With the plain policy gradient it imitates the best of n: rejection-sampling fine-tuning, round after round. A
    yardstick: its target is no optimum of J, and moves on with the policy. Dong et al. (2023), RAFT.
    """
    totals = _totals(rewards, response_mask)
    same = group[:, None] == group[None, :]
    best = totals >= torch.where(same, totals[None, :], -torch.inf).amax(dim=1)
    return _everywhere(best.to(totals.dtype) / (same & best).sum(dim=1), response_mask)


@torch.no_grad()
def leave_one_out_mean(totals: Tensor, group: Tensor) -> Tensor:
    """For each response [B] the mean of `totals` [B] over the others of its group. ValueError for a group of one."""
    gaps, group_of, counts = _group_gaps(totals, group)
    return totals - gaps * (counts / (counts - 1))[group_of]


def _group_gaps(totals: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each total [B] is above its group's mean; each one's group [B] by number; and the groups' sizes."""
    _, group_of = torch.unique(group, return_inverse=True)
    counts = torch.bincount(group_of).to(totals.dtype)
    if (counts < 2).any():
        raise ValueError(
            "a group holds one response, which has no other to be compared with; draw two or more a prompt"
        )
    means = torch.zeros_like(counts).index_add(0, group_of, totals) / counts
    return totals - means[group_of], group_of, counts


def _totals(rewards: Tensor, response_mask: Tensor) -> Tensor:
    require_prefix(response_mask)
    return keep(rewards, response_mask).sum(dim=1)


def _everywhere(per_response: Tensor, response_mask: Tensor) -> Tensor:
    """[B] on every counted token, [B, T]."""
    return keep(per_response[:, None].expand(response_mask.shape), response_mask)


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
