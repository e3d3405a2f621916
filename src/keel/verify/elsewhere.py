"""Those that aim elsewhere: trained by the functions users run, each must come to its own fixed point and not to pi*.

Distances are to a method's own point: KL(own || pi) as a share of KL(own || pi*), prompt by prompt; 0 on its own point,
1 on the optimum of J.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from keel.report.figures import Curve, Panel
from keel.verify import elsewhere_direct as direct
from keel.verify import elsewhere_points as points
from keel.verify import exact
from keel.verify.elsewhere_training import every_group, every_response, train_expected
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.training import train_table, world_config
from keel.verify.worlds import World, bandit, response_logprobs, sequences

BETA = 0.5  # of pi*, also where a method has no beta of its own or 0
SHARE = 0.1  # of the way from its own point to pi*
NEAR = 0.005  # nats: close enough, where its own point is itself near pi*
_GROUP = 4


@dataclass(frozen=True)
class Case:
    """A method in a world: where it should come to, log-probabilities [P, N], and the table [P, S, V] it comes to."""

    world: Callable[[], World]
    point: Callable[[World], Tensor]
    train: Callable[[World], Tensor]


def arrives(case: Case) -> Finding:
    """Train, and measure from where it should be and from the optimum of J at BETA."""
    world = case.world()
    own, landed = case.point(world), case.train(world)
    pi, best = response_logprobs(world.tree, landed), exact.optimal_logprobs(world, BETA)
    to_own, own_to_best, to_best = _kl(own, pi), _kl(own, best), _kl(pi, best)
    share = to_own / own_to_best.clamp(min=NEAR / SHARE)
    row = [float(value.mean()) for value in (to_own, own_to_best, to_best, BETA * to_best)]
    return Finding(
        (
            Bound("worst prompt's share of the way to π*", float(share.max()), high=SHARE),
            Bound("KL(π‖π*)", row[2], low=row[1] / 2),
        ),
        {"kl_own_pi": row[0], "kl_own_best": row[1], "kl_pi_best": row[2], "missing_objective": row[3]},
        (
            Table(
                f"Where it lands, {world.name}, β = {BETA:g} (nats a response, mean over prompts)",
                ("measured in", "KL(own‖π)", "KL(own‖π*)", "KL(π‖π*)", "J(π*) − J(π)"),
                ((world.name, *(f"{value:.3g}" for value in row)),),
            ),
        ),
        (_picture(world, landed, own),),
    )


def _kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL [P] where the first may have responses without any probability."""
    return (logprobs.exp() * (logprobs - other).masked_fill(logprobs.isneginf(), 0.0)).sum(dim=1)


def _picture(world: World, landed: Tensor, own: Tensor) -> Panel:
    """The first token of the first prompt's responses: reference, optimum, own point, and where training ended."""
    landed_first = landed[0, 0].softmax(dim=-1)
    lines = (
        ("π_ref", world.ref_logits[0, 0].softmax(dim=-1), "muted", "dotted", ""),
        ("π*", exact.optimal_logits(world, BETA)[0, 0].exp(), "ink", "dashed", ""),
        ("own point", _first_token(world, own[0]), "run0", "solid", ""),
        ("trained", landed_first, "run1", "", "o"),
    )
    symbols = list(range(world.tree.num_symbols))
    return Panel(
        f"First token, {world.name}",
        "Probability of each first token of a response to the first prompt.",
        [Curve(symbols, probs.tolist(), colour, style, marker, label) for label, probs, colour, style, marker in lines],
        x_label="token",
        percent=True,
    )


def _first_token(world: World, logprobs: Tensor) -> Tensor:
    """From log-probabilities of responses [N] to probabilities of their first tokens [V]."""
    probs = torch.zeros(world.tree.num_symbols, dtype=logprobs.dtype)
    return probs.index_add(0, world.tree.tokens[:, 0], logprobs.exp())


def _expected(
    world: World, *, beta: float = BETA, groups: int = 0, iterations: int = 200, lr: float = 0.2, **changes: Any
) -> Tensor:
    """Trained in expectation, over all responses, or over all groups of so many."""
    config = world_config(world, beta=beta, iterations=iterations, lr=lr, **changes)
    return train_expected(world, config, every_group(world, groups) if groups else every_response(world))


def _sampled(world: World, **changes: Any) -> Tensor:
    """Trained by the stage on samples."""
    return train_table(world, world_config(world, beta=BETA, iterations=150, lr=0.1, **changes), seed=0).logits


_structured = partial(sequences, "structured")
_RETURNS = {"kind": "reward_to_go", "whiten": False}
_K2 = {"place": "loss", "estimator": "token_k2"}
_K3 = {"place": "loss", "estimator": "token_k3"}
_SIMPO = {"beta": BETA, "gamma": 0.25}


def _case(
    world: Callable[[], World], point: Callable[..., Tensor], train: Callable[..., Tensor], **settings: Any
) -> Case:
    """A case at BETA whose training has these settings."""
    return Case(world, partial(point, beta=BETA), partial(train, **settings))


def _simpo(world: World) -> Tensor:
    return direct.train_on_pairs(world, direct.simpo(**_SIMPO))


def _orpo(world: World) -> Tensor:
    return direct.train_on_pairs(world, direct.orpo(lam=1.0))


def _simpo_point(world: World) -> Tensor:
    return direct.simpo_point(world, **_SIMPO)


def _orpo_point(world: World) -> Tensor:
    return direct.orpo_point(world, lam=1.0)


_CASES: dict[str, tuple[str, Level, Case]] = {
    "token-k2": (
        "Token-summed k2 in the loss: each state tilts by E[r | s, a], blind to the KL that follows.",
        Level.DEFAULT,
        _case(_structured, points.token_k2, _expected, advantage=_RETURNS, kl=_K2),
    ),
    "token-k3": (
        "Token k3 in the loss: π = β π_ref / (λ − Q) in every state, the forward KL's optimum.",
        Level.DEFAULT,
        _case(_structured, points.token_k3, _expected, advantage=_RETURNS, kl=_K3),
    ),
    "token-k3-bandit": (
        "Token k3 in the loss, one token: π = β π_ref / (λ − r).",
        Level.DEFAULT,
        _case(bandit, points.token_k3, _expected, advantage=_RETURNS, kl=_K3),
    ),
    "discount": (
        "γ = 0.9: soft values that fade, the longer a response goes on.",
        Level.DEFAULT,
        _case(_structured, partial(points.discounted, gamma=0.9), _expected, advantage=_RETURNS | {"gamma": 0.9}),
    ),
    "entropy-bonus": (
        "Entropy bonus 0.1: (π_ref^β e^Q)^(1/(β + 0.1)) in every state, blind to the entropy that follows.",
        Level.DEFAULT,
        _case(
            _structured,
            partial(points.entropy_bonus, coef=0.1),
            _expected,
            advantage=_RETURNS,
            update={"entropy_coef": 0.1},
        ),
    ),
    "sequence-mean": (
        "sequence_mean without a baseline: π_ref exp((r − C·T)/β), which favours short responses.",
        Level.DEFAULT,
        _case(
            _structured,
            points.sequence_mean,
            _expected,
            advantage={"kind": "reinforce", "whiten": False},
            update={"reduction": "sequence_mean"},
        ),
    ),
    "whitened-score": (
        "Scores whitened over the rollout, sampled: π* at β·sd of the policy's own scores.",
        Level.DEFAULT,
        _case(
            bandit, points.whitened_score, _sampled, advantage={"kind": "rloo"}, per_prompt=8, shaping={"whiten": True}
        ),
    ),
    "grpo-groups-of-4": (
        "Score-only GRPO with the KL in the loss, groups of 4: held where E[(r − mean)/sd] meets the leash.",
        Level.DEFAULT,
        _case(
            bandit,
            partial(points.grpo_groups, size=_GROUP),
            _expected,
            groups=_GROUP,
            advantage={"kind": "grpo"},
            per_prompt=_GROUP,
            kl={"place": "loss"},
        ),
    ),
    "grpo-groups-of-128": (
        "The same with groups of 128, sampled: β·sd(r) falls with the policy's own spread, and it collapses.",
        Level.DEFAULT,
        _case(
            bandit,
            points.grpo_large_groups,
            _sampled,
            advantage={"kind": "grpo"},
            per_prompt=128,
            kl={"place": "loss"},
        ),
    ),
    "no-leash": (
        "Clip only with β = 0, four epochs: all mass on the best response.",
        Level.DEFAULT,
        Case(bandit, points.argmax, partial(_expected, beta=0.0, advantage=_RETURNS, update={"epochs": 4})),
    ),
    "simpo": (
        "SimPO on all pairs: exp(T(y)·(u(y)/β + c)), without a reference.",
        Level.DEFAULT,
        Case(bandit, _simpo_point, _simpo),
    ),
    "orpo": (
        "ORPO on all pairs: the optimum of its own loss, without a reference.",
        Level.DEFAULT,
        Case(bandit, _orpo_point, _orpo),
    ),
    "no-leash-sequences": (
        "Clip only with β = 0 on sequences, in small steps: larger ones stop at a response that is nearly as good.",
        Level.FULL,
        Case(
            _structured,
            points.argmax,
            partial(_expected, beta=0.0, iterations=600, lr=0.02, advantage=_RETURNS, update={"epochs": 4}),
        ),
    ),
    "simpo-sequences": (
        "SimPO on all pairs of responses of unequal length: the length mean raises good long ones.",
        Level.FULL,
        Case(_structured, _simpo_point, _simpo),
    ),
    "orpo-sequences": (
        "ORPO on all pairs of responses of unequal length.",
        Level.FULL,
        Case(_structured, _orpo_point, _orpo),
    ),
}

CHECKS = tuple(
    Check(f"elsewhere-{name}", Group.ELSEWHERE, claim, level, partial(arrives, case))
    for name, (claim, level, case) in _CASES.items()
)
