"""What a loss of preferences leads to when it is given every pair there is: no sampling, and minimised to the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keel.functional.preference import bradley_terry_probability

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""(of the chosen, of the rejected) -> one loss a pair."""

_STEEPNESS = 1e-10  # of the largest slope, at which it is the minimum


def all_labels(logprobs: Tensor, rewards: Tensor, *, temperature: float = 1.0, flips: float = 0.0) -> Tensor:
    """The probability [P, N, N] of the label "i beats j", i and j being different draws from `logprobs` [P, N].

    Labels are Bradley-Terry on `rewards` [P, N] at the annotator's `temperature`; a share `flips` is then turned round.
    """
    beats = bradley_terry_probability(rewards[:, :, None], rewards[:, None, :], temperature=temperature)
    asked = 2 * (logprobs[:, :, None] + logprobs[:, None, :]).exp()
    return asked * ((1 - flips) * beats + flips * (1 - beats)) * (1 - torch.eye(rewards.shape[1], dtype=rewards.dtype))


def expected_loss(labels: Tensor, loss: PairLoss, values: Tensor) -> Tensor:
    """The sum over prompts of the mean loss over `labels` [P, N, N], a scalar, from a value a response [P, N]."""
    return (labels * loss(values[:, :, None], values[:, None, :])).sum()


def curvature(labels: Tensor) -> Tensor:
    """[P, N], how much the labels tell of each response: the diagonal of the Hessian of Bradley-Terry at their scores.

    A pair that is asked about with probability q, and won with p, tells q p (1 - p).
    """
    asked = labels + labels.transpose(1, 2)
    return torch.where(asked > 0, labels * labels.transpose(1, 2) / asked, 0.0).sum(dim=2)


def minimise(loss: Callable[[Tensor], Tensor], bends: Tensor) -> Tensor:
    """The values [P, N] at which `loss` is least, by L-BFGS from 0, in units that make its curvature `bends` [P, N] 1.

    Without those units the responses that are hardly ever drawn would take for ever. A line search ends where the loss
    has no digits left to fall by; steps that look at the gradient alone then give the other half of the digits.
    """
    unit = bends.rsqrt()
    point = torch.zeros_like(unit).requires_grad_()

    def run(line_search: str | None, steps: int) -> None:
        optimiser = torch.optim.LBFGS(
            [point],
            max_iter=steps,
            history_size=50,
            tolerance_grad=_STEEPNESS,
            tolerance_change=0.0,
            line_search_fn=line_search,
        )

        def value() -> Tensor:
            optimiser.zero_grad()
            here = loss(unit * point)
            here.backward()  # type: ignore[no-untyped-call]  # torch's stub
            return here

        optimiser.step(value)  # type: ignore[no-untyped-call]  # torch's stub

    run("strong_wolfe", 100)
    run(None, 20)
    return (unit * point).detach()
