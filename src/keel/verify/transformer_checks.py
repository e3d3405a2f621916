"""A real transformer, trained by the stages and engines that users run, comes near the optimum as a table does.

It is held to a looser bound: a few thousand weights that serve every prompt express π* only so well, and take many
more steps than a table to get there. How near it can come is a check of its own, and the bound stands above that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from keel.config.direct import DirectConfig
from keel.config.ppo import PPOConfig
from keel.report.figures import Curve, Panel, run_colour
from keel.report.figures import Level as Line
from keel.verify import exact
from keel.verify.result import Bound, Check, Finding, Group, Level
from keel.verify.training import world_config
from keel.verify.transformer import fit_exactly, start, train_on_preferences, train_transformer, world_around
from keel.verify.worlds import World

BETA = 1.0
MEAN_GAP = 0.03  # of J, over prompts
WORST_GAP = 0.15  # of the worst prompt
_RESPONSES = 512  # an iteration
_STEPS = {"epochs": 4, "minibatches": 4}
_TOKENS = {"reduction": "sequence_sum", **_STEPS}
_GRADIENT = {"reduction": "sequence_sum", "loss": "policy_gradient"}
_CRITIC = {"critic_lr_scale": 3.0, "value_clip": None}


@dataclass(frozen=True)
class Algorithm:
    """Keys of a recipe's `ppo`, and how long they need."""

    name: str
    what: str
    advantage: Mapping[str, Any]
    update: Mapping[str, Any]
    kl: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 180
    lr: float = 6e-3
    level: Level = Level.FULL


_GAE = {"kind": "gae", "whiten": False}
_RLOO = {"kind": "rloo"}
ALGORITHMS = (
    Algorithm("ppo", "PPO", _GAE, _TOKENS | _CRITIC, iterations=220, level=Level.DEFAULT),
    Algorithm("rloo", "RLOO", _RLOO, _TOKENS, level=Level.DEFAULT),
    Algorithm("a2c", "A2C", _GAE, _GRADIENT | _CRITIC, iterations=1500),
    Algorithm("grpo", "GRPO with the KL inside its reward", {"kind": "grpo"}, _TOKENS),
    Algorithm("reinforce-pp", "REINFORCE++", {"kind": "reinforce_pp"}, _TOKENS, iterations=500),
    Algorithm("gspo", "GSPO with RLOO", _RLOO, {"ratio": "gspo", **_STEPS}, iterations=400),
    Algorithm("sequence-k2", "RLOO with the sequence's k2 in the loss", _RLOO, _TOKENS, kl={"place": "loss"}),
    Algorithm(
        "ppo-sequence",
        "PPO with a ratio a response",
        {"kind": "sequence", "whiten": False},
        {"ratio": "sequence", **_STEPS, **_CRITIC},
        iterations=220,
    ),
)


def settings(algorithm: Algorithm, world: World) -> PPOConfig:
    """The stage's configuration. Several steps a rollout where the loss allows: they cost less than samples here."""
    return world_config(
        world,
        beta=BETA,
        iterations=algorithm.iterations,
        lr=algorithm.lr,
        rollout_batch=_RESPONSES,
        per_prompt=_RESPONSES // world.num_prompts,
        sampling={"batch": _RESPONSES},
        advantage=algorithm.advantage,
        update=algorithm.update,
        kl=algorithm.kl,
    )


def reached(algorithm: Algorithm) -> Finding:
    """How much of J is missing at the end, mean and worst prompt; the picture shows the way."""
    backbone = start()
    world = world_around(backbone)
    config = settings(algorithm, world)
    course = train_transformer(world, backbone, config, seed=0)
    curves = [
        Curve(course.iterations, course.mean_gap, colour=run_colour(0), label="mean"),
        Curve(course.iterations, course.worst_gap, colour=run_colour(0), style="dotted", label="worst prompt"),
    ]
    bound = Line(MEAN_GAP, f"bound of the mean, {MEAN_GAP:g}")
    panel = Panel(f"{algorithm.what}, a transformer", "J(π*) − J(π), exact.", curves, [bound], log_y=True)
    return _finding(world, course.logits, panel)


def expressed() -> Finding:
    """The gap that 500 steps on the exact J leave: what such a model can express, and learn without any noise."""
    backbone = start()
    world = world_around(backbone)
    return _finding(world, fit_exactly(world, backbone, beta=BETA, steps=500, lr=6e-3))


def preferred() -> Finding:
    """DPO on pairs of the reference's responses."""
    backbone = start()
    world = world_around(backbone)
    config = DirectConfig(
        kind="dpo",
        beta=BETA,
        lr=6e-3,
        warmup=0.02,
        epochs=30,
        batch=world.num_prompts,
        max_pairs=128,
        token_budget=1 << 16,
        betas=(0.9, 0.99),
        max_grad_norm=1e9,
        validate_every=1 << 16,
        checkpoint_every=1 << 16,
    )
    return _finding(world, train_on_preferences(world, backbone, config, pairs=2000, seed=0))


def _finding(world: World, logits: Tensor, *panels: Panel) -> Finding:
    gap = exact.gap(world, logits, BETA)
    before = exact.gap(world, world.ref_logits, BETA)
    return Finding(
        (
            Bound("mean gap", float(gap.mean()), high=MEAN_GAP),
            Bound("worst prompt", float(gap.max()), high=WORST_GAP),
        ),
        {"mean gap at the start": float(before.mean())},
        panels=panels,
    )


CHECKS = (
    Check(
        "transformer-expresses",
        Group.TRANSFORMER,
        f"A transformer of 7,000 parameters comes within the bound of π* at β = {BETA:g} by ascent on the exact J.",
        Level.DEFAULT,
        expressed,
    ),
    *(
        Check(
            f"transformer-{algorithm.name}",
            Group.TRANSFORMER,
            f"{algorithm.what} takes the transformer to π* from samples at β = {BETA:g}.",
            algorithm.level,
            partial(reached, algorithm),
        )
        for algorithm in ALGORITHMS
    ),
    Check(
        "transformer-dpo",
        Group.TRANSFORMER,
        f"DPO on preferences drawn from the same reward takes the transformer to the same π* at β = {BETA:g}.",
        Level.DEFAULT,
        preferred,
    ),
)
