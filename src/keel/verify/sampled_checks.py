"""From samples alone: every algorithm, run by the stage that users run, reaches the optimum of its objective.

At the optimum every advantage is 0 on every sample, so the noise vanishes there with the step; what can fail is
exploration: a response that is never drawn teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from keel.report.figures import Curve, Panel, run_colour
from keel.report.figures import Level as Line
from keel.verify.result import Bound, Check, Finding, Group, Level
from keel.verify.training import Course, train_table, world_config
from keel.verify.worlds import Reward, World, bandit, sequences

MEAN_GAP = 0.002  # of J, over prompts
WORST_GAP = 0.01  # of the worst prompt
SEEDS = (0, 1, 2)

_MEMORY = {"betas": (0.9, 0.9999)}  # a scale that remembers the start: the step shrinks as the advantages do
_NO_MEMORY = {"betas": (0.9, 0.95)}
_GRADIENT = {"loss": "policy_gradient", "reduction": "sequence_sum"}  # exactly that of J
_CRITIC = {"critic_lr_scale": 1.0, "value_clip": None}
_CLIPPED = {"minibatches": 2}  # the second one sees a ratio other than 1


@dataclass(frozen=True)
class Algorithm:
    """One line of the recipe's keys under `ppo`, and how long it needs."""

    name: str
    what: str
    advantage: Mapping[str, Any]
    update: Mapping[str, Any]
    kl: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.08
    iterations: int = 500
    level: Level = Level.DEFAULT


ALGORITHMS = (
    Algorithm("reinforce-group", "REINFORCE less the group's mean", {"kind": "dr_grpo"}, _GRADIENT),
    Algorithm("rloo", "RLOO", {"kind": "rloo"}, _GRADIENT),
    Algorithm("a2c-mc", "A2C with returns to go", {"kind": "monte_carlo", "whiten": False}, _GRADIENT | _CRITIC),
    Algorithm("a2c-td", "A2C with one-step advantages", {"kind": "td", "whiten": False}, _GRADIENT | _CRITIC),
    Algorithm("a2c-gae", "A2C with GAE", {"kind": "gae", "whiten": False}, _GRADIENT | _CRITIC),
    Algorithm(
        "ppo-token",
        "PPO with a ratio a token",
        {"kind": "gae"},
        _CLIPPED | _CRITIC,
        lr=0.05,
        iterations=600,
    ),
    Algorithm(
        "ppo-sequence",
        "PPO with a ratio a response",
        {"kind": "sequence"},
        _CLIPPED | _CRITIC | {"ratio": "sequence"},
        lr=0.05,
        iterations=600,
    ),
    Algorithm("gspo", "GSPO with RLOO", {"kind": "rloo"}, _CLIPPED | {"ratio": "gspo"}, lr=0.05, iterations=600),
    Algorithm("reinforce-pp", "REINFORCE++", {"kind": "reinforce_pp"}, {}, lr=0.06, iterations=4000, level=Level.FULL),
    Algorithm("grpo", "GRPO with the KL inside its reward", {"kind": "grpo"}, _CLIPPED, lr=0.05, iterations=600),
    Algorithm("sequence-k2", "RLOO with the sequence's k2 in the loss", {"kind": "rloo"}, _GRADIENT, {"place": "loss"}),
)


def reached(algorithm: Algorithm, world: Callable[[], World], seeds: tuple[int, ...] = SEEDS) -> Finding:
    """At beta = .5, once a seed: how much of J is missing, mean and worst prompt."""
    courses = [_train(algorithm, world(), 0.5, seed) for seed in seeds]
    return _finding(f"{algorithm.what}, {world().name}, β = .5", courses)


def annealed(algorithm: Algorithm, reward: Reward) -> Finding:
    """At beta = .1, with the leash loosened from 1: what is good is found before anything is given up."""
    algorithm = _for_a_changing_beta(algorithm)
    fall = {"anneal_from": 1.0, "anneal_over": algorithm.iterations // 2}
    courses = [_train(algorithm, sequences(reward), 0.1, seed, fall) for seed in SEEDS]
    return _finding(f"{algorithm.what}, {reward}, β from 1 to .1", courses)


def stalled(algorithm: Algorithm) -> Finding:
    """The same, but for the annealing: how much J lacks for want of exploration."""
    algorithm = _for_a_changing_beta(algorithm)
    courses = [_train(algorithm, sequences("independent"), 0.1, seed) for seed in SEEDS]
    mean = min(course.mean_gap[-1] for course in courses)
    panel = _panel(f"{algorithm.what}, independent, β = .1 from the start", courses)
    return Finding((Bound("least mean gap", mean, low=MEAN_GAP),), _numbers(courses), panels=(panel,))


def _for_a_changing_beta(algorithm: Algorithm) -> Algorithm:
    """The advantages shrink with beta, so the scale of a step must not remember the start."""
    return replace(algorithm, update={**algorithm.update, **_NO_MEMORY}, lr=0.1, iterations=800)


def _train(algorithm: Algorithm, world: World, beta: float, seed: int, kl: Mapping[str, Any] | None = None) -> Course:
    config = world_config(
        world,
        beta=beta,
        iterations=algorithm.iterations,
        lr=algorithm.lr,
        advantage=algorithm.advantage,
        update={**_MEMORY, **algorithm.update},
        kl={**algorithm.kl, **(kl or {})},
    )
    return train_table(world, config, seed=seed)


def _finding(title: str, courses: list[Course]) -> Finding:
    """Held to the bounds in every seed."""
    return Finding(
        (
            Bound("mean gap", max(course.mean_gap[-1] for course in courses), high=MEAN_GAP),
            Bound("worst prompt", max(course.worst_gap[-1] for course in courses), high=WORST_GAP),
        ),
        _numbers(courses),
        panels=(_panel(title, courses),),
    )


def _numbers(courses: list[Course]) -> dict[str, float]:
    """The noise floor: where each seed ended."""
    return {
        f"{name}, seed {seed}": gaps[-1]
        for seed, course in zip(SEEDS, courses, strict=False)
        for name, gaps in (("mean gap", course.mean_gap), ("worst prompt", course.worst_gap))
    }


def _panel(title: str, courses: list[Course]) -> Panel:
    means = [Curve(c.iterations, c.mean_gap, colour=run_colour(i), label="mean") for i, c in enumerate(courses)]
    worsts = [
        Curve(c.iterations, c.worst_gap, colour=run_colour(i), style="dotted", label="worst prompt")
        for i, c in enumerate(courses)
    ]
    return Panel(
        title,
        "J(π*) − J(π), exact; a colour a seed.",
        [*means, *worsts],
        [Line(MEAN_GAP, f"bound of the mean, {MEAN_GAP:g}")],
        log_y=True,
    )


_BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}
_STRUCTURED = partial(sequences, "structured")
_PPO, _RLOO = _BY_NAME["ppo-token"], _BY_NAME["rloo"]
_ANNEALED: tuple[tuple[Algorithm, Reward, Level], ...] = (
    (_RLOO, "independent", Level.DEFAULT),
    (_PPO, "independent", Level.FULL),
    (_RLOO, "structured", Level.FULL),
    (_PPO, "structured", Level.FULL),
)

CHECKS = (
    *(
        Check(
            algorithm.name,
            Group.OPTIMUM,
            f"{algorithm.what} reaches π* from samples at β = .5.",
            algorithm.level,
            partial(reached, algorithm, _STRUCTURED),
        )
        for algorithm in ALGORITHMS
    ),
    Check(
        "ppo-token-one-seed",
        Group.OPTIMUM,
        "PPO with a ratio a token reaches π* from samples at β = .5, in one run.",
        Level.QUICK,
        partial(reached, _PPO, _STRUCTURED, SEEDS[:1]),
    ),
    Check(
        "reinforce-pp-bandit",
        Group.OPTIMUM,
        "REINFORCE++ reaches π* of the bandit from samples at β = .5; its one baseline for all prompts is noisier, so "
        "the sequences take it eight times as long (--full).",
        Level.DEFAULT,
        partial(reached, replace(_BY_NAME["reinforce-pp"], iterations=600), bandit),
    ),
    *(
        Check(
            f"{algorithm.name}-annealed-{reward}",
            Group.OPTIMUM,
            f"{algorithm.what} reaches π* of the {reward} reward at β = .1 where β falls from 1.",
            level,
            partial(annealed, algorithm, reward),
        )
        for algorithm, reward, level in _ANNEALED
    ),
    Check(
        "rloo-stalls",
        Group.OPTIMUM,
        "Without annealing RLOO stops short of π* of the independent reward at β = .1: the good is hardly ever drawn.",
        Level.DEFAULT,
        partial(stalled, _RLOO),
    ),
)
