"""Direct methods on every pair there is: where they lead without sampling (math.md §7)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from keel.functional.direct import dpo_loss, ipo_loss
from keel.functional.preference import bradley_terry_probability
from keel.verify import exact
from keel.verify.exact_checks import climb, worlds
from keel.verify.fitting import PairLoss, all_labels, curvature, expected_loss, minimise
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.worlds import World, response_logprobs, sequences

GAP = 1e-4
_SCALE = 2.0  # of the scores that are divided
_SMOOTHING = 0.1
_APART = 0.005  # what a method that aims elsewhere must keep from the optimum


def dpo(beta: float) -> Finding:
    """How much of J is missing where DPO ends."""
    bounds = []
    for world in worlds():
        reached = trained(world, labelled(world), partial(dpo_loss, beta=beta), beta)
        missing = beta * exact.kl(reached, exact.optimal_logprobs(world, beta))
        bounds.append(Bound(f"worst gap, {world.name}", float(missing.max()), high=GAP))
    return Finding(tuple(bounds))


def ipo(beta: float) -> Finding:
    """How far IPO ends from its own optimum, and from the one of J."""
    bounds = []
    for world in worlds():
        reached = trained(world, labelled(world), partial(ipo_loss, beta=beta), beta)
        own = beta * exact.kl(reached, ipo_optimum(world, beta))
        missing = beta * exact.kl(reached, exact.optimal_logprobs(world, beta))
        bounds.append(Bound(f"worst gap to its own, {world.name}", float(own.max()), high=GAP))
        bounds.append(Bound(f"mean gap to π*, {world.name}", float(missing.mean()), low=_APART))
    return Finding(tuple(bounds))


def scaled(beta: float) -> Finding:
    """The leashed objective on scores divided by s, and DPO on the labels of the undivided ones."""
    world = sequences("structured")
    divided = replace(world, rewards=world.rewards / _SCALE)
    climbed = response_logprobs(world.tree, climb(divided, beta))
    direct = trained(world, labelled(world), partial(dpo_loss, beta=_SCALE * beta), _SCALE * beta)
    alike = trained(world, labelled(world), partial(dpo_loss, beta=beta), beta)
    return Finding(
        (
            Bound("β_DPO = s·β_PPO: worst KL", float(exact.kl(direct, climbed).max()), high=GAP),
            Bound("β_DPO = β_PPO: mean KL", float(exact.kl(alike, climbed).mean()), low=_APART),
        )
    )


def smoothing(beta: float) -> Finding:
    """Where DPO goes when its labels are smoothed."""
    rows, bounds = [], []
    for world in worlds():
        best = exact.optimal_logprobs(world, beta)
        reached = trained(world, labelled(world), partial(dpo_loss, beta=beta, label_smoothing=_SMOOTHING), beta)
        missing = beta * exact.kl(reached, best)
        bounds.append(Bound(f"mean gap to π*, {world.name}", float(missing.mean()), low=_APART))
        rows.append((world.name, *_place(world, best), *_place(world, reached), f"{float(missing.mean()):.4f}"))
    header = ("world", "score at π*", "KL at π*", "score, smoothed", "KL, smoothed", "gap")
    return Finding(
        tuple(bounds), tables=(Table(f"DPO with smoothing {_SMOOTHING} at β = {beta:g}", header, tuple(rows)),)
    )


def labelled(world: World) -> Tensor:
    """All labels, both responses from the reference, by the world's reward, [P, N, N]."""
    return all_labels(response_logprobs(world.tree, world.ref_logits), world.rewards)


def trained(world: World, labels: Tensor, loss: PairLoss, beta: float) -> Tensor:
    """log pi [P, N] of the policy, free in every response, that minimises a loss of log-ratios over the labels.

    Its parameters are beta x log-ratios up to a constant: a step in them is a step of 1 / beta in the logits.
    """
    ref = response_logprobs(world.tree, world.ref_logits)

    def policy(implicit_rewards: Tensor) -> Tensor:
        return (ref + implicit_rewards / beta).log_softmax(dim=1)

    return policy(minimise(lambda values: expected_loss(labels, loss, policy(values) - ref), curvature(labels)))


def ipo_optimum(world: World, beta: float) -> Tensor:
    """log of pi_ref(y) exp(E_y'[P(y beats y')] / beta) / Z, y' from the reference, [P, N]."""
    ref = response_logprobs(world.tree, world.ref_logits)
    beats = bradley_terry_probability(world.rewards[:, :, None], world.rewards[:, None, :])
    return (ref + (beats * ref.exp()[:, None, :]).sum(dim=2) / beta).log_softmax(dim=1)


def _place(world: World, logprobs: Tensor) -> tuple[str, str]:
    """Mean score and mean KL of a policy, as words."""
    score = (logprobs.exp() * world.rewards).sum(dim=1).mean()
    distance = exact.kl(logprobs, response_logprobs(world.tree, world.ref_logits)).mean()
    return f"{float(score):.3f}", f"{float(distance):.3f}"


CHECKS = (
    *(
        check
        for beta in (0.5, 0.1)
        for check in (
            Check(
                f"dpo-{beta:g}",
                Group.DIRECT,
                f"DPO on all pairs, labelled by Bradley–Terry on r, reaches the π* of J at β = {beta:g}.",
                Level.QUICK,
                partial(dpo, beta),
            ),
            Check(
                f"ipo-{beta:g}",
                Group.DIRECT,
                f"IPO at β = {beta:g} reaches its own optimum, π_ref·exp(E[P(y beats another)]/β)/Z, which is not π*.",
                Level.QUICK,
                partial(ipo, beta),
            ),
        )
    ),
    Check(
        "dpo-scaled",
        Group.DIRECT,
        f"On scores divided by s = {_SCALE:g}, the leashed objective at β = 0.25 and DPO at s·β end in one policy; at "
        "the same β they do not.",
        Level.QUICK,
        partial(scaled, 0.25),
    ),
    Check(
        "dpo-smoothing",
        Group.DIRECT,
        "Label smoothing is no model of noise: DPO with it stops short of π*.",
        Level.DEFAULT,
        partial(smoothing, 0.5),
    ),
)
