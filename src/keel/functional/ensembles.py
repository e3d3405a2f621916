"""What an ensemble of reward models says of a response, from its members' scores, which have a common zero."""

from __future__ import annotations

import torch
from torch import Tensor


def combine_scores(members: Tensor, how: str = "mean", *, coef: float = 0.0) -> Tensor:
    """One score a response [B] from those of its members [B, k]; the variance is the population's (division by k).

    `mean`; `min`, the worst case; or `uncertainty`, mean - coef * variance, in units of the score and its square.
    ValueError for any other word. Coste et al. (2023), "Reward model ensembles help mitigate overoptimization".
    """
    if how == "mean":
        return members.mean(dim=1)
    if how == "min":
        return members.amin(dim=1)
    if how == "uncertainty":
        return members.mean(dim=1) - coef * members.var(dim=1, correction=0)
    raise ValueError(f"scores are combined by mean, min or uncertainty, not {how!r}")


def disagreement(members: Tensor) -> Tensor:
    """The members' population standard deviation [B], from [B, k]; 0 where they say the same."""
    return members.std(dim=1, correction=0)


def doubt(gaps: Tensor) -> Tensor:
    """How much a label of each pair would tell, in nats [B], from what each member gives as its log-odds [B, k].

    Of several members the mutual information of the label and the member, H(mean p) - mean H(p): high where each is
    sure and they contradict each other, and 0 where they agree that it is a toss. Houlsby et al. (2011), "Bayesian
    active learning for classification and preference learning". Of a single one, of which that is always 0, H(p).
    """
    probabilities = torch.sigmoid(gaps)
    overall = _entropy(probabilities.mean(dim=1))
    return overall if gaps.shape[1] == 1 else (overall - _entropy(probabilities).mean(dim=1)).clamp(min=0.0)


def _entropy(probability: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return entropy
