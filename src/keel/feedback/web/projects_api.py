"""Projects for programs: make and change them, see how they go, take judgements out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from keel.feedback import overview
from keel.feedback.database import Database
from keel.feedback.export import Wanted, What, by_name, by_pseudonym, write_export
from keel.feedback.projects import (
    Settings,
    add_project,
    all_projects,
    change_settings,
    close_project,
    find_project,
    reopen_project,
)
from keel.feedback.quality import quality
from keel.feedback.tables import Kind, Verdict
from keel.feedback.tasks import known_answers, progress, progress_of_rounds
from keel.feedback.web.access import Admin, Viewer
from keel.feedback.web.given import Body, FromRow, Id, Round, Seconds, TheDatabase
from keel.feedback.web.shell import REFUSED_OR_BUSY

_A_PIECE = 1 << 16

router = APIRouter(prefix="/api/v1/projects", responses=REFUSED_OR_BUSY, tags=["projects"])


class ProjectLine(FromRow):
    id: int
    name: str
    kind: Kind
    settings: Settings
    created_at: Seconds
    closed_at: Seconds | None


class NewProject(Body):
    name: str
    kind: Kind
    settings: Settings = Settings()


class Closed(Body):
    closed: bool = Field(description="true: nobody is given a task of it any more")


class Counts(FromRow):
    tasks: int
    complete: int
    votes: int = Field(description="votes that stand, of no task more than it wants")
    wanted: int


class RoundCounts(Counts):
    round: int


class PersonAnswers(BaseModel):
    name: str
    answers: int


class DayAnswers(BaseModel):
    day: str
    answers: int


class ProjectProgress(Counts):
    """Of the tasks to be labelled; gold and practice have no number of votes."""

    gold: int = Field(description="tasks with a known answer, hidden among the others")
    practice: int = Field(description="tasks with a known answer, shown first")
    rounds: list[RoundCounts]
    people: list[PersonAnswers]
    days: list[DayAnswers]


class RateLine(FromRow):
    hits: int
    total: int
    interval: tuple[float, float] = Field(description="95%")


class EstimateLine(FromRow):
    value: float
    interval: tuple[float, float] = Field(description="95%")


class PersonQualityLine(FromRow):
    name: str
    active: bool
    judgements: int
    skips: int
    problems: int
    median_seconds: float | None
    fast: RateLine
    gold: RateLine
    repeats: RateLine
    first: RateLine
    agreement: float | None
    others: int


class ProjectQuality(FromRow):
    scale: str
    alpha: EstimateLine | None
    agreement: EstimateLine | None
    unknown: str = Field(description="why alpha and agreement are not known")
    people: list[PersonQualityLine]


class RemarkLine(FromRow):
    task: int
    person: str
    verdict: Verdict
    comment: str
    created_at: Seconds


@router.get("")
def projects(user: Viewer, database: TheDatabase, closed: bool = False) -> list[ProjectLine]:
    """The open ones by name, and the closed ones if asked for."""
    with database.reading() as session:
        return [ProjectLine.model_validate(one) for one in all_projects(session, closed=closed)]


@router.post("", status_code=201)
def make(user: Admin, database: TheDatabase, body: NewProject) -> ProjectLine:
    with database.writing() as session:
        made = add_project(session, body.name, body.kind, body.settings, now=time.time())
        return ProjectLine.model_validate(made)


@router.get("/{project_id}")
def project(user: Viewer, database: TheDatabase, project_id: Id) -> ProjectLine:
    with database.reading() as session:
        return ProjectLine.model_validate(find_project(session, project_id))


@router.put("/{project_id}/settings")
def set_settings(user: Admin, database: TheDatabase, project_id: Id, body: Settings) -> ProjectLine:
    """New settings for what is judged from now on; what is left out is as by default."""
    with database.writing() as session:
        found = find_project(session, project_id)
        change_settings(session, found, body)
        return ProjectLine.model_validate(found)


@router.put("/{project_id}/closed")
def set_closed(user: Admin, database: TheDatabase, project_id: Id, body: Closed) -> ProjectLine:
    with database.writing() as session:
        found = find_project(session, project_id)
        if body.closed:
            close_project(found, now=time.time())
        else:
            reopen_project(found)
        return ProjectLine.model_validate(found)


@router.get("/{project_id}/progress")
def get_progress(user: Viewer, database: TheDatabase, project_id: Id) -> ProjectProgress:
    with database.snapshot() as session:
        found = find_project(session, project_id)
        rounds = progress_of_rounds(session, found).items()
        return ProjectProgress(
            **Counts.model_validate(progress(session, found)).model_dump(),
            **known_answers(session, found),
            rounds=[RoundCounts(round=round, **Counts.model_validate(one).model_dump()) for round, one in rounds],
            people=[PersonAnswers(name=name, answers=n) for name, n in overview.answers_by_person(session, found)],
            days=[DayAnswers(day=day, answers=n) for day, n in overview.answers_by_day(session, found)],
        )


@router.get("/{project_id}/quality")
def get_quality(user: Viewer, database: TheDatabase, project_id: Id) -> ProjectQuality:
    """How far people agree, and what is known of each."""
    with database.snapshot() as session:
        return ProjectQuality.model_validate(quality(session, find_project(session, project_id)))


@router.get("/{project_id}/remarks")
def get_remarks(user: Viewer, database: TheDatabase, project_id: Id) -> list[RemarkLine]:
    """The newest problems and comments."""
    with database.reading() as session:
        found = overview.remarks(session, find_project(session, project_id))
        return [RemarkLine.model_validate(one) for one in found]


_ROWS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "description": "one record a line"}
}


@router.get("/{project_id}/export", response_class=StreamingResponse, responses=_ROWS)
def export(
    user: Viewer,
    database: TheDatabase,
    project_id: Id,
    what: What = "judgements",
    round: Round | None = None,
    purpose: Annotated[
        Literal["label", "all"], Query(description="all: gold, practice, repeats and withdrawn tasks too")
    ] = "label",
    anonymous: bool = False,
) -> StreamingResponse:
    """What people said, as `keel feedback export` writes it."""
    return exported(database, project_id, what, Wanted(round, purpose == "all"), anonymous=anonymous)


def exported(database: Database, project_id: int, what: What, wanted: Wanted, *, anonymous: bool) -> StreamingResponse:
    """A download. It is written first: a slow reader holds no transaction open, and an error is no half of a file."""
    names = by_pseudonym(database) if anonymous else by_name
    with ExitStack() as stack:
        file = stack.enter_context(TemporaryFile(prefix="keel-export-"))
        with database.snapshot() as session:
            write_export(session, find_project(session, project_id), {what: file}, wanted, names)
        file.seek(0)
        until_sent = stack.pop_all()

    def pieces() -> Iterator[bytes]:
        with until_sent:
            while piece := file.read(_A_PIECE):
                yield piece

    headers = {"Content-Disposition": f'attachment; filename="{what}.jsonl"'}
    return StreamingResponse(pieces(), media_type="application/x-ndjson", headers=headers)
