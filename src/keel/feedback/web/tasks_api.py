"""A project's tasks for programs: put them in, see which there are, withdraw an import or put it back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, BeforeValidator, Field

from keel.config.data import DataConfig
from keel.data.files import ENDINGS
from keel.errors import UserError
from keel.feedback import contents
from keel.feedback.contents import Order, Sought, TaskState
from keel.feedback.importing import Imported, Meant, put_tasks, read_tasks
from keel.feedback.projects import find_project
from keel.feedback.refused import Refused
from keel.feedback.tables import Purpose
from keel.feedback.web.access import FORMS, Admin, Viewer
from keel.feedback.web.given import Below, Body, FromRow, Id, Round, Seconds, TheDatabase
from keel.feedback.web.judging import beginning
from keel.feedback.web.shell import MOST_BYTES, REFUSED_OR_BUSY
from keel.feedback.web.sites import is_bearer

MOST_UPLOADED = 256 << 20

router = APIRouter(prefix="/api/v1/projects", responses=REFUSED_OR_BUSY, tags=["tasks"])


class LeftOut(BaseModel):
    reason: str
    meaning: str
    count: int
    row: int = Field(description="the first of them; rows count from 0")
    detail: str


class ImportedTasks(BaseModel):
    new: int
    known: int = Field(description="that were there already")
    duplicates: int = Field(description="that were among them more than once")
    repeated: int = Field(description="responses that said the same as another to their prompt")
    left_out: list[LeftOut]
    never_given: str = Field(description="why nobody would be given such tasks as things stand, or empty")
    words: list[str] = Field(description="all of that in sentences, with the first few rows that were left out")


class ImportLine(FromRow):
    """Tasks that were put in at once."""

    number: int = Field(description="that of the first of its tasks")
    created_at: Seconds
    purpose: Purpose
    round: int
    batch: str | None = Field(description="whose tasks these are, where a run waits for them")
    policy_version: str | None
    tasks: int
    votes: int = Field(description="answers to them that stand")
    withdrawn_at: Seconds | None


class Withdrawn(Body):
    withdrawn: bool = Field(description="true: nobody is given these tasks any more, and they count nowhere")


class TaskLine(FromRow):
    id: int
    purpose: Purpose
    round: int
    policy_version: str | None
    prompt: Annotated[str, BeforeValidator(beginning)] = Field(
        description="how it begins, or how the last message of a chat does"
    )
    votes: int = Field(description="answers that stand")
    seats: int = Field(description="votes that are wanted; gold and practice want none")
    priority: float = Field(
        description="what is judged first: how disputed it is, or how uncertain; higher comes first"
    )
    created_at: Seconds
    withdrawn_at: Seconds | None


class TaskList(BaseModel):
    tasks: list[TaskLine]


FileName = Annotated[str, Query(max_length=255, description="what the file is called: its ending says what it is")]


async def _uploaded(
    request: Request,
    user: Admin,
    name: FileName = "",
) -> AsyncIterator[Path]:
    """The body in a file that lives as long as the request. Only an admin may send more than the usual size."""
    if _is_a_form(request):
        raise Refused("invalid", "send the file itself as the body, as application/octet-stream, and no form around it")
    request.scope[MOST_BYTES] = MOST_UPLOADED
    ending = next((one for one in ENDINGS if name.lower().removesuffix(".gz").endswith(one)), ".jsonl")
    with TemporaryDirectory(prefix="keel-upload-") as folder:
        file = Path(folder, f"upload{ending}")
        with file.open("wb") as out:
            async for piece in request.stream():
                out.write(piece)
        yield file


def _is_a_form(request: Request) -> bool:
    """Some programs call any body a form; with a token that is no harm, without one the body was parsed as a form."""
    kind = request.headers.get("content-type", "").lower()
    return kind.startswith(FORMS) and not (is_bearer(request) and kind.startswith(FORMS[0]))


_FILE = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/{project_id}/tasks",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _FILE}}},
)
def upload(
    database: TheDatabase,
    project_id: Id,
    file: Annotated[Path, Depends(_uploaded)],
    purpose: Purpose = "label",
    round: Round = 1,
    policy_version: Annotated[str | None, Query(max_length=200)] = None,
    name: FileName = "",
) -> ImportedTasks:
    """Tasks from a file, which is the body: JSON lines, or JSON, CSV or Parquet by its name.

    Rows that are no task are left out and named; where the file cannot be read to its end, nothing is put in.
    """
    with database.reading() as session:
        found = find_project(session, project_id)
    meant, called = Meant(purpose, round, policy_version), Path(name).name or "the file"
    try:
        with (
            read_tasks(found, [DataConfig(path=str(file))], meant, now=time.time()) as read,
            database.writing() as session,
        ):
            done = put_tasks(session, find_project(session, project_id), read)
    except UserError as error:
        raise UserError(str(error).replace(str(file), called)) from None
    return _imported(done, [one.replace(str(file), called) for one in done.in_words(found.name)])


def _imported(done: Imported, words: list[str]) -> ImportedTasks:
    findings = done.check.table()
    left_out = [
        LeftOut(
            reason=reason.value,
            meaning=reason.sentence,
            count=count,
            row=findings[reason][0].row,
            detail=findings[reason][0].detail,
        )
        for reason, count in done.left_out.items()
    ]
    return ImportedTasks(
        new=done.added.new,
        known=done.added.known,
        duplicates=done.added.duplicates,
        repeated=done.repeated,
        left_out=left_out,
        never_given=done.never_given,
        words=words,
    )


@router.get("/{project_id}/tasks")
def tasks(
    user: Viewer,
    database: TheDatabase,
    project_id: Id,
    purpose: Purpose | None = None,
    round: Round | None = None,
    state: TaskState | None = None,
    order: Order = "number",
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="the number of the last one seen")] = 0,
    below: Below | None = None,
    count: Annotated[int, Query(ge=1, le=500)] = 100,
) -> TaskList:
    """The tasks by their numbers, or what is judged first by `order=priority`; those withdrawn only if asked for."""
    sought = Sought(purpose, round, state, order)
    with database.reading() as session:
        project = find_project(session, project_id)
        found = contents.find_tasks(session, project, sought, count=count, after=after, below=below)
        return TaskList(tasks=[TaskLine.model_validate(one) for one in found])


@router.get("/{project_id}/imports")
def imports(user: Viewer, database: TheDatabase, project_id: Id) -> list[ImportLine]:
    """What was put in at once, newest first."""
    with database.reading() as session:
        found = contents.imports(session, find_project(session, project_id))
    return [ImportLine.model_validate(one) for one in found]


@router.put("/{project_id}/imports/{number}/withdrawn")
def set_withdrawn(user: Admin, database: TheDatabase, project_id: Id, number: Id, body: Withdrawn) -> ImportLine:
    """Withdraw the tasks of an import, or put them back. What was said of them stays, and is taken while they last."""
    with database.writing() as session:
        project = find_project(session, project_id)
        found = contents.set_withdrawn(session, project, number, body.withdrawn, now=time.time())
    return ImportLine.model_validate(found)
