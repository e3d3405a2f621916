"""The rules that report and pages share: on curves as they come from a run at work. Their ranges: tests/report."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from keel.instruments.concerns import Concern, of_evaluations, of_ppo, of_reward, of_training


@dataclass(frozen=True)
class Points:
    xs: Sequence[float]
    ys: Sequence[float]


def curve(*values: float) -> Points:
    return Points(array("d", range(1, len(values) + 1)), array("d", values))


def told(curves: Mapping[str, Points], progress: float = 1.0, **about: Any) -> list[str]:
    settings = {"spent": None, "limits": {}, "since": None} | about
    return [concern.sentence for concern in of_ppo(curves, progress=progress, **settings)]


def test_what_was_not_finite_counts_neither_way() -> None:
    nan = math.nan
    assert told({"objective/ended": curve(1.0, 1.0, nan, nan)}) == []
    assert told({"ppo/policy/clipfrac": curve(0.1, 0.3, nan)}) == [
        "30% of the tokens are clipped: the steps are too large."
    ]
    assert told({"objective/kl": curve(nan, 1.0), "objective/ended": curve(nan)}) == []


def test_each_kl_is_held_against_the_error_of_its_own_iteration() -> None:
    """−0.4 is 4 errors of 0.1 and 8 of 0.05 below 0; without an error what counts is −0.001."""
    kl = Points([1, 2, 3, 4], [-0.4, -0.4, -0.0009, -0.002])
    errors = Points([1, 2], [0.1, 0.05])
    assert told({"objective/kl": kl, "objective/kl_standard_error": errors}) == [
        "The KL estimate was impossibly negative in 2 iterations: an error."
    ]


@pytest.mark.parametrize(
    ("spent", "limits", "words"),
    [
        (8.9, {"target": 6.0}, None),
        (9.1, {"target": 6.0}, "The KL is 9.10 nats a response, past its target of 6."),
        (9.1, {"target": 6.0, "budget": 9.0}, "The KL is 9.10 nats a response, past its budget of 9."),
        (9.1, {"target": None, "budget": 9.5}, None),
        (None, {"target": 6.0}, None),
    ],
)
def test_a_kl_past_its_limit_is_told_at_any_time(
    spent: float | None, limits: dict[str, Any], words: str | None
) -> None:
    assert told({}, progress=0.0, spent=spent, limits=limits) == ([words] if words else [])


def test_an_objective_is_compared_with_its_own_scale_alone() -> None:
    objective = {"eval/objective": curve(5.0, 5.0, 1.0, 2.0)}
    assert told(objective) == ["The objective, score − β·KL, lies below its start: 5.00 → 2.00."]
    assert told(objective, since=2) == []
    assert told(objective, progress=0.24) == []


def test_a_loss_that_rose_again_is_overfitting() -> None:
    key = "direct/validation/loss"
    (found,) = of_training("direct", {key: Points([0, 10, 20, 30], [0.7, math.nan, 0.5, 0.6])})
    assert found == Concern(
        "direct",
        "The validation loss was lowest at step 20 (0.500) and ended at 0.600: overfitting; fewer epochs.",
    )
    assert list(of_training("direct", {key: curve(0.7, 0.5, 0.52)})) == []
    assert list(of_training("direct", {})) == []


@pytest.mark.parametrize("value", [None, "x", [], [None, None], [0.4], {}, 10**400, math.nan])
def test_a_summary_of_any_kind_raises_nothing(value: Any) -> None:
    assert list(of_reward(dict.fromkeys(("accuracy_interval", "longer_wins", "commonest_level"), value))) == []


def test_an_alarm_of_a_policy_that_was_not_handed_on_is_not_grave() -> None:
    """The utility peaks at 1 and has fallen far at 2 and 3; the alarm is raised at the second of them."""
    judged = {"eval/utility/peak": 1.0, "eval/utility/fall_error": 0.01}
    rows = [{"iteration": at, "eval/scores": at, "eval/utility": 9.0 if at == 1 else 1.0, **judged} for at in range(4)]
    for taken, grave in ((None, True), (3.0, True), (2.0, False)):
        (found,) = of_evaluations(rows, after=2, since=None, taken=taken)
        assert found.grave is grave
        assert found.sentence.endswith("; the policy of iteration 2, before that, was handed on.") is not grave
