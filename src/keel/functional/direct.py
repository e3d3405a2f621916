"""Losses that learn from preferences without a reward model: each gives one loss a row, [N].

A log-ratio is log pi(y|x) - log pi_ref(y|x), where log p of a response is the sum over its tokens, its end included; in
the length-normalised forms of DPO and IPO it is their mean. With beta, h = beta (log-ratio of chosen - of rejected) is
the difference of the implicit rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from keel.functional.preference import bradley_terry_loss


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(h); with smoothing e, -[(1-e) log sigmoid(h) + e log sigmoid(-h)], which shrinks what is learnt.

    `chosen` and `rejected` [N] are log-ratios. On all pairs it has the optimum of the KL-leashed objective,
    pi_ref exp(r / beta) / Z, where r is the Bradley-Terry score of the labels. ValueError for beta <= 0, e outside
    [0, 0.5). Rafailov et al. (2023), equation 7; smoothing: Mitchell (2023).
    """
    _check_positive("beta", beta)
    return bradley_terry_loss(beta * chosen, beta * rejected, label_smoothing=label_smoothing)


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(h / beta - 1 / (2 beta))^2: a margin to be met, not to be grown, so that labels without doubt stay finite.

    `chosen` and `rejected` [N] are log-ratios. Its optimum is pi_ref exp(P(y beats y') / beta) / Z with y' from the
    pairs' distribution: not that of DPO. ValueError for beta <= 0. Azar et al. (2024), equation 17.
    """
    _check_positive("beta", beta)
    return (chosen - rejected - 0.5 / beta).square()


def hinge_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - h), which leaves a pair alone once its margin is 1.

    `chosen` and `rejected` [N] are log-ratios. ValueError for beta <= 0. Zhao et al. (2023); on log-ratios, Liu et al.
    (2024).
    """
    _check_positive("beta", beta)
    return relu(1 - beta * (chosen - rejected))


def kto_reference_point(log_ratios: Tensor) -> Tensor:
    """z0 = max(0, mean), a scalar without gradient, from log-ratios [M] of responses to *other* prompts.

    An estimate of KL(pi || pi_ref), biased as its authors say. ValueError without a row. Ethayarajh et al. (2024).
    """
    if log_ratios.numel() == 0:
        raise ValueError("z0 is a mean over mismatched rows, and there are none")
    return log_ratios.detach().mean().clamp(min=0)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - sigmoid(beta (l - z0))) where desirable [N] is True, w' (1 - sigmoid(beta (z0 - l))) elsewhere.

    `log_ratios` l [N]; `reference_point` z0 as of `kto_reference_point`; only l gets a gradient. ValueError for
    beta <= 0, a negative weight, or a mask that is not bool [N]. Ethayarajh et al. (2024), equation 8.
    """
    _check_positive("beta", beta)
    if not (desirable_weight >= 0 and undesirable_weight >= 0):
        raise ValueError(f"weights must not be negative, got {desirable_weight} and {undesirable_weight}")
    if desirable.dtype != torch.bool or desirable.shape != log_ratios.shape:
        raise ValueError(f"desirable must be bool {tuple(log_ratios.shape)}, got {desirable.dtype} {desirable.shape}")
    gain = beta * (log_ratios - torch.as_tensor(reference_point).detach())
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def orpo_loss(chosen: Tensor, rejected: Tensor, *, lam: float) -> Tensor:
    """-log p_w - lam log sigmoid(log odds_w - log odds_l), odds = p / (1 - p), where log p is the mean over the tokens.

    `chosen` and `rejected` [N] are those means, at most 0; there is no reference, and the optimum is not that of DPO.
    A certain response (log p = 0) keeps finite odds. ValueError for lam < 0 or a log p above 0. Hong et al. (2024).
    """
    if not lam >= 0:
        raise ValueError(f"lam must not be negative, got {lam}")
    largest = torch.cat([chosen.detach(), rejected.detach()]).max()
    if largest > 0:
        raise ValueError(f"a log-probability is at most 0, got {float(largest)}")
    return -chosen + lam * softplus(_log_odds(rejected) - _log_odds(chosen))


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (log p_w - log p_l) - gamma), where log p is the mean over the tokens; no reference.

    `chosen` and `rejected` [N] are those means. Nothing leashes it, and its optimum is not that of DPO. ValueError for
    beta <= 0 or gamma < 0. Meng et al. (2024), equation 6.
    """
    _check_positive("beta", beta)
    return bradley_terry_loss(beta * chosen, beta * rejected, margin=gamma)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p - log(1 - p) without forming p: expm1 keeps the digits of 1 - p where p is near 1."""
    below_one = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
