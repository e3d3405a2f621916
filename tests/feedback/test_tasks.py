"""Tasks that are put into a project: once each, however many, and only such as can be judged."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from keel.feedback.database import Database
from keel.feedback.refused import Refused
from keel.feedback.tables import Task
from keel.feedback.tasks import NewResponse, NewTask, Progress, add_tasks, progress, progress_of_rounds
from tests.feedback.worlds import NOW, answered, new_tasks, people, project, tasks_of


def test_the_same_tasks_are_added_once(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=3)
        added = add_tasks(session, made, [*new_tasks(4), *new_tasks(4)], now=NOW)
        assert (added.new, added.known, added.duplicates) == (1, 6, 1)
        assert add_tasks(session, made, new_tasks(1, round=2), now=NOW).new == 1
        assert session.scalar(select(func.count(Task.id))) == 5


def test_as_many_tasks_as_one_likes(database: Database) -> None:
    """They go in by the hundred; what one hundred has the next does not have again, and each has its responses."""
    with database.writing() as session:
        made = project(session, tasks=0)
        tasks = new_tasks(1203)
        added = add_tasks(session, made, [*tasks, *reversed(tasks)], now=NOW)
        assert (added.new, added.known, added.duplicates) == (1203, 0, 1203)
        kept = session.scalars(select(Task).order_by(Task.id)).all()
        assert [task.prompt for task in kept] == [task.prompt for task in tasks]
        assert [[one.text for one in task.responses] for task in kept] == [
            [one.text for one in task.responses] for task in tasks
        ]


@pytest.mark.parametrize(
    ("kind", "tasks", "says"),
    [
        ("compare", new_tasks(2, responses=3), "task 1: 3 responses; a compare project takes 2"),
        ("rank", new_tasks(1, responses=1), "takes 2 to 9"),
        ("compare", new_tasks(1, purpose="gold"), "needs its expected answer"),
        ("compare", new_tasks(1, purpose="gold", expected={"best": 5, "strength": "clear"}), "answer.best"),
        ("compare", new_tasks(1, row={"note": "a\x00"}), "NUL"),
        ("compare", new_tasks(1, row={"note": "\ud800"}), "surrogate"),
    ],
)
def test_a_task_that_cannot_be_judged_is_refused(database: Database, kind: Any, tasks: Any, says: str) -> None:
    with database.writing() as session:
        made = project(session, kind, tasks=0)
        with pytest.raises(Refused, match=says):
            add_tasks(session, made, tasks, now=NOW)


def test_a_pair_the_other_way_round_is_the_same_task(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=0)
        pairs = [("a", "b"), ("b ", "a"), ("a", "c")]
        tasks = [NewTask("prompt", [NewResponse(text) for text in pair]) for pair in pairs]
        assert add_tasks(session, made, tasks, now=NOW).new == 2


def test_a_vote_more_than_a_task_wants_makes_up_for_no_vote_of_another(database: Database) -> None:
    with database.writing() as session:
        users = people(session, "ann", "bob", "cleo")
        made = project(session, tasks=3, votes=2)
        for task, some in zip(tasks_of(session, made), (users, users[:2], users[:1]), strict=True):
            for user in some:
                answered(session, made, user, task, {"best": 0, "strength": "clear"})
        assert progress(session, made) == Progress(tasks=3, complete=2, votes=5, wanted=6)
        assert progress_of_rounds(session, made) == {1: Progress(tasks=3, complete=2, votes=5, wanted=6)}
