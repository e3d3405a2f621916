"""How noisy the unbiased policy gradients are at stated policies, exactly (math.md §5).

What is called the variance is the trace of the covariance of one response's gradient in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from keel.functional import advantages as estimate
from keel.report.figures import Curve, Panel
from keel.report.figures import Level as Mark
from keel.verify.enumeration import Enumeration, all_groups
from keel.verify.estimators import WAYS, first_prompt, on_the_way
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.worlds import World, sequences

_LADDER = ("td", "gae λ = 0.5", "gae λ = 0.95", "monte_carlo")  # λ rises
_AT_THE_OPTIMUM = ("sequence", "rloo, n = 2", *_LADDER)
_DRAWN = {"reward_to_go": "dashed", "rloo, n = 2": "", "sequence": "solid", "td": "dotted"}  # as a line, or as points
_NOTHING = 1e-20
_PICTURE = tuple(step / 5 for step in range(-2, 6))


def variances() -> Finding:
    """A table of variances at the stated policies, what must hold among them, and their course on the way."""
    world = first_prompt(sequences("structured"))
    found = {name: spread(on_the_way(world, way)) for name, way in WAYS.items()}
    rows = tuple((kind, *(f"{found[name][kind]:.3g}" for name in WAYS)) for kind in found["half-way"])
    return Finding(
        tuple(claims(found)),
        tables=(Table("Variance of a response's gradient, first prompt, V exact", ("estimator", *WAYS), rows),),
        panels=(_picture(world),),
    )


def spread(space: Enumeration) -> Mapping[str, float]:
    """The variance of each estimator; every V is exact."""
    values = space.values(space.state_values)
    pairs = all_groups(space, 2)
    return {
        "reinforce": space.variance(space.advantages(estimate.reinforce)),
        "reward_to_go": space.variance(space.advantages(estimate.reward_to_go)),
        "rloo, n = 2": pairs.variance(pairs.advantages(estimate.rloo)),
        "sequence": space.variance(space.advantages(estimate.sequence, values=values)),
        "monte_carlo": space.variance(space.advantages(estimate.monte_carlo, values=values)),
        "gae λ = 0.95": space.variance(space.advantages(estimate.gae, values=values, lam=0.95)),
        "gae λ = 0.5": space.variance(space.advantages(estimate.gae, values=values, lam=0.5)),
        "td": space.variance(space.advantages(estimate.td, values=values)),
    }


def claims(found: Mapping[str, Mapping[str, float]]) -> list[Bound]:
    """What must hold among the variances of the estimators at the stated policies."""
    on_the_road = [found[name] for name in ("away", "reference", "half-way")]
    steps = [here[low] / here[high] for here in on_the_road for low, high in pairwise(_LADDER)]
    to_go = {name: here["reward_to_go"] / here["reinforce"] for name, here in found.items()}
    half = found["half-way"]
    return [
        Bound("V: monte_carlo / reward_to_go", max(x["monte_carlo"] / x["reward_to_go"] for x in on_the_road), high=1),
        Bound("V: sequence / reinforce, half-way", half["sequence"] / half["reinforce"], high=1),
        Bound("a smaller λ / a larger one", max(steps), high=1),
        Bound("reward_to_go / reinforce, away", to_go["away"], high=0.99),
        Bound("reward_to_go / reinforce, half-way", to_go["half-way"], low=1.01),
        Bound("exact baselines at the optimum", max(found["optimum"][kind] for kind in _AT_THE_OPTIMUM), high=_NOTHING),
    ]


def _picture(world: World) -> Panel:
    courses = [spread(on_the_way(world, way)) for way in _PICTURE]
    return Panel(
        "Variance, as a share of REINFORCE's",
        "Near the optimum (1) the price already paid and what is still to come balance each other: reward-to-go drops "
        "the one and is noisier than REINFORCE. What has an exact baseline falls to 0, as every advantage does there.",
        [
            Curve(
                _PICTURE,
                [course[kind] / course["reinforce"] for course in courses],
                style=style,
                marker="" if style else "o",
                label=kind,
            )
            for kind, style in _DRAWN.items()
        ],
        levels=[Mark(1.0, "reinforce")],
        x_label="from the reference (0) to the optimum (1)",
    )


CHECKS = (
    Check(
        "gradient-variances",
        Group.ESTIMATORS,
        "At these policies an exact V lowers the variance, a smaller λ lowers it further, and nothing is left of it at "
        "the optimum; reward-to-go is below REINFORCE at one policy and above it at another.",
        Level.QUICK,
        variances,
    ),
)
