"""Small worlds to test the store in: people, a project, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from keel.feedback.projects import Settings, add_project
from keel.feedback.tables import Kind, Project, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks

NOW = 1_000_000.0


def people(session: Session, *names: str) -> list[User]:
    """Annotators with passwords that nobody knows."""
    users = [User(name=name, role="annotator", password_hash="-", created_at=NOW) for name in names]
    session.add_all(users)
    session.flush()
    return users


def project(
    session: Session, kind: Kind = "compare", *, tasks: int = 3, responses: int = 2, **settings: Any
) -> Project:
    """A project with `tasks` tasks, called "prompt 0" with "response 0.0", "response 0.1" and so on."""
    made = add_project(session, f"{kind} of {tasks}", kind, Settings(**settings), now=NOW)
    add_tasks(session, made, new_tasks(tasks, responses), now=NOW)
    return made


def new_tasks(count: int, responses: int = 2, **more: Any) -> Sequence[NewTask]:
    return [
        NewTask(f"prompt {number}", [NewResponse(f"response {number}.{k}") for k in range(responses)], **more)
        for number in range(count)
    ]
