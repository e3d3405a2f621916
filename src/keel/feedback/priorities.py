"""What is judged first, where somebody knows what a label would tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from keel.feedback.projects import change_settings, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import Project, Task
from keel.feedback.tasks import to_label


def open_tasks(session: Session, project: Project) -> Sequence[Task]:
    """Those that still want votes on which of several responses is better.

    Raises Refused for a project that asks for no such thing, or whose order is that of the disputes.
    """
    if project.kind not in ("compare", "rank"):
        raise Refused("invalid", f"the project {project.name} is there to {project.kind}: nothing in it is compared")
    if settings_of(project).choice == "disputed":
        raise Refused("conflict", f"the project {project.name} gives what is disputed first; set its choice: uncertain")
    query = select(Task).where(to_label(project), Task.votes < Task.seats)
    return session.scalars(query.order_by(Task.id)).all()


def set_priorities(session: Session, project: Project, priorities: Mapping[int, float]) -> None:
    """Give what comes first to people first, by a task's number; the project says so from now on."""
    settings = settings_of(project)
    if settings.choice != "uncertain":
        change_settings(session, project, settings.model_copy(update={"choice": "uncertain"}))
    session.execute(update(Task), [{"id": number, "priority": value} for number, value in priorities.items()])
