"""What a project's settings and its end do to its tasks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.leases import lease
from keel.feedback.projects import Settings, change_settings, close_project, find_project
from keel.feedback.refused import Refused
from keel.feedback.tables import Project, Task
from keel.feedback.tasks import add_tasks, progress
from tests.feedback.worlds import NOW, new_tasks, people, project

FIRST = Said("answer", {"best": 0, "strength": "clear"})


def test_a_closed_project_lends_nothing_and_takes_what_is_under_way(database: Database) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        close_project(made, now=NOW)
        with pytest.raises(Refused, match="closed"):
            lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, FIRST, now=NOW)
        assert progress(session, made).votes == 1


def test_more_votes_open_what_was_complete(database: Database) -> None:
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=1)
        (one,) = lease(session, made, ann, count=1, now=NOW)
        judge(session, ann, "a", one.id, FIRST, now=NOW)
        assert lease(session, made, bob, count=1, now=NOW) == []
        change_settings(session, made, Settings(votes=2))
        session.expire_all()
        assert len(lease(session, made, bob, count=1, now=NOW)) == 1


def test_another_choice_forgets_what_came_first(database: Database) -> None:
    with database.writing() as session:
        made = project(session, tasks=0, choice="uncertain")
        add_tasks(session, made, new_tasks(1, priority=0.9), now=NOW)
        change_settings(session, made, Settings(choice="random"))
        add_tasks(session, made, new_tasks(1, round=2, priority=0.9), now=NOW)
        session.expire_all()
        assert session.scalars(select(Task.priority)).all() == [0.0, 0.0]


def test_one_vote_disputes_nothing() -> None:
    with pytest.raises(ValidationError, match="votes: 2"):
        Settings(choice="disputed")


def test_a_project_that_is_not_there_is_told_with_those_that_are(database: Database) -> None:
    with database.writing() as session:
        project(session, tasks=0)
        with pytest.raises(Refused, match="there are compare of 0"):
            find_project(session, "compare")
        assert isinstance(find_project(session, 1), Project)


def test_who_tries_numbers_learns_no_project_by_its_name(database: Database) -> None:
    """Annotators ask by numbers, and what is closed or not theirs has a name that tells what it is about."""
    with database.writing() as session:
        made = project(session, tasks=0)
        close_project(project(session, tasks=1), now=NOW)
        with pytest.raises(Refused, match="there is no project 999") as refused:
            find_project(session, 999)
        assert refused.value.code == "not_found"
        assert made.name not in str(refused.value)
        assert "compare of 1" not in str(refused.value)
