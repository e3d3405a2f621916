"""What an ensemble of reward models says of a response, from its members' scores, which have a common zero."""

from __future__ import annotations

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
