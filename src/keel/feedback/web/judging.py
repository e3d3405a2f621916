"""Judging for programs, and for the page's script: tasks out, judgements in, and one's own work again."""

from __future__ import annotations

import re
import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from keel.feedback import judgements
from keel.feedback.database import Database
from keel.feedback.differences import marked
from keel.feedback.leases import (
    MOST_AHEAD,
    give_back,
    held_by,
    lease,
    left_for,
    project_to_judge,
    release_lapsed,
    renew,
)
from keel.feedback.projects import settings_of
from keel.feedback.tables import Assignment, Judgement, Response, User
from keel.feedback.web.access import Annotator
from keel.feedback.web.given import Body, Id, Seconds, TheDatabase
from keel.feedback.web.shell import REFUSED_OR_BUSY
from keel.feedback.web.shown import (
    Kept,
    NewJudgement,
    Said,
    Shown,
    Way,
    held,
    in_order,
    kept,
    said_as_shown,
    shown,
    version_of,
    way_of,
    with_html,
)

router = APIRouter(prefix="/api/v1", responses=REFUSED_OR_BUSY, tags=["judging"])

AssignmentId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
_LAPSES_EVERY = 1.0  # seconds
_LINE_END = re.compile(r"\r\n?")
_BEGINNING = 120  # characters of a prompt that a line of the history shows


class Lapses:
    """Takes back what was held too long, before anything is lent."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._due = 0.0

    def release(self, now: float) -> None:
        if now >= self._due:
            self._due = now + _LAPSES_EVERY
            with self._database.writing() as session:
                release_lapsed(session, now=now)


async def _lapses(request: Request) -> Lapses:
    lapses: Lapses = request.app.state.lapses
    return lapses


class Judging(BaseModel):
    """A project and where this person stands in it."""

    way: Way
    answered: int = Field(description="answers given since the time that was asked about")
    left: int = Field(description="tasks to label that this person can still be given, or holds")
    more: bool = Field(description="whether there are more than `left`: so many are not counted, or gold is among them")


class Wanted(Body):
    count: int = Field(1, ge=1, le=MOST_AHEAD)


class Lent(BaseModel):
    tasks: list[Shown]
    version: str = Field(description="of the project's way of judging: another one where people are asked otherwise")


class Renewed(BaseModel):
    seconds_left: float


class Differences(BaseModel):
    """A response each, as HTML with <mark> around what the first has not; the first is marked against the second."""

    responses: list[str]


class Line(BaseModel):
    """A judgement of one's own that stands."""

    number: int
    assignment: str
    said_at: Seconds
    prompt: str = Field(description="how it begins, or how the last message of a chat does")
    said: Said


class History(BaseModel):
    lines: list[Line]


@router.get("/projects/{project_id}/judging")
def judging(
    user: Annotator, database: TheDatabase, project_id: Id, since: Annotated[float, Query(allow_inf_nan=False)] = 0.0
) -> Judging:
    """How a project is judged, and where you stand in it."""
    with database.reading() as session:
        project = project_to_judge(session, project_id, user)
        answered = judgements.answered_since(session, project, user, since)
        left = left_for(session, project, user)
    return Judging(way=way_of(project), answered=answered, left=left.count, more=left.more)


@router.post("/projects/{project_id}/leases")
def next_tasks(
    user: Annotator,
    database: TheDatabase,
    lapses: Annotated[Lapses, Depends(_lapses)],
    project_id: Id,
    wanted: Wanted,
) -> Lent:
    """Your next tasks, those that you hold already first; none where nothing is left."""
    now = time.time()
    lapses.release(now)
    with database.writing() as session:
        project = project_to_judge(session, project_id, user)
        lent = [held(one, None) for one in lease(session, project, user, count=wanted.count, now=now)]
        version = version_of(settings_of(project))
    return Lent(tasks=[shown(one, now=now) for one in lent], version=version)


@router.put("/judgements/{key}")
def judge(user: Annotator, database: TheDatabase, key: uuid.UUID, said: NewJudgement) -> Kept:
    """Say something of a task, under a key that you make; sent again, it is the same judgement.

    `answer` to what you answered already corrects it; `withdrawn` takes back what you said, and the task is yours
    again; `skip` and `problem` leave it to others.
    """
    with database.writing() as session:
        answer = _as_meant(session, said)
        what = judgements.Said(said.verdict, answer, said.criteria, said.comment, said.duration)
        made = judgements.judge(session, user, str(key), said.assignment, what, now=time.time())
        answered = kept(made)
    return with_html(answered)


def _as_meant(session: Session, said: NewJudgement) -> Any:
    """The answer; a replacement that differs from the response in its line ends alone, as text fields do, is none."""
    answer: Any = said.answer
    if not isinstance(answer, dict) or not isinstance(edited := answer.get("edited"), str):
        return answer
    texts = session.scalars(
        select(Response.text)
        .join(Assignment, Assignment.task_id == Response.task_id)
        .where(Assignment.id == said.assignment)
    )
    same = any(_LINE_END.sub("\n", text) == _LINE_END.sub("\n", edited) for text in texts)
    return {**answer, "edited": None} if same else answer


@router.get("/assignments/{assignment_id}")
def assignment(user: Annotator, database: TheDatabase, assignment_id: AssignmentId) -> Shown:
    """A task that you hold or judged, with what you said of it."""
    with database.reading() as session:
        found = held_by(session, user, assignment_id)
        judgement = None if found.judgement_id is None else session.get(Judgement, found.judgement_id)
        one = held(found, judgement)
    return shown(one, now=time.time())


@router.get("/assignments/{assignment_id}/differences")
def differences(user: Annotator, database: TheDatabase, assignment_id: AssignmentId) -> Differences:
    """The responses' texts as they are, with what they have not in common marked."""
    with database.reading() as session:
        found = held_by(session, user, assignment_id)
        first, *others = in_order(found)
    pairs = [marked(first, other) for other in others]
    return Differences(responses=[pairs[0][0] if pairs else marked(first, first)[0], *(other for _, other in pairs)])


@router.post("/assignments/{assignment_id}/renew")
def renew_lease(user: Annotator, database: TheDatabase, assignment_id: AssignmentId) -> Renewed:
    """Keep a task for longer; refused as gone where somebody else has it."""
    now = time.time()
    with database.writing() as session:
        return Renewed(seconds_left=renew(session, user, assignment_id, now=now).expires_at - now)


@router.post("/assignments/{assignment_id}/return", status_code=204)
def give_task_back(user: Annotator, database: TheDatabase, assignment_id: AssignmentId) -> None:
    """Leave a task to others: the page is closing."""
    with database.writing() as session:
        held_by(session, user, assignment_id)
        give_back(session, user, assignment_id)


@router.get("/projects/{project_id}/history")
def history(
    user: Annotator,
    database: TheDatabase,
    project_id: Id,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    count: Annotated[int, Query(ge=1, le=100)] = 20,
) -> History:
    """What you said and stands, newest first."""
    return History(lines=own_lines(database, user, project_id, before=before, count=count))


def own_lines(database: Database, user: User, project_id: int, *, before: int | None, count: int) -> list[Line]:
    with database.reading() as session:
        project = project_to_judge(session, project_id, user)
        return [
            Line(
                number=judgement.id,
                assignment=one.id,
                said_at=judgement.created_at,
                prompt=beginning(one.task.prompt),
                said=said_as_shown(project, judgement),
            )
            for one, judgement in judgements.said_by(session, project, user, count=count, before=before)
        ]


def beginning(prompt: str | list[dict[str, str]]) -> str:
    """Of a prompt's text, or of a chat's last message, as one line."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    line = " ".join(text.split())
    return line if len(line) <= _BEGINNING else f"{line[: _BEGINNING - 1]}…"
