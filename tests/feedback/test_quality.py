"""Quality held to counts by hand and to Krippendorff's own formula, pair by pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from keel.feedback.database import Database
from keel.feedback.quality import quality
from keel.feedback.tables import Kind
from keel.feedback.tasks import NewResponse, NewTask, add_tasks
from tests.feedback.worlds import NOW, answered, people, project, tasks_of

FIRST, SECOND = {"best": 0, "strength": "clear"}, {"best": 1, "strength": "slight"}
TIE, BAD = {"best": None, "strength": "tie"}, {"best": None, "strength": "both_bad"}
YES, NO = {"accepted": True}, {"accepted": False}


def alpha(units: list[list[float]], squared: Callable[[float, float], float]) -> float:
    """1 − D_o/D_e over every two values of a unit, and every two values at all (Krippendorff, 2011)."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    observed = sum(sum(squared(a, b) for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum(squared(a, b) for a, b in permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def differ(a: float, b: float) -> float:
    return float(a != b)


@pytest.mark.parametrize(
    ("kind", "responses", "said", "units", "squared"),
    [
        (
            "compare",
            2,
            [[FIRST, FIRST], [FIRST, SECOND], [TIE, BAD], [SECOND, SECOND], [FIRST, TIE]],
            [[1, 1], [1, -1], [0, 0], [-1, -1], [1, 0], [-1, -1], [-1, 1], [0, 0], [1, 1], [-1, 0]],
            differ,
        ),
        ("review", 1, [[YES, YES], [YES, NO], [NO, NO], [YES]], [[1, 1], [1, 0], [0, 0], [1]], differ),
        (
            "rate",
            2,
            [[{"ratings": [7, 2]}, {"ratings": [5, 2]}], [{"ratings": [1, 4]}, {"ratings": [2, 3]}]],
            [[7, 5], [2, 2], [1, 2], [4, 3]],
            lambda a, b: (a - b) ** 2,
        ),
        (
            "rank",
            3,
            [[{"ranks": [1, 2, 3]}, {"ranks": [1, 3, 2]}], [{"ranks": [1, 1, 2]}, {"ranks": [2, 1, 3]}]],
            [[1, 1], [1, 1], [1, -1], [0, -1], [1, 1], [1, 1], [-1, -1], [-1, -1], [-1, 1], [0, 1], [-1, -1], [-1, -1]],
            differ,
        ),
    ],
)
def test_alpha_is_krippendorffs(
    database: Database,
    kind: Kind,
    responses: int,
    said: list[list[dict[str, Any]]],
    units: list[list[float]],
    squared: Callable[[float, float], float],
) -> None:
    """Pairs stand both ways round, for nobody chose which is the first."""
    with database.writing() as session:
        users = people(session, "ann", "bob")
        made = project(session, kind, tasks=len(said), responses=responses)
        for task, answers in zip(tasks_of(session, made), said, strict=True):
            for user, answer in zip(users, answers, strict=False):
                answered(session, made, user, task, answer)
        found = quality(session, made)
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(alpha(units, squared))
    assert found.alpha.interval[0] <= found.alpha.value <= found.alpha.interval[1]
    assert found.unknown == ""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([[YES], [NO]], "no task has answers of two"),
        ([[YES, NO]], "one task has answers of two"),
        ([[YES, YES], [YES, YES]], "the same answer"),
    ],
)
def test_what_cannot_be_known_says_why(database: Database, said: list[list[dict[str, Any]]], why: str) -> None:
    with database.writing() as session:
        users = people(session, "ann", "bob")
        made = project(session, "review", tasks=len(said), responses=1)
        for task, answers in zip(tasks_of(session, made), said, strict=True):
            for user, answer in zip(users, answers, strict=False):
                answered(session, made, user, task, answer)
        found = quality(session, made)
    assert (found.alpha, found.agreement) == (None, None)
    assert why in found.unknown


def test_a_person_by_hand(database: Database) -> None:
    gold = [NewTask(f"g{k}", [NewResponse("a"), NewResponse("b")], purpose="gold", expected=FIRST) for k in range(4)]
    with database.writing() as session:
        ann, bob, cleo = people(session, "ann", "bob", "cleo")
        made = project(session, tasks=6, least_seconds=2.0)
        tasks = list(tasks_of(session, made))
        add_tasks(session, made, gold, now=NOW)
        for number, (task, answer) in enumerate(zip(tasks, [FIRST, FIRST, SECOND, TIE], strict=False)):
            answered(session, made, ann, task, answer, duration=[1.0, 3.0, 5.0, 9.0][number], order=[1, 0])
        answered(session, made, ann, tasks[4], None, verdict="skip")
        answered(session, made, ann, tasks[5], None, verdict="problem", comment="not English")
        answered(session, made, ann, tasks[0], SECOND, occasion=1)
        answered(session, made, ann, tasks[1], FIRST, occasion=1)
        for task, answer in zip(tasks_of(session, made)[6:], [FIRST, FIRST, FIRST, SECOND], strict=True):
            answered(session, made, ann, task, answer)
        for task in tasks[:3]:
            answered(session, made, bob, task, FIRST)
        answered(session, made, cleo, tasks[0], SECOND)
        cleo.active = False
        found = {one.name: one for one in quality(session, made).people}
    one = found["ann"]
    assert (one.judgements, one.skips, one.problems, one.median_seconds) == (4, 1, 1, 4.0)
    assert (one.fast.hits, one.fast.total) == (1, 4)
    assert (one.gold.hits, one.gold.total) == (3, 4)
    # Wilson, worked out by hand from z = 1.959964, p = 0.75, n = 4
    assert one.gold.interval == pytest.approx((0.300642, 0.954413), abs=1e-6)
    assert (one.repeats.hits, one.repeats.total) == (1, 2)
    assert (one.first.hits, one.first.total) == (1, 3)  # shown as [1, 0]: only SECOND stood first
    assert one.others == 4
    assert one.agreement == pytest.approx(2 / 4)
    assert (found["cleo"].agreement, found["cleo"].others, found["cleo"].active) == (0.0, 2, False)
    assert found["bob"].gold.total == 0


def test_votes_that_only_disputed_tasks_were_given_do_not_count_for_alpha(database: Database) -> None:
    said = [[YES, YES], [NO, NO], [YES, NO, YES, YES]]
    with database.writing() as session:
        users = people(session, "ann", "bob", "cleo", "dan")
        made = project(session, "review", tasks=3, responses=1, votes=2, choice="disputed", most_votes=4)
        for task, answers in zip(tasks_of(session, made), said, strict=True):
            for user, answer in zip(users, answers, strict=False):
                answered(session, made, user, task, answer)
        found = quality(session, made)
    assert found.alpha is not None
    assert found.agreement is not None
    # One of three tasks differs: D_o = 2/6; of 6 values 3 are yes: D_e = 18/30; with all 8 values α would be 0.45.
    assert found.alpha.value == pytest.approx(1 - (2 / 6) / (18 / 30))
    assert found.agreement.value == pytest.approx(2 / 3)
    assert {one.name: one.others for one in found.people} == {"ann": 5, "bob": 5, "cleo": 3, "dan": 3}


def test_a_project_nobody_has_judged(database: Database) -> None:
    with database.writing() as session:
        found = quality(session, project(session))
    assert found.people == []
    assert found.alpha is None


def test_of_a_ranking_each_two_that_differ_say_what_was_shown_first(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "rank", tasks=1, responses=3)
        answered(session, made, ann, tasks_of(session, made)[0], {"ranks": [1, 2, 2]}, order=[2, 0, 1])
        (one,) = quality(session, made).people
    assert (one.first.hits, one.first.total) == (1, 2)


def test_groups_do_not_leak_into_each_other(database: Database) -> None:
    """Another project's judgements change nothing."""
    by_project = defaultdict(list)
    with database.writing() as session:
        users = people(session, "ann", "bob")
        for kind, tasks in (("review", 3), ("review", 4)):
            made = project(session, kind, tasks=tasks, responses=1)  # type: ignore[arg-type]
            for number, task in enumerate(tasks_of(session, made)):
                for user in users:
                    answered(session, made, user, task, YES if number else NO)
            by_project[tasks] = [one.judgements for one in quality(session, made).people]
    assert by_project == {3: [3, 3], 4: [4, 4]}
