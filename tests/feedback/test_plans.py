"""What is asked about one project reads no other project's rows: SQLite's own plans say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from keel.feedback import contents, overview
from keel.feedback.database import Database
from keel.feedback.export import Wanted, write_export
from keel.feedback.judgements import answered_since, answers_to, said_by, standing
from keel.feedback.leases import left_for
from keel.feedback.quality import quality
from keel.feedback.sampled import votes_by
from keel.feedback.tables import Project, User
from keel.feedback.tasks import known_answers, progress, progress_of_rounds
from tests.feedback.worlds import answered, people, project, tasks_of

GROWS = {"assignments", "judgements", "responses", "tasks"}
ASKS: dict[str, Callable[[Session, Project, User], object]] = {
    "answers_by_day": lambda session, made, _: overview.answers_by_day(session, made),
    "answers_by_person": lambda session, made, _: overview.answers_by_person(session, made),
    "answered_since": lambda session, made, user: answered_since(session, made, user, 0.0),
    "answers_to": lambda session, made, _: answers_to(session, made, tasks_of(session, made)[0]),
    "find_tasks": lambda session, made, _: contents.find_tasks(session, made, contents.Sought(), count=10),
    "imports": lambda session, made, _: contents.imports(session, made),
    "known_answers": lambda session, made, _: known_answers(session, made),
    "left_for": lambda session, made, user: left_for(session, made, user),
    "progress": lambda session, made, _: progress(session, made),
    "progress_of_rounds": lambda session, made, _: progress_of_rounds(session, made),
    "quality": lambda session, made, _: quality(session, made),
    "remarks": lambda session, made, _: overview.remarks(session, made),
    "said_by": lambda session, made, user: said_by(session, made, user, count=10),
    "said_of": lambda session, made, _: overview.said_of(session, tasks_of(session, made)[0]),
    "standing": lambda session, made, _: standing(session, made),
    "votes_by": lambda session, made, _: votes_by(session, made, batch="b"),
    "write_export": lambda session, made, _: write_export(session, made, {}, Wanted()),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(tmp_path_factory.mktemp("plans") / "feedback.db")
    with made.writing() as session:
        (ann,) = people(session, "ann")
        compared = project(session, tasks=2)
        for task in tasks_of(session, compared):
            answered(session, compared, ann, task, {"best": 0, "strength": "clear"})
    yield made
    made.close()


@pytest.mark.parametrize("name", ASKS)
def test_a_question_about_a_project_scans_no_table_that_grows(database: Database, name: str) -> None:
    asked: list[tuple[str, Any]] = []
    with database.reading() as session:
        made, user = session.get_one(Project, 1), session.get_one(User, 1)
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        ASKS[name](session, made, user)
        plans = [
            row[3]
            for statement, values in tuple(asked)
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        ]
    assert plans
    scanned = [line for line in plans if line.startswith("SCAN") and line.split()[1].rstrip("_0123456789") in GROWS]
    assert scanned == []
