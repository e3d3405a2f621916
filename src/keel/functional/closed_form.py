"""What the KL-leashed objective allows at best: exactly where responses can be listed, else estimated from samples.

J(pi) = E_pi[r] - beta KL(pi || pi_ref), whose optimum is known (Rafailov et al., 2023, appendix A.1).
Pass float64 tensors where the last digits matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def log_partition(ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log Z = log sum_y pi_ref(y) exp(r(y) / beta), a scalar, from two tensors [K]; beta log Z is the optimum's J.

    ValueError unless beta > 0.
    """
    return _tilted(ref_probs, rewards, beta).logsumexp(dim=-1)


def optimal_policy(ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """pi*(y) = pi_ref(y) exp(r(y) / beta) / Z, [K]. ValueError unless beta > 0."""
    return _tilted(ref_probs, rewards, beta).softmax(dim=-1)


def objective(probs: Tensor, ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J of the policy `probs` [K], a scalar; -inf when it draws what the reference cannot."""
    divergence = (torch.xlogy(probs, probs) - torch.xlogy(probs, ref_probs)).sum(dim=-1)
    return (probs * rewards).sum(dim=-1) - beta * divergence


def _tilted(ref_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    return ref_probs.log() + rewards / beta


@dataclass(frozen=True)
class FrontierPoint:
    bound: float  # no policy with this KL has a higher mean score (up to sampling error)
    beta: float  # the coefficient whose optimum reaches it: inf at KL 0, 0 where the best sample is all that counts
    reliable: bool  # False beyond KL = log(number of samples), where the estimate is biased low


def frontier(scores: Tensor, kl: float) -> FrontierPoint:
    """The highest mean score that a mean KL of `kl` nats a response to the reference can buy.

    `scores` [P, n]: n samples of the reference for each of P prompts. The bound is the minimum over beta of
    beta kl + beta mean_x log mean_j exp(r_xj / beta), a convex problem solved to machine precision where the mean KL
    of the tilted samples is `kl`: the Lagrange dual of the best score under a limit on the KL.
    ValueError for kl < 0 or scores without two dimensions.
    """
    if not kl >= 0:
        raise ValueError(f"kl must not be negative, got {kl}")
    if scores.dim() != 2 or scores.numel() == 0:
        raise ValueError(f"need scores [P, n] with at least one sample, got {tuple(scores.shape)}")
    scores = scores.detach().cpu().double()
    best = scores.amax(dim=1, keepdim=True)
    gaps = scores - best  # measured from each prompt's best, so that no exponential overflows
    spread = -float(gaps.min())
    reliable = kl <= math.log(scores.shape[1])
    if kl == 0 or spread == 0:
        return FrontierPoint(bound=float(scores.mean()), beta=math.inf, reliable=reliable)
    low, high = math.log(spread * 1e-12), math.log(spread * 1e8)
    if _mean_kl(gaps, math.exp(low)) <= kl:
        return FrontierPoint(bound=float(best.mean()), beta=0.0, reliable=reliable)
    for _ in range(70):  # halves [1e-12, 1e8] below a relative 1e-16
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_kl(gaps, math.exp(middle)) > kl else (low, middle)
    beta = math.exp((low + high) / 2)
    bound = float(best.mean()) + beta * (kl + float(_log_mean_exp(gaps / beta).mean()))
    return FrontierPoint(bound=bound, beta=beta, reliable=reliable)


def _mean_kl(scores: Tensor, beta: float) -> float:
    """Mean over prompts of KL(tilted || uniform) over the samples; it falls as beta grows."""
    tilted = scores / beta
    mean_tilt = (tilted.softmax(dim=1) * tilted).sum(dim=1)
    return float((mean_tilt - _log_mean_exp(tilted)).mean())


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(dim=1) - math.log(values.shape[1])


def best_of_n_kl(n: int) -> float:
    """KL in nats of best-of-n to its reference, log n - (n - 1)/n: exact without ties, else an upper bound.

    ValueError for n < 1. Stiennon et al. (2020); the bound: Beirami et al. (2024).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def estimated_best_of_n_kl(scores: Tensor, n: int) -> float:
    """The mean KL of best-of-n to its reference where some responses tie, estimated from `scores` [P, m].

    Exact for the law of the samples, which stands in for the reference's own (a plug-in estimate): an atom of it, from
    F- to F, is drawn with F^n - F-^n, which is the law of best-of-n whatever is picked within the atom by the
    reference's own odds; what no other of the m samples equals is taken for continuous, with the density n F^(n-1).
    Ties that m samples do not show are missed, those that they show have the share they happen to have. It never
    exceeds `best_of_n_kl`, which it is without ties. Equal scores tie and no others: what is one response must have
    one score. ValueError for n < 1.
    """
    bound = best_of_n_kl(n)
    kls = [bound - _lost_in_ties(row, n) for row in scores.detach().cpu()]
    return sum(kls) / len(kls)


def _lost_in_ties(scores: Tensor, n: int) -> float:
    """What the atoms among `scores` [m] take off the KL of a continuous law."""
    counts = torch.unique(scores, return_counts=True)[1].double()
    upper = counts.cumsum(0) / counts.sum()
    lower = upper - counts / counts.sum()

    def integral(share: Tensor) -> Tensor:  # of the density's own logarithm, from 0 to F
        return share**n * math.log(n) + (n - 1) * torch.xlogy(share**n, share) - share**n * (n - 1) / n

    drawn = upper**n - lower**n
    lost = integral(upper) - integral(lower) - torch.xlogy(drawn, drawn / (upper - lower))
    return float(lost[counts > 1].sum())


def best_of_n_score(scores: Tensor, n: int, judged: Tensor | None = None) -> float:
    """Unbiased mean of the best of n draws, from `scores` [P, m]: m >= n samples of the reference for each prompt.

    With `judged` [P, m] the mean of that at the draw of the best score. The i-th smallest of m samples is the best of
    C(i-1, n-1) of the C(m, n) subsets. ValueError unless 1 <= n <= m.
    """
    num_samples = scores.shape[-1]
    if not 1 <= n <= num_samples:
        raise ValueError(f"n must be between 1 and the {num_samples} samples a prompt, got {n}")
    ranks = torch.arange(n, num_samples + 1, dtype=torch.float64)
    log_subsets = torch.lgamma(ranks) - torch.lgamma(ranks - n + 1) - math.lgamma(n)
    weights = log_subsets.softmax(dim=0)  # the subsets of all ranks together are the C(m, n)
    order = scores.detach().cpu().double().argsort(dim=-1, stable=True)
    ordered = (scores if judged is None else judged).detach().cpu().double().gather(-1, order)
    return float((ordered[:, n - 1 :] * weights).sum(dim=-1).mean())
