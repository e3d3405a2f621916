"""Models of preference and their losses. Scores are log-odds: only differences within one prompt have a meaning."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from keel.functional.masked import keep


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


def plackett_luce_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """-log likelihood [N] of rankings with ties, from scores [N, K], integer ranks [N, K] (lower is better) and a mask.

    sum_i [ log sum_{j: rank_j >= rank_i} exp s_j - s_i ], each of several tied items chosen from the same ones
    (Breslow, 1974). A ranking holds one choice fewer than items, for the last is forced; so where m items share the
    last place their sum counts (m - 1)/m. Without ties this is the likelihood of Luce (1959) and Plackett (1975), and
    for K = 2 Bradley-Terry, a tie being -1/2 [log sigmoid(D) + log sigmoid(-D)].
    What stands outside the mask [N, K] does not matter. ValueError for a row without items.
    """
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("a ranking without items")
    scores = keep(scores, mask)
    behind = mask[:, None, :] & (ranks[:, None, :] >= ranks[:, :, None])
    behind = behind | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)  # padding has itself
    log_remaining = scores[:, None, :].masked_fill(~behind, -math.inf).logsumexp(dim=-1)
    last = mask & (ranks == ranks.masked_fill(~mask, torch.iinfo(ranks.dtype).min).amax(dim=-1, keepdim=True))
    size = last.sum(dim=-1, keepdim=True)
    counted = torch.where(last, (size - 1) / size, mask.to(scores.dtype))
    return (counted * (log_remaining - scores)).sum(dim=-1)


def increasing(free: Tensor) -> Tensor:
    """Increasing numbers [M] from free ones [M]: the first, and each next one softplus(free) above that before it.

    However far a step moves the free numbers, these cannot cross.
    """
    return torch.cat([free[:1], softplus(free[1:])]).cumsum(dim=0)


def ordinal_loss(scores: Tensor, levels: Tensor, cuts: Tensor, *, offsets: Tensor | float = 0.0) -> Tensor:
    """-log P(level) [N] of ratings, from scores [N], int64 levels [N] in 0 ... M and increasing cuts [M].

    P(level <= k) = sigmoid(c_k - r), where r is the score plus the annotator's offset [N]: high is lenient.
    With s the logistic function s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)), which keeps its digits. McCullagh (1980).
    ValueError for a level outside 0 ... M, or cuts that do not increase.
    """
    top = len(cuts)
    if not bool(((levels >= 0) & (levels <= top)).all()):
        raise ValueError(f"levels must be in 0 ... {top}, got {levels.tolist()}")
    if not bool((cuts.diff() > 0).all()):
        raise ValueError(f"cuts must increase, got {cuts.tolist()}")
    judged = scores + offsets
    above, below = cuts[levels.clamp(max=top - 1)], cuts[(levels - 1).clamp(min=0)]
    inside = (levels > 0) & (levels < top)
    gap = torch.where(inside, above - below, 1.0)
    zero = torch.zeros_like(judged)
    loss = torch.where(levels < top, softplus(judged - above), zero)
    loss = loss + torch.where(levels > 0, softplus(below - judged), zero)
    return loss - torch.where(inside, (-torch.expm1(-gap)).log(), zero)


def accept_loss(scores: Tensor, accepted: Tensor, threshold: Tensor | float) -> Tensor:
    """-log P(what was said) [N] of labels, from scores [N] and bool accepted [N]: P(accepted) = sigmoid(r - threshold).

    The cross-entropy of logistic regression (Cox, 1958); `ordinal_loss` of two levels.
    """
    distance = scores - threshold
    return softplus(torch.where(accepted, -distance, distance))
