"""Without any sampling: the two forms of the optimum agree, and the exact gradient leads there (math.md §2)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from keel.seeds import Draws
from keel.verify import exact
from keel.verify.result import Bound, Check, Finding, Group, Level
from keel.verify.worlds import World, bandit, response_logprobs, sequences

GAP = {0.5: 1e-5, 0.1: 1e-3}  # by beta
_ASCENT_STEPS = 40
_IDENTITY = 1e-10


def worlds() -> list[World]:
    """The bandit and both worlds of sequences."""
    return [bandit(), sequences("structured"), sequences("independent")]


def identity(beta: float) -> Finding:
    """At policies drawn at random: J(pi*) - J(pi) = beta KL(pi || pi*); pi* from Z and from soft values W."""
    shortfall, two_forms, advantage = 0.0, 0.0, 0.0
    for world in worlds():
        noise = Draws(0, "verify identity").generator(world.name).standard_normal(tuple(world.ref_logits.shape))
        logits = world.ref_logits + torch.from_numpy(noise)
        missing = exact.optimal_value(world, beta) - exact.objective(world, logits, beta)
        shortfall = max(shortfall, _largest(missing - exact.gap(world, logits, beta)))
        best = exact.optimal_logits(world, beta)
        two_forms = max(two_forms, _largest(response_logprobs(world.tree, best) - exact.optimal_logprobs(world, beta)))
        advantage = max(advantage, _largest(_returns_to_go(world, best, beta)))
    return Finding(
        (
            Bound("J* − J − β·KL", shortfall, high=_IDENTITY),
            Bound("π* two ways", two_forms, high=_IDENTITY),
            Bound("advantages at π*", advantage, high=_IDENTITY),
        )
    )


def ascent(beta: float) -> Finding:
    """Climb the exact gradient of J from the reference; how much of J is then missing."""
    bounds = []
    for world in worlds():
        gap = exact.gap(world, climb(world, beta), beta)
        bounds.append(Bound(f"worst gap, {world.name}", float(gap.max()), high=GAP[beta]))
    return Finding(tuple(bounds))


def climb(world: World, beta: float) -> Tensor:
    """The table [P, S, V] after natural-gradient steps on sum_x J(x), half of a full policy iteration each.

    A plain step must be small enough for the state that is met most, and then takes for ever where one is hardly met;
    the Fisher matrix of a table is diagonal up to a constant a state, so dividing by d(s) pi(a|s) makes them alike.
    """
    logits = world.ref_logits.clone()
    for _ in range(_ASCENT_STEPS):
        met = exact.visits(world, logits)[..., None] * logits.softmax(dim=-1)
        logits += 0.5 / beta * exact.gradient(world, logits, beta) / met
    return logits


def _returns_to_go(world: World, logits: Tensor, beta: float) -> Tensor:
    """At every token of every response: r - beta x the log-ratios from there on, less W(s); [P, N, T]."""
    tree = world.tree
    log_ratio = logits.log_softmax(dim=-1) - world.ref_logits.log_softmax(dim=-1)
    price = beta * log_ratio[:, tree.states, tree.tokens].where(tree.mask, 0.0)
    to_go = world.rewards[..., None] - price.flip(-1).cumsum(dim=-1).flip(-1)
    value = exact.soft_values(world, beta)[0][:, tree.states]
    return (to_go - value).where(tree.mask, 0.0)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


CHECKS = tuple(
    check
    for beta in GAP
    for check in (
        Check(
            f"identity-{beta:g}",
            Group.OPTIMUM,
            f"At β = {beta:g} J(π*) − J(π) is β·KL(π‖π*) for any π, the response form of π* is its token form, and at "
            "π* every return-to-go equals the soft value.",
            Level.QUICK,
            partial(identity, beta),
        ),
        Check(
            f"exact-gradient-{beta:g}",
            Group.OPTIMUM,
            f"Ascent on the exact gradient of J reaches π* at β = {beta:g} in every world.",
            Level.QUICK,
            partial(ascent, beta),
        ),
    )
)
