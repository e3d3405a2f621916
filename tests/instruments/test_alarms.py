"""Alarms: each is raised by evaluations that show it, at the right one, and by none before."""

from __future__ import annotations

import math
from typing import Any

import pytest

from keel.instruments.alarms import Alarm, alarms

HEALTHY: dict[str, list[float]] = {
    "eval/scores": [0.0, 0.8, 1.2, 1.5, 1.6, 1.7],
    "eval/utility": [1.4, 2.2, 2.9, 3.1, 2.95, 3.0],  # never so far below its peak as the fourth and the fifth must be
    "eval/utility/peak": [0, 10, 20, 30, 30, 30],
    "eval/utility/fall_error": [0.0, 0.0, 0.0, 0.0, 0.05, 0.05],
    "eval/surprise": [0.4, 0.35, 0.3, 0.25, 0.2, 0.15],
    "eval/distinct_2": [0.18, 0.16, 0.14, 0.12, 0.1, 0.08],
    "eval/repetition": [0.01, 0.02, 0.03, 0.04, 0.05, 0.05],
    "eval/score_length_correlation": [-0.3, -0.7, -0.79, 0.1, 0.4, 0.79],
    "eval/reward/few/disagreement": [0.2, 0.3, 0.25, 0.28, 0.29, 0.3],
}


def rows(**changed: list[float]) -> list[dict[str, Any]]:
    """Six evaluations, every tenth iteration; lines of rollouts alone lie between them."""
    columns = {**HEALTHY, **{f"eval/{key}": values for key, values in changed.items()}}
    found: list[dict[str, Any]] = []
    for number in range(6):
        found.append({"iteration": 10 * number, **{key: values[number] for key, values in columns.items()}})
        found.append({"iteration": 10 * number + 5, "objective/scores": 0.0, "objective/score_length_correlation": 1.0})
    return found


def test_a_healthy_run_raises_none() -> None:
    assert alarms(rows(), 1) == []
    assert alarms([], 1) == []


NAMES = {
    "surprise": "entropy",
    "distinct_2": "variety",
    "repetition": "repetition",
    "score_length_correlation": "length",
    "reward/few/disagreement": "disagreement of few",
}
RULER = ": the score may have become a ruler"
CASES: list[tuple[str, list[float], int, str]] = [  # out of its range since
    (
        "surprise",
        [0.4, 0.3, 0.2, 0.09, 0.08, 0.02],
        30,
        "mode collapse: the entropy fell from 0.40 to 0.02 nats a token",
    ),
    (
        "surprise",
        [0.4, 0.45, 0.5, 0.51, 0.6, 0.7],
        30,
        "the policy leaves the language: its entropy rose from 0.40 to 0.70 nats a token",
    ),
    (
        "distinct_2",
        [0.18, 0.16, 0.05, 0.05, 0.04, 0.03],
        20,
        "mode collapse: distinct pairs of tokens fell from 18% to 3% of all",
    ),
    (
        "repetition",
        [0.01, 0.02, 0.03, 0.07, 0.1, 0.29],
        30,
        "the responses repeat themselves: 29% of their four-grams, where it was 1%",
    ),
    (
        "score_length_correlation",
        [0.3, 0.7, 0.81, 0.9, 0.95, 0.97],
        20,
        f"score and length are correlated by 0.97{RULER}",
    ),
    (
        "score_length_correlation",
        [-0.3, -0.7, -0.5, -0.9, -0.95, -0.97],
        30,
        f"score and length are correlated by −0.97{RULER}",
    ),
    (
        "reward/few/disagreement",
        [0.2, 0.25, 0.29, 0.31, 0.5, 0.6],
        30,
        "the members of “few” disagree by 0.60 on what the policy writes now, 0.20 at the start: it has left what the "
        "comparisons show",
    ),
]


@pytest.mark.parametrize(("key", "values", "since", "sentence"), CASES)
def test_what_leaves_its_range_is_said_at_the_second_evaluation_in_a_row(
    key: str, values: list[float], since: int, sentence: str
) -> None:
    (found,) = alarms(rows(**{key: values}), 2)
    assert (found.iteration, found.grave, found.latest) == (since + 10, False, sentence)
    assert found.standing
    assert found.name == NAMES[key]
    (at_once,) = alarms(rows(**{key: values}), 1)
    assert at_once.iteration == since
    assert at_once.raised != at_once.latest


@pytest.mark.parametrize(("key", "name"), [("utility", "true utility"), ("judge", "judge's score")])
def test_a_score_that_rises_while_what_it_stands_for_falls_is_over_optimised(key: str, name: str) -> None:
    measured = fallen(key, [1.4, 2.2, 3.1, 2.95, 2.5, -0.4])  # the fourth is 3 errors below the peak, the fifth 12
    (found,) = alarms(rows(**measured), 2)
    assert (found.name, found.iteration, found.grave) == (name, 50, True)
    assert found.latest.startswith(
        f"over-optimisation: the {name} peaked at iteration 20 and fell from 3.10 to −0.40, while the score rose on "
        "from 1.20 to 1.70; "
    )
    assert alarms(rows(**measured), 1)[0].iteration == 40
    falling_too = {**measured, "scores": [0.0, 0.8, 1.2, 1.1, 1.0, 0.9]}  # it got worse, but nothing was gamed
    assert alarms(rows(**falling_too), 1) == []


def fallen(key: str, values: list[float]) -> dict[str, list[float]]:
    """A held-out score whose peak is the third evaluation, at 20, and every later one known to 0.05."""
    return {
        key: values,
        f"{key}/peak": [0.0, 10.0, 20.0, 20.0, 20.0, 20.0],
        f"{key}/fall_error": [0.0] * 3 + [0.05] * 3,
    }


@pytest.mark.parametrize(("last", "raised"), [(3.1 - 3.81 * 0.05, 0), (3.1 - 3.83 * 0.05, 1)])
def test_the_least_fall_grows_with_the_evaluations_that_the_peak_was_picked_from(last: float, raised: int) -> None:
    """After five others 3.82 errors: the quantile of one in a hundred, shared by 5 pairs of a share of 1 / 30."""
    measured = fallen("utility", [1.4, 2.2, 3.1, 3.1, 3.1, last])
    assert len(alarms(rows(**measured), 1)) == raised


def test_no_score_is_compared_with_one_of_another_scale() -> None:
    """At iteration 20 the reward, or what judges, was changed: 3.1 there is none of what follows."""
    since = fallen("utility", [1.4, 2.2, 3.1, 1.0, 0.9, 0.5])
    since |= {
        "utility/peak": [0.0, 10.0, 20.0, 30.0, 30.0, 30.0],
        "utility/fall_error": [0.0, 0.0, 0.0, 0.0, 0.05, 0.05],
    }
    disagreement = {"reward/few/disagreement": [0.1, 0.1, 0.1, 0.3, 0.3, 0.3]}
    assert [alarm.name for alarm in alarms(rows(**disagreement), 2)] == ["disagreement of few"]
    assert alarms(rows(**disagreement), 2, since=20) == []
    (found,) = alarms(rows(**since), 1, since=20)
    assert found.iteration == 50  # by 3.14 errors after two others; at 40 by 2.6 after one
    assert found.latest.startswith(
        "over-optimisation: the true utility peaked at iteration 30 and fell from 1.00 to 0.50"
    )
    assert found.latest.endswith(" (counted from the fork at iteration 20; before it was measured otherwise)")


def test_what_is_seen_in_the_texts_is_compared_with_the_start_of_the_first_run() -> None:
    surprise = [0.4, 0.3, 0.09, 0.08, 0.08, 0.08]
    (found,) = alarms(rows(surprise=surprise), 2, since=20)
    assert (found.iteration, found.latest) == (30, "mode collapse: the entropy fell from 0.40 to 0.08 nats a token")


def test_an_excursion_of_one_evaluation_is_none_and_one_that_is_over_does_not_stand() -> None:
    assert alarms(rows(repetition=[0.0, 0.9, 0.0, 0.9, 0.0, 0.9]), 2) == []
    (found,) = alarms(rows(repetition=[0.0, 0.5, 0.9, 0.9, 0.0, 0.0]), 2)
    assert found == Alarm(
        "repetition", 20, "the responses repeat themselves: 90% of their four-grams, where it was 0%", "", False
    )
    again = alarms(rows(repetition=[0.0, 0.9, 0.9, 0.0, 0.8, 0.8]), 2)
    assert [(alarm.iteration, alarm.standing) for alarm in again] == [(20, False), (50, True)]


def test_a_score_that_is_a_ruler_from_the_start_is_said_too() -> None:
    assert [alarm.iteration for alarm in alarms(rows(score_length_correlation=[1.0] * 6), 2)] == [20]


def test_what_was_not_finite_raises_nothing() -> None:
    missing: list[Any] = [0.4, None, math.nan, 0.3, None, None]
    assert alarms(rows(surprise=missing, utility=missing, repetition=missing), 1) == []
