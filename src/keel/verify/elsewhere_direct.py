"""SimPO and ORPO: trained in expectation over all labelled pairs, and the optimum of each one's loss found otherwise.

The pairs are all two different responses to a prompt, alike often; y beats y' with probability sigmoid(r - r').
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from keel.functional.direct import orpo_loss, simpo_loss
from keel.verify.worlds import World, response_logprobs

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""Mean log-probabilities a token of the chosen and the rejected responses, [M] each -> [M]."""

_STEPS = 400


def simpo(*, beta: float, gamma: float) -> PairLoss:
    """The loss that users run."""
    return lambda chosen, rejected: simpo_loss(chosen, rejected, beta=beta, gamma=gamma)


def orpo(*, lam: float) -> PairLoss:
    """The loss that users run."""
    return lambda chosen, rejected: orpo_loss(chosen, rejected, lam=lam)


def train_on_pairs(world: World, loss: PairLoss) -> Tensor:
    """The table [P, S, V] after L-BFGS from the reference on the loss of every ordered pair, by its probability."""
    first, second = _ordered_pairs(len(world.tree.tokens))
    lengths = world.tree.mask.sum(dim=1)
    chance = torch.sigmoid(world.rewards[:, first] - world.rewards[:, second])
    logits = world.ref_logits.clone().requires_grad_()

    def expected() -> Tensor:
        mean = response_logprobs(world.tree, logits) / lengths
        return (chance * loss(mean[:, first].flatten(), mean[:, second].flatten()).view_as(chance)).mean()

    _minimise(expected, logits)
    return logits.detach()


def simpo_point(world: World, *, beta: float, gamma: float) -> Tensor:
    """pi(y) = exp(T(y) (u(y) / beta + c)) [P, N], c such that it sums to 1.

    u minimises the loss over *free* numbers, one a response: it reads differences alone. Without a margin u = r, by the
    consistency of Bradley and Terry. Newton's method: the loss is convex, and its Hessian is a graph's Laplacian.
    """
    p = torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :])
    u = torch.zeros_like(world.rewards)
    for _ in range(50):
        gap = u[:, :, None] - u[:, None, :]
        won, lost = torch.sigmoid(gamma - gap), torch.sigmoid(gamma + gap)
        slope = (p.mT * lost - p * won).sum(dim=2)
        bend = p * won * (1 - won) + p.mT * lost * (1 - lost)
        bend = bend - torch.diag_embed(bend.diagonal(dim1=1, dim2=2))
        laplacian = torch.diag_embed(bend.sum(dim=2)) - bend
        u = u - torch.linalg.solve(laplacian + 1 / u.shape[1], slope[..., None])[..., 0]
    return _length_tilted(u / beta, world.tree.mask.sum(dim=1))


def orpo_point(world: World, *, lam: float) -> Tensor:
    """The minimum [P, N] of -log p_w - lam log sigmoid(log odds_w - log odds_l) over distributions on the responses.

    L-BFGS on one logit a response, not token by token, from the uniform distribution; the loss is written out anew.
    """
    p = torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :])
    p = p - torch.diag_embed(p.diagonal(dim1=1, dim2=2))
    lengths = world.tree.mask.sum(dim=1)
    free = torch.zeros_like(world.rewards, requires_grad=True)

    def expected() -> Tensor:
        mean = free.log_softmax(dim=1) / lengths
        odds = mean - torch.log1p(-mean.exp())
        return -(p * (mean[:, :, None] + lam * logsigmoid(odds[:, :, None] - odds[:, None, :]))).mean()

    _minimise(expected, free)
    return free.detach().log_softmax(dim=1)


def _length_tilted(per_token: Tensor, lengths: Tensor) -> Tensor:
    """T (per_token + c) with the c [P, 1] at which the exponentials sum to 1, by halving."""
    high = -per_token.amax(dim=1, keepdim=True)  # there one response has probability 1 by itself
    low = high - torch.tensor(float(len(lengths))).log()  # there every response has less than its share
    for _ in range(200):
        middle = (low + high) / 2
        over = (lengths * (per_token + middle)).logsumexp(dim=1, keepdim=True) > 0
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (lengths * (per_token + (low + high) / 2)).log_softmax(dim=1)


def _ordered_pairs(count: int) -> tuple[Tensor, Tensor]:
    both = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    return tuple(both[both[:, 0] != both[:, 1]].T)


def _minimise(loss: Callable[[], Tensor], weights: Tensor) -> None:
    """L-BFGS with a line search, until it stands still."""
    optimiser: Any = torch.optim.LBFGS  # untyped
    search = optimiser(
        [weights],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    search.step(closure)
