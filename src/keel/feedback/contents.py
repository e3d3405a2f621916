"""What is in a project: the imports that its tasks came by, which can be withdrawn, and the tasks themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Text, cast, exists, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased, lazyload

from keel.feedback.refused import Refused
from keel.feedback.tables import Project, Purpose, Task
from keel.feedback.tasks import DIGEST, one_at_a_time, to_label

TaskState = Literal["open", "complete", "withdrawn"]
Order = Literal["number", "priority"]

_FREED = func.substr(Task.digest, 1, DIGEST)
"""The digest that a task had before it was withdrawn."""
_OF_AN_IMPORT = (Task.created_at, Task.purpose, Task.round, Task.batch, Task.policy_version)


@dataclass(frozen=True)
class Import:
    """Tasks that were put in at once; `number` is that of the first of them, `votes` the answers to them that stand."""

    number: int
    created_at: float
    purpose: Purpose
    round: int
    batch: str | None
    policy_version: str | None
    tasks: int
    votes: int
    withdrawn_at: float | None


def imports(session: Session, project: Project) -> list[Import]:
    """Newest first."""
    first = func.min(Task.id)
    query = (
        select(first, *_OF_AN_IMPORT, func.count(), func.sum(Task.votes), func.max(Task.withdrawn_at))
        .where(Task.project_id == project.id)
        .group_by(*_OF_AN_IMPORT)
        .order_by(Task.created_at.desc(), first.desc())
    )
    return [Import(*row) for row in session.execute(query)]


def find_import(session: Session, project: Project, number: int) -> Import:
    """Raises Refused where none of the project's has that number."""
    found = next((one for one in imports(session, project) if one.number == number), None)
    if found is None:
        raise Refused("not_found", f"the project {project.name} has no import {number}; its list names those it has")
    return found


def set_withdrawn(session: Session, project: Project, number: int, withdrawn: bool, *, now: float) -> Import:
    """Withdraw the tasks of an import, or put them back; nothing changes where that was done before.

    Nobody is lent what is withdrawn, and it counts nowhere. What was said of it stays, and an answer that somebody is
    just working on is still taken. While it is withdrawn the same may be put in again, mended, as new tasks. Raises
    Refused where there is no such import, or what is to be put back was put in again meanwhile.
    """
    one_at_a_time(session, project)
    found = find_import(session, project, number)
    if withdrawn != (found.withdrawn_at is not None):
        theirs = [Task.project_id == project.id, *(column == getattr(found, column.key) for column in _OF_AN_IMPORT)]
        if not withdrawn:
            _require_none_again(session, project, theirs)
        # In the order in which seats are taken and freed, so that there is no deadlock; and by FOR UPDATE rather than
        # its weaker form, for the digest is part of a unique key.
        locked = select(Task.id).where(*theirs).order_by(Task.id).with_for_update()
        digest = Task.digest + ":" + cast(Task.id, Text) if withdrawn else _FREED
        at = now if withdrawn else None
        session.execute(update(Task).where(Task.id.in_(locked)).values(withdrawn_at=at, digest=digest))
    return find_import(session, project, number)


def _require_none_again(session: Session, project: Project, theirs: Sequence[ColumnElement[bool]]) -> None:
    again = aliased(Task)
    same = exists().where(again.project_id == project.id, again.digest == _FREED)
    if count := session.scalar(select(func.count()).where(*theirs, same)):
        raise Refused("conflict", f"{count:,} of its tasks were put in again since; withdraw those before")


@dataclass(frozen=True)
class Sought:
    """Which tasks to list. None is any purpose or round; no state is all tasks but the withdrawn ones."""

    purpose: Purpose | None = None
    round: int | None = None
    state: TaskState | None = None
    order: Order = "number"
    """By their numbers; or what is judged first, the most disputed or the least certain, first."""


def find_tasks(
    session: Session, project: Project, sought: Sought, *, count: int, after: int = 0, below: float | None = None
) -> Sequence[Task]:
    """At most `count` of them, without their responses.

    `after` is the number of the last one seen, and in the order of priority `below` is the priority that it had then:
    people judge meanwhile. Raises Refused where only one of these two is given.
    """
    query = select(Task).options(lazyload(Task.responses)).where(_in(project, sought.state))
    if sought.purpose is not None:
        query = query.where(Task.purpose == sought.purpose)
    if sought.round is not None:
        query = query.where(Task.round == sought.round)
    if sought.order == "number":
        return session.scalars(query.where(Task.id > after).order_by(Task.id).limit(count)).all()
    if bool(after) != (below is not None):
        raise Refused("invalid", "below: give it with after, the priority of the last one seen", field="below")
    if below is not None:
        query = query.where(tuple_(-Task.priority, Task.id) > tuple_(-below, after))
    return session.scalars(query.order_by(-Task.priority, Task.id).limit(count)).all()


def _in(project: Project, state: TaskState | None) -> ColumnElement[bool]:
    """Gold and practice want no number of votes: they are neither open nor complete."""
    match state:
        case "open":
            return to_label(project) & (Task.votes < Task.seats)
        case "complete":
            return to_label(project) & (Task.votes >= Task.seats)
        case "withdrawn":
            return (Task.project_id == project.id) & Task.withdrawn_at.is_not(None)
        case None:
            return (Task.project_id == project.id) & Task.withdrawn_at.is_(None)
