"""Who works on what: a person is lent tasks one after the other, and a seat of a task is lent to one person."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session, aliased, contains_eager, joinedload

from keel.feedback.projects import Settings, find_project, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import Assignment, Judgement, Project, Purpose, Task, User
from keel.feedback.tasks import to_label

MOST_AHEAD = 5
"""Tasks that one person holds at a time."""
MOST_COUNTED = 1000
"""Of what is left for a person: to count it all would take as long as there are tasks."""
_chance = random.SystemRandom()
REPEAT_AFTER = 10
"""Judgements that lie between a task and its hidden repeat, at least."""


def project_to_judge(session: Session, number: int, user: User) -> Project:
    """The project of that number. Raises Refused where there is none, or it is closed and they never had a task of it.

    Such a project is named to nobody but those who see everybody's work.
    """
    project = find_project(session, number)
    theirs = exists().where(Assignment.user_id == user.id, Assignment.project_id == project.id)
    if project.closed_at is not None and user.role == "annotator" and not session.scalar(select(theirs)):
        raise Refused("gone", "this project is closed")
    return project


def lease(session: Session, project: Project, user: User, *, count: int, now: float) -> list[Assignment]:
    """The next `count` tasks of this person, those that they hold already first; fewer where there are no more.

    Call `release_lapsed` before it, in a transaction of its own: what it frees is then there to be lent.
    Raises Refused where the project is closed.
    """
    if project.closed_at is not None:
        raise Refused("gone", f"the project {project.name} is closed")
    one_browser_at_a_time = select(User.id).where(User.id == user.id).with_for_update(key_share=True)
    session.execute(one_browser_at_a_time)
    settings = settings_of(project)
    until = now + settings.lease_seconds
    held, lapsed = _begun(session, project, user)
    for one in held:
        if one.expires_at <= now:
            one.expires_at = until
    while len(held) < min(count, MOST_AHEAD):
        found = _next(session, project, user, settings, lapsed, now=now, until=until)
        if found is None:
            break
        held.append(found)
    return held[:count]


def renew(session: Session, user: User, assignment_id: str, *, now: float) -> Assignment:
    """Hold a task for another full lease, even after the last one has lapsed, if nobody else has it by now.

    Raises Refused where it is not theirs, has been judged, or was lost: withdrawn, or lent to somebody else.
    """
    one = held_by(session, user, assignment_id, locked=True)
    if one.judgement_id is not None:
        raise Refused("conflict", "that task is judged")
    if one.state == "released" and one.task.withdrawn_at is not None:
        raise Refused("gone", "the time for this task is over, and nobody is asked about it any more")
    if one.state == "released" and one.sits and not take_seat(session, one.task_id):
        raise Refused("gone", "the time for this task is over, and somebody else has it now")
    one.state, one.expires_at = "leased", now + settings_of(one.project).lease_seconds
    return one


def held_by(session: Session, user: User, assignment_id: str, *, locked: bool = False) -> Assignment:
    """This person's assignment, whatever its state; `locked` holds its row until the transaction ends.

    Raises Refused where there is none of that id, or it is somebody else's.
    """
    query = select(Assignment).where(Assignment.id == assignment_id, Assignment.user_id == user.id)
    query = query.options(joinedload(Assignment.task).lazyload(Task.responses), joinedload(Assignment.project))
    found = session.scalar(query.with_for_update(of=Assignment) if locked else query)
    if found is None:
        raise Refused("not_found", "there is no such assignment of yours")
    return found


@dataclass(frozen=True)
class Left:
    """Tasks to label that a person can still be given, or holds: `count` of them, or `more` than that."""

    count: int
    more: bool

    @property
    def nothing(self) -> bool:
        return not self.count and not self.more

    @property
    def in_words(self) -> str:
        if not self.more:
            return f"{self.count:,} left for you"
        return f"more than {self.count:,} left for you" if self.count else "a few left for you"


def left_for(session: Session, project: Project, user: User) -> Left:
    """How many more judgements that count this person may give; no more than MOST_COUNTED are counted.

    Where gold or repeats are hidden among them only the tens below are told: an exact number would tell which did not
    count.
    """
    theirs = select(Assignment.task_id).where(Assignment.user_id == user.id, Assignment.project_id == project.id)
    some = select(Task.id).where(
        to_label(project),
        Task.id.not_in(theirs.where(Assignment.judgement_id.is_not(None), Assignment.occasion == 0)),
        (Task.seats_taken < Task.seats) | Task.id.in_(theirs.where(Assignment.state == "leased")),
    )
    found = session.scalar(select(func.count()).select_from(some.limit(MOST_COUNTED + 1).subquery())) or 0
    count, settings = min(found, MOST_COUNTED), settings_of(project)
    if count and (settings.gold_share or settings.repeat_share):
        return Left((count - 1) // 10 * 10, more=True)
    return Left(count, more=found > count)


def give_back(session: Session, user: User, assignment_id: str) -> None:
    """End a lease that this person holds; one that has ended already, or is somebody else's, is left as it is."""
    ended = session.execute(
        update(Assignment)
        .where(Assignment.id == assignment_id, Assignment.user_id == user.id, Assignment.state == "leased")
        .values(state="released")
        .returning(Assignment.task_id, Assignment.occasion)
    ).all()
    for one in ended:
        if one.occasion == 0:
            free_seat(session, one.task_id)


def release_lapsed(session: Session, *, now: float) -> int:
    """End the leases whose time is over; returns how many. One that is locked, being judged right now, is skipped."""
    lapsed = session.execute(
        select(Assignment.id, Assignment.task_id, Assignment.occasion)
        .where(Assignment.state == "leased", Assignment.expires_at <= now)
        .order_by(Assignment.task_id)
        .with_for_update(skip_locked=True)
    ).all()
    session.execute(update(Assignment).where(Assignment.id.in_([one.id for one in lapsed])).values(state="released"))
    for one in lapsed:
        if one.occasion == 0:
            free_seat(session, one.task_id)
    return len(lapsed)


def free_seat(session: Session, task_id: int) -> None:
    """Give a seat of the task back. Gold and practice tasks have none: everybody gets those."""
    seated = update(Task).where(Task.id == task_id, Task.purpose == "label")
    session.execute(seated.values(seats_taken=Task.seats_taken - 1))


def take_seat(session: Session, task_id: int, *, even_if_full: bool = False) -> bool:
    """Take a seat of the task; returns whether there was one. This one statement decides who works on a task.

    A withdrawn task has none to give. `even_if_full` is for an answer that comes after its lease has lapsed: it counts
    even where somebody else has the seat by now.
    """
    query = update(Task).where(Task.id == task_id).values(seats_taken=Task.seats_taken + 1)
    if not even_if_full:
        query = query.where(Task.seats_taken < Task.seats, Task.withdrawn_at.is_(None))
    return bool(session.execute(query.returning(Task.id)).all())


def _begun(session: Session, project: Project, user: User) -> tuple[list[Assignment], list[Assignment]]:
    """What this person holds, the oldest first, and what has lapsed before they judged it and can be lent them again.

    Withdrawn tasks are in neither: they are not shown again, and their leases lapse.
    """
    free = (Task.seats_taken < Task.seats) | (Task.purpose != "label") | (Assignment.occasion == 1)
    rows = session.scalars(
        select(Assignment)
        .join(Assignment.task)
        .options(contains_eager(Assignment.task))
        .where(
            Assignment.user_id == user.id,
            Assignment.project_id == project.id,
            Task.withdrawn_at.is_(None),
            (Assignment.state == "leased")
            | ((Assignment.state == "released") & Assignment.judgement_id.is_(None) & free),
        )
        .order_by(Assignment.state, Assignment.leased_at, Assignment.id)  # "leased" comes before "released"
        .limit(MOST_AHEAD)
        .with_for_update(of=Assignment)  # `release_lapsed` skips these rows from here on, or came first
    ).all()
    lapsed = [one for one in rows if one.state == "released"]
    in_order = sorted(lapsed, key=lambda one: one.task_id)  # everybody takes seats in this order: no deadlock
    return [one for one in rows if one.state == "leased"], in_order


def _next(
    session: Session,
    project: Project,
    user: User,
    settings: Settings,
    lapsed: list[Assignment],
    *,
    now: float,
    until: float,
) -> Assignment | None:
    """Practice first; then what lapsed; then gold, a repeat or a label, by a die that nobody can foresee."""
    practice = _unseen(session, project, user, "practice")
    if practice is not None:
        return _assign(session, practice, user, 0, now=now, until=until)
    while lapsed:
        one = lapsed.pop(0)
        if not one.sits or take_seat(session, one.task_id):
            one.state, one.leased_at, one.expires_at = "leased", now, until
            return one
    die = _chance.random()
    if die < settings.gold_share and (gold := _unseen(session, project, user, "gold")) is not None:
        return _assign(session, gold, user, 0, now=now, until=until)
    if 1 - die <= settings.repeat_share and (again := _repeatable(session, project, user)) is not None:
        return _assign(session, again, user, 1, now=now, until=until)
    label = _unseen(session, project, user, "label")
    return None if label is None else _assign(session, label, user, 0, now=now, until=until)


def _unseen(session: Session, project: Project, user: User, purpose: Purpose) -> Task | None:
    """The first free task that this person never had. PostgreSQL skips one that is being lent to somebody else."""
    seen = select(Assignment.task_id).where(Assignment.user_id == user.id, Assignment.project_id == project.id)
    query = select(Task).where(Task.project_id == project.id, Task.purpose == purpose, Task.id.not_in(seen))
    query = query.where(Task.withdrawn_at.is_(None))
    query = query.order_by(Task.priority.desc(), Task.shuffle.desc()).limit(1)
    if purpose == "label":
        query = query.where(Task.seats_taken < Task.seats).with_for_update(skip_locked=True, key_share=True)
    return session.scalar(query)


def _repeatable(session: Session, project: Project, user: User) -> Task | None:
    """A labelled task that this person answered some time ago and has not been asked again."""
    again = aliased(Assignment)
    recent = (
        select(Judgement.task_id)
        .where(Judgement.user_id == user.id, Judgement.project_id == project.id)
        .order_by(Judgement.id.desc())
        .limit(REPEAT_AFTER)
    )
    return session.scalar(
        select(Task)
        .join(Assignment, Assignment.task_id == Task.id)
        .where(
            to_label(project),
            Assignment.project_id == project.id,
            Assignment.user_id == user.id,
            Assignment.state == "done",
            Task.id.not_in(recent.scalar_subquery()),
            Task.id.not_in(select(again.task_id).where(again.user_id == user.id, again.occasion == 1)),
        )
        .order_by(Task.shuffle)
        .limit(1)
    )


def _assign(session: Session, task: Task, user: User, occasion: int, *, now: float, until: float) -> Assignment | None:
    """Lend the task; None where its last seat was taken meanwhile. The order of the responses is drawn anew."""
    order = list(range(len(task.responses)))
    _chance.shuffle(order)
    assignment = Assignment(
        id=uuid.uuid4().hex,
        task_id=task.id,
        project_id=task.project_id,
        user_id=user.id,
        occasion=occasion,
        order=order,
        state="leased",
        leased_at=now,
        expires_at=until,
        task=task,
    )
    if assignment.sits and not take_seat(session, task.id):
        return None
    session.add(assignment)
    session.flush()
    return assignment
