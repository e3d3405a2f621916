"""Models of preference and their losses. Scores are log-odds: only differences within one prompt have a meaning."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def bradley_terry_probability(chosen: Tensor, rejected: Tensor, *, temperature: float = 1.0) -> Tensor:
    """P(chosen beats rejected) = sigmoid((chosen - rejected) / temperature), elementwise.

    `temperature` is the annotator's: high is noisy. ValueError unless it is above 0. Bradley and Terry (1952).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return torch.sigmoid((chosen - rejected) / temperature)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float = 0.0,
    flip_probability: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(D) for each pair [N], D = chosen - rejected - margin, finite for every finite D.

    `flip_probability` e is the chance that a label is wrong: -log[(1-e) sigmoid(D) + e sigmoid(-D)] still recovers the
    scores. `label_smoothing` e, -[(1-e) log sigmoid(D) + e log sigmoid(-D)], shrinks them and is no model of noise.
    ValueError for a negative margin, an e outside [0, 0.5), noise together with smoothing, or either with a margin
    above 0. Bradley and Terry (1952).
    """
    _check_noise(margin, flip_probability, label_smoothing)
    difference = chosen - rejected - margin
    if flip_probability > 0:
        right = math.log1p(-flip_probability) + logsigmoid(difference)
        wrong = math.log(flip_probability) + logsigmoid(-difference)
        return -torch.logaddexp(right, wrong)
    if label_smoothing > 0:
        return (1 - label_smoothing) * softplus(-difference) + label_smoothing * softplus(difference)
    return softplus(-difference)


def _check_noise(margin: Tensor | float, flip_probability: float, label_smoothing: float) -> None:
    margins = torch.as_tensor(margin)
    if not bool((margins >= 0).all()):
        raise ValueError(f"margin must not be negative, got {float(margins.min())}")
    for name, value in (("flip_probability", flip_probability), ("label_smoothing", label_smoothing)):
        if not 0 <= value < 0.5:
            raise ValueError(f"{name} must be in [0, 0.5), got {value}")
        if value > 0 and bool((margins > 0).any()):
            raise ValueError(f"{name}={value} and a margin above 0 exclude each other")
    if flip_probability > 0 and label_smoothing > 0:
        raise ValueError(
            f"flip_probability={flip_probability} and label_smoothing={label_smoothing} exclude each other"
        )


def plackett_luce_loss(scores: Tensor) -> Tensor:
    """-log likelihood [N] of rankings, from scores [N, K] already in the order of preference, best first, no ties.

    -sum_i [ s_i - log sum_{j >= i} exp s_j ]; for K = 2 it is Bradley-Terry. Luce (1959), Plackett (1975).
    """
    log_remaining = scores.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return (log_remaining - scores).sum(dim=-1)
