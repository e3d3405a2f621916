"""Judgements: taken once however often they are sent, never changed, never lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from keel.feedback.answers import Answer, disagreement, kept_answer, read_answer, read_criteria
from keel.feedback.leases import free_seat, held_by, take_seat
from keel.feedback.projects import clean_text, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import STANDS, Assignment, Judgement, Project, Task, User, Verdict

LONGEST_COMMENT = 10_000
_LONGEST = 24 * 60 * 60.0  # seconds that a judgement may have taken; a browser that was left open might send more


@dataclass(frozen=True)
class Said:
    """What a person says to an assignment; `answer` and `criteria` speak of the responses as they were shown."""

    verdict: Verdict
    answer: dict[str, Any] | None = None
    criteria: dict[str, Any] = field(default_factory=dict)
    comment: str = ""
    duration: float = 0.0
    """Seconds."""


def judge(session: Session, user: User, key: str, assignment_id: str, said: Said, *, now: float) -> Judgement:
    """Record a judgement under the `key` that the client made for it; sent again, it is the same judgement.

    An `answer` to what was answered already corrects it; `withdrawn` takes the last one back, and the task is this
    person's again; `skip` and `problem` leave the task to others. A lease that lapsed is no obstacle.

    Raises Refused where the assignment is not this person's, the key was used to say something else, what is said does
    not fit the project, or there is nothing to take back.
    """
    assignment = held_by(session, user, assignment_id, locked=True)
    before = session.scalar(select(Judgement).where(Judgement.key == key))
    if before is not None:
        if not _same(before, assignment, said):
            raise Refused("conflict", "that key was used for another judgement; make a new one", field="key")
        return before
    made = _judgement(assignment, key, said, now)
    session.add(made)
    session.flush()
    _settle(session, assignment, made, now)
    return made


def standing(session: Session, project: Project, *, batch: str | None = None) -> list[tuple[Assignment, Judgement]]:
    """The answers of a project that stand, with their assignments, in the order in which they were given.

    Those to tasks that were withdrawn are left aside.
    """
    query = (
        select(Assignment, Judgement)
        .join(Judgement, STANDS)
        .join(Task, Task.id == Judgement.task_id)
        .where(Assignment.project_id == project.id, Judgement.verdict == "answer", Task.withdrawn_at.is_(None))
        .order_by(Judgement.id)
    )
    if batch is not None:
        query = query.where(Task.batch == batch)
    return [(assignment, judgement) for assignment, judgement in session.execute(query).unique()]


def said_by(
    session: Session, project: Project, user: User, *, count: int, before: int | None = None
) -> list[tuple[Assignment, Judgement]]:
    """What this person said in a project and stands, newest first; the first of them is what an undo takes back.

    `before` is the number of a judgement: those that are older.
    """
    query = (
        select(Assignment, Judgement)
        .join(Judgement, STANDS)
        .where(Judgement.user_id == user.id, Judgement.project_id == project.id)
        .order_by(Judgement.id.desc())
        .limit(count)
    )
    if before is not None:
        query = query.where(Judgement.id < before)
    return [(assignment, judgement) for assignment, judgement in session.execute(query).unique()]


def answered_since(session: Session, project: Project, user: User, since: float) -> int:
    """How many answers of this person stand that were given from that time on, those to practise left out."""
    query = (
        select(func.count(Judgement.id))
        .join(Assignment, STANDS)
        .join(Task, Task.id == Judgement.task_id)
        .where(Judgement.user_id == user.id, Judgement.project_id == project.id, Task.purpose != "practice")
        .where(Judgement.verdict == "answer", Judgement.created_at >= since)
    )
    return session.scalar(query) or 0


def closed_with_work_of(session: Session, user: User) -> Sequence[Project]:
    """The closed projects in which this person ever judged, by name."""
    theirs = exists().where(Judgement.project_id == Project.id, Judgement.user_id == user.id)
    return session.scalars(select(Project).where(Project.closed_at.is_not(None), theirs).order_by(Project.name)).all()


def _judgement(assignment: Assignment, key: str, said: Said, now: float) -> Judgement:
    """A new row, in no session yet. Raises Refused where what is said does not fit the project."""
    project = assignment.project
    settings = settings_of(project)
    answer = None
    if (said.answer is not None) != (said.verdict == "answer"):
        raise Refused("invalid", "an answer comes with the verdict answer, and with no other", field="answer")
    if said.answer is not None:
        length = len(assignment.task.responses[0].text) if project.kind == "review" else 0
        shown = read_answer(
            project.kind, said.answer, responses=len(assignment.order), settings=settings, length=length
        )
        answer = shown.placed(assignment.order).model_dump(mode="json")
    if len(said.comment) > LONGEST_COMMENT:
        raise Refused("invalid", f"a comment has at most {LONGEST_COMMENT} characters", field="comment")
    if not 0 <= said.duration <= _LONGEST:
        raise Refused("invalid", "duration: seconds, from 0 to a day", field="duration")
    return Judgement(
        key=clean_text(key, "key"),
        assignment=assignment,
        project_id=project.id,
        task_id=assignment.task_id,
        user_id=assignment.user_id,
        verdict=said.verdict,
        answer=answer,
        criteria=read_criteria(project.kind, said.criteria, order=assignment.order, settings=settings),
        comment=clean_text(said.comment, "comment"),
        duration=said.duration,
        order=assignment.order,
        replaces=assignment.judgement_id,
        created_at=now,
    )


def _same(before: Judgement, assignment: Assignment, said: Said) -> bool:
    """Whether a judgement that is sent again says what the row says; what it replaced then does not matter."""
    if (before.assignment_id, before.verdict, before.comment) != (assignment.id, said.verdict, said.comment):
        return False
    try:
        again = _judgement(assignment, before.key, said, before.created_at)
    except Refused:  # it was taken, and the project has other settings since
        return True
    return (before.answer, before.criteria) == (again.answer, again.criteria)


def _settle(session: Session, assignment: Assignment, made: Judgement, now: float) -> None:
    """The bookkeeping that follows from a judgement: the assignment's state, the task's seats and votes."""
    answered_before, sat_before = assignment.state == "done", assignment.state != "released"
    if made.verdict == "withdrawn":
        if assignment.judgement_id is None:
            raise Refused("conflict", "there is nothing to take back")
        assignment.state, assignment.judgement_id = "leased", None
        assignment.leased_at = now
        assignment.expires_at = now + settings_of(assignment.project).lease_seconds
    else:
        assignment.state = "done" if made.verdict == "answer" else "released"
        assignment.judgement_id = made.id
    sits = assignment.state != "released"
    if assignment.sits and sits and not sat_before:
        take_seat(session, assignment.task_id, even_if_full=True)
    if assignment.sits and sat_before and not sits:
        free_seat(session, assignment.task_id)
    session.flush()
    if assignment.occasion == 0:
        _count(session, assignment, (made.verdict == "answer") - answered_before)


def _count(session: Session, assignment: Assignment, change: int) -> None:
    """The task's votes; where the most disputed come first, also how disputed it is, and perhaps another seat."""
    task, settings = assignment.task, settings_of(assignment.project)
    of_task = update(Task).where(Task.id == task.id)
    counted = of_task.values(votes=Task.votes + change).returning(Task.votes, Task.seats)
    votes, seats = session.execute(counted).one()  # from here on the row is locked: nobody else counts
    if task.purpose != "label" or settings.choice != "disputed":
        return
    priority = disagreement(answers_to(session, assignment.project, task), settings.scale)
    if priority > 0 and votes >= seats and seats < settings.ceiling:
        seats += 1
    session.execute(of_task.values(priority=priority, seats=seats))


def answers_to(session: Session, project: Project, task: Task) -> Sequence[Answer]:
    """The answers to a task that stand, hidden repeats not among them."""
    kept = session.scalars(
        select(Judgement)
        .join(Assignment, STANDS)
        .where(Judgement.task_id == task.id, Assignment.occasion == 0, Judgement.verdict == "answer")
        .order_by(Judgement.id)
    )
    return [kept_answer(project.kind, one.answer) for one in kept if one.answer is not None]
