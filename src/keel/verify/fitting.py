"""What a loss of preferences leads to when it is given every pair there is: no sampling, and minimised to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from keel.functional.preference import bradley_terry_probability

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""(of the chosen, of the rejected) -> one loss a pair."""

_STEEPNESS = 1e-10  # of the largest slope, at which it is the minimum


@dataclass(frozen=True)
class AllPairs:
    """Each pair of two different responses among N once, M in all, for P prompts."""

    first: Tensor  # int64 [M]
    second: Tensor  # int64 [M]
    share: Tensor  # [P, M], how probable it is to be asked about
    wins: Tensor  # [P, M], the probability that the label is "first beats second"

    def expected(self, loss: PairLoss, values: Tensor) -> Tensor:
        """The sum over prompts of the mean loss over pairs and labels, a scalar, from a value a response [P, N]."""
        first, second = values[:, self.first], values[:, self.second]
        return (self.share * (self.wins * loss(first, second) + (1 - self.wins) * loss(second, first))).sum()

    def curvature(self) -> Tensor:
        """[P, N], how much the labels tell of each response: the diagonal of the Hessian of Bradley-Terry at r."""
        told = self.share * self.wins * (1 - self.wins)
        responses = int(self.second.max()) + 1
        return (
            torch.zeros(len(told), responses, dtype=told.dtype)
            .index_add(1, self.first, told)
            .index_add(1, self.second, told)
        )


def all_pairs(logprobs: Tensor, rewards: Tensor, *, temperature: float = 1.0, flips: float = 0.0) -> AllPairs:
    """Both responses of a pair drawn from `logprobs` [P, N], labelled by Bradley-Terry on `rewards` [P, N].

    `temperature` is the annotator's; a share `flips` of the labels is then turned round.
    """
    count = rewards.shape[1]
    first, second = torch.triu_indices(count, count, offset=1)
    wins = bradley_terry_probability(rewards[:, first], rewards[:, second], temperature=temperature)
    share = 2 * (logprobs[:, first] + logprobs[:, second]).exp()
    return AllPairs(first, second, share, (1 - flips) * wins + flips * (1 - wins))


def minimise(loss: Callable[[Tensor], Tensor], curvature: Tensor) -> Tensor:
    """The values [P, N] at which `loss` is least, by L-BFGS from 0, in units in which its `curvature` [P, N] is 1.

    Without those units the responses that are hardly ever drawn would take for ever. A line search ends where the loss
    has no digits left to fall by; steps that look at the gradient alone then give the other half of the digits.
    """
    unit = curvature.rsqrt()
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
