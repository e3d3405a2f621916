"""Projects for admins, who make and change them, and for viewers, who see how they go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from keel.errors import UserError
from keel.feedback import overview
from keel.feedback.contents import imports
from keel.feedback.export import Wanted, What
from keel.feedback.projects import (
    Settings,
    add_project,
    all_projects,
    change_settings,
    close_project,
    find_project,
    never_given,
    read_settings,
    reopen_project,
    settings_of,
)
from keel.feedback.quality import HEADER, quality, summary, table
from keel.feedback.refused import Refused
from keel.feedback.tables import Kind, Task, User
from keel.feedback.tasks import known_answers, progress, progress_of_rounds
from keel.feedback.web.access import Admin, Viewer
from keel.feedback.web.given import Id, Round, TheDatabase, ThePages, UnlessEmpty
from keel.feedback.web.home import Entry, HomeList
from keel.feedback.web.judging import beginning
from keel.feedback.web.projects_api import exported
from keel.feedback.web.tasks_api import MOST_UPLOADED
from keel.feedback.words import counted

KINDS: Mapping[Kind, str] = {
    "compare": "Compare: which of two responses is better",
    "rank": "Rank: up to nine responses, from best to worst",
    "rate": "Rate: each response on a scale",
    "review": "Review: accept a response, or edit it",
}
_SIMPLE = (
    "question", "guidelines", "votes", "most_votes", "choice", "lease_minutes", "gold_share", "repeat_share",
    "least_seconds",
)  # fmt: skip
_LABELS = {
    "question": "Question",
    "guidelines": "Guidelines",
    "scale": "Scale",
    "votes": "Votes a task",
    "choice": "Which task comes next",
    "most_votes": "Most votes of a disputed task",
    "lease_minutes": "Minutes for a task",
    "gold_share": "Share of gold",
    "repeat_share": "Share of repeats",
    "least_seconds": "Least seconds",
    "kind": "How it is judged",
}
"""What the form calls a setting."""
_OF_A_CRITERION = {"name": "name in the export", "question": "question", "options": "options"}
_BLANK_CRITERIA = 2

router = APIRouter(prefix="/projects", include_in_schema=False)


def home_list(session: Session, user: User) -> HomeList | None:
    """The projects, for who sees everybody's work."""
    if user.role == "annotator":
        return None
    entries = []
    for one in all_projects(session):
        done = progress(session, one)
        entries.append(Entry(one.name, f"/projects/{one.id}", f"{done.votes:,} of {counted(done.wanted, 'vote')}"))
    return HomeList("Projects", entries, "There is no project yet. Make one under Projects.")


async def _posted(request: Request) -> FormData:
    return await request.form()


Posted = Annotated[FormData, Depends(_posted)]


@router.get("")
def projects(request: Request, user: Viewer, database: TheDatabase, pages: ThePages) -> HTMLResponse:
    with database.reading() as session:
        lines = [(one, progress(session, one)) for one in all_projects(session, closed=True)]
    return pages(request, "projects.html.j2", lines=lines)


@router.get("/new")
def new(request: Request, user: Admin, pages: ThePages) -> HTMLResponse:
    return _form(request, pages, _written(Settings()), name="", kind="compare")


@router.post("/new")
def make(user: Admin, request: Request, database: TheDatabase, pages: ThePages, posted: Posted) -> Response:
    name, chosen = _text(posted, "name"), _text(posted, "kind")
    kind = next((one for one in KINDS if one == chosen), None)
    try:
        if kind is None:
            raise Refused("invalid", f"kind: choose one of {', '.join(KINDS)}", field="kind")
        with database.writing() as session:
            made = add_project(session, name, kind, _read(posted), now=time.time())
            number = made.id
    except Refused as refused:
        return _form(request, pages, _typed(posted), name=name, kind=chosen, refused=refused)
    return RedirectResponse(f"/projects/{number}", status_code=303)


@router.get("/{project_id}")
def project(request: Request, user: Viewer, database: TheDatabase, pages: ThePages, project_id: Id) -> HTMLResponse:
    with database.snapshot() as session:
        found = find_project(session, project_id)
        return pages(
            request,
            "project.html.j2",
            project=found,
            settings=settings_of(found),
            most=MOST_UPLOADED >> 20,
            progress=progress(session, found),
            known=known_answers(session, found),
            no_gold=never_given(found, "gold"),
            imports=imports(session, found) if user.role == "admin" else [],
            rounds=progress_of_rounds(session, found),
            people=overview.answers_by_person(session, found),
            days=overview.answers_by_day(session, found),
        )


@router.get("/{project_id}/settings")
def settings_page(
    request: Request, user: Admin, database: TheDatabase, pages: ThePages, project_id: Id
) -> HTMLResponse:
    with database.reading() as session:
        found = find_project(session, project_id)
    return _form(request, pages, _written(settings_of(found)), name=found.name, kind=found.kind, number=found.id)


@router.post("/{project_id}/settings")
def set_settings(
    user: Admin, request: Request, database: TheDatabase, pages: ThePages, project_id: Id, posted: Posted
) -> Response:
    with database.reading() as session:
        found = find_project(session, project_id)
    try:
        with database.writing() as session:
            change_settings(session, find_project(session, project_id), _read(posted))
    except Refused as refused:
        values = _typed(posted)
        return _form(request, pages, values, name=found.name, kind=found.kind, number=found.id, refused=refused)
    return RedirectResponse(f"/projects/{project_id}", status_code=303)


@router.post("/{project_id}/closed")
def set_closed(user: Admin, database: TheDatabase, project_id: Id, closed: Annotated[bool, Form()]) -> Response:
    with database.writing() as session:
        found = find_project(session, project_id)
        if closed:
            close_project(found, now=time.time())
        else:
            reopen_project(found)
    return RedirectResponse(f"/projects/{project_id}", status_code=303)


@router.get("/{project_id}/quality")
def quality_page(
    request: Request, user: Viewer, database: TheDatabase, pages: ThePages, project_id: Id
) -> HTMLResponse:
    with database.snapshot() as session:
        project = find_project(session, project_id)
        found = quality(session, project)
    return pages(
        request, "project_quality.html.j2", project=project, summary=summary(found), header=HEADER, lines=table(found)
    )


@router.get("/{project_id}/remarks")
def remarks_page(
    request: Request, user: Viewer, database: TheDatabase, pages: ThePages, project_id: Id
) -> HTMLResponse:
    with database.reading() as session:
        project = find_project(session, project_id)
        found = overview.remarks(session, project)
        asked = select(Task.id, Task.prompt).where(Task.id.in_({one.task for one in found}))
        prompts = {task: beginning(prompt) for task, prompt in session.execute(asked)}
    return pages(
        request,
        "project_remarks.html.j2",
        project=project,
        remarks=found,
        prompts=prompts,
        most=overview.MOST_REMARKS,
    )


@router.get("/{project_id}/audit")
def audit_page(request: Request, user: Viewer, database: TheDatabase, pages: ThePages, project_id: Id) -> HTMLResponse:
    found, why_not = None, ""
    with database.reading() as session:
        project = find_project(session, project_id)
    try:
        found = overview.audit_of(database, project_id)
    except UserError as error:
        why_not = str(error)
    return pages(request, "project_audit.html.j2", project=project, found=found, why_not=why_not)


@router.get("/{project_id}/export.jsonl")
def export(
    user: Viewer,
    database: TheDatabase,
    project_id: Id,
    what: What = "judgements",
    round: Annotated[Round | None, UnlessEmpty] = None,
    everything: bool = False,
    anonymous: bool = False,
) -> Response:
    return exported(database, project_id, what, Wanted(round, everything), anonymous=anonymous)


# --- the form of the settings ---


def _form(
    request: Request,
    pages: ThePages,
    values: Mapping[str, Any],
    *,
    name: str,
    kind: str,
    number: int | None = None,
    refused: Refused | None = None,
) -> HTMLResponse:
    """The settings as they are typed; `number` is that of a project that is there."""
    blank = [{"name": "", "question": "", "options": ""}] * _BLANK_CRITERIA
    context = {
        "values": {**values, "criteria": [*values["criteria"], *blank][:9]},
        "labels": _LABELS,
        "fields": {name: _sentence(field.description or "") for name, field in Settings.model_fields.items()},
        "kinds": KINDS,
    }
    refused = None if refused is None else _as_labelled(refused)
    return pages(request, "project_form.html.j2", refused=refused, name=name, kind=kind, number=number, **context)


def _as_labelled(refused: Refused) -> Refused:
    """The same, with the words of the form for the field that is to blame."""
    match (refused.field or "").split("."):
        case ["criteria", number, part, *_] if part in _OF_A_CRITERION:
            label = f"Criterion {int(number) + 1}, {_OF_A_CRITERION[part]}"
        case [field, *_]:
            label = _LABELS.get(field, field)
    message = str(refused)
    named = f"{refused.field}: "
    said = f"{label}: {message.removeprefix(named)}" if message.startswith(named) else message
    return Refused(refused.code, said, field=refused.field)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _written(settings: Settings) -> dict[str, Any]:
    """Settings as the form shows them."""
    shown = {name: "" if getattr(settings, name) is None else str(getattr(settings, name)) for name in _SIMPLE}
    criteria = [
        {"name": one.name, "question": one.question, "options": ", ".join(one.options)} for one in settings.criteria
    ]
    return shown | {"scale": [str(end) for end in settings.scale], "criteria": criteria}


def _typed(posted: FormData) -> dict[str, Any]:
    """What was typed, in the same form."""
    columns = [[str(one) for one in posted.getlist(f"criterion_{name}")] for name in ("name", "question", "options")]
    rows = zip(*columns, strict=False)
    criteria = [{"name": name, "question": question, "options": options} for name, question, options in rows]
    shown = {name: _text(posted, name) for name in _SIMPLE}
    return shown | {
        "scale": [_text(posted, "scale_lowest"), _text(posted, "scale_highest")],
        "criteria": [one for one in criteria if any(one.values())],
    }


def _read(posted: FormData) -> Settings:
    """Raises Refused. What is left empty is as by default."""
    typed = _typed(posted)
    given: dict[str, Any] = {name: typed[name] for name in _SIMPLE if typed[name]}
    if any(typed["scale"]):
        given["scale"] = typed["scale"]
    given["criteria"] = [
        {name: value for name, value in one.items() if value and name != "options"}
        | ({"options": [each.strip() for each in one["options"].split(",")]} if one["options"].strip() else {})
        for one in typed["criteria"]
    ]
    return read_settings(given)


def _text(posted: FormData, name: str) -> str:
    value = posted.get(name, "")
    return value.replace("\r\n", "\n").strip() if isinstance(value, str) else ""
