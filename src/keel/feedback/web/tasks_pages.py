"""A project's tasks for people: which there are, what was said of one, and an import that is withdrawn."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from keel.feedback import contents, overview
from keel.feedback.answers import kept_answer
from keel.feedback.contents import Order, Sought, TaskState
from keel.feedback.projects import find_project, settings_of
from keel.feedback.refused import Refused
from keel.feedback.render import markdown, turns
from keel.feedback.tables import Assignment, Judgement, Project, Purpose, Task
from keel.feedback.web.access import Admin, Viewer
from keel.feedback.web.given import Below, Id, Round, TheDatabase, ThePages, UnlessEmpty
from keel.feedback.web.judging import beginning
from keel.feedback.web.shown import in_words

router = APIRouter(prefix="/projects", include_in_schema=False)
_A_PAGE = 50


@router.get("/{project_id}/tasks")
def tasks_page(
    request: Request,
    user: Viewer,
    database: TheDatabase,
    pages: ThePages,
    project_id: Id,
    purpose: Annotated[Purpose | None, UnlessEmpty] = None,
    round: Annotated[Round | None, UnlessEmpty] = None,
    state: Annotated[TaskState | None, UnlessEmpty] = None,
    order: Order = "number",
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    below: Below | None = None,
) -> HTMLResponse:
    sought = Sought(purpose, round, state, order)
    with database.reading() as session:
        project = find_project(session, project_id)
        found = contents.find_tasks(session, project, sought, count=_A_PAGE + 1, after=after, below=below)
    chosen: dict[str, str | float] = {
        "purpose": purpose or "",
        "round": round or "",
        "state": state or "",
        "order": order,
    }
    lines, on = found[:_A_PAGE], dict[str, float]()
    if len(found) > _A_PAGE:
        on = {"after": lines[-1].id} | ({"below": lines[-1].priority} if order == "priority" else {})
    return pages(
        request,
        "project_tasks.html.j2",
        project=project,
        choice=settings_of(project).choice,
        chosen=chosen,
        lines=[(one, beginning(one.prompt)) for one in lines],
        first=f"?{urlencode(chosen)}" if after else "",
        more=f"?{urlencode(chosen | on)}" if on else "",
    )


@router.post("/{project_id}/imports/{number}")
def set_withdrawn(
    user: Admin, database: TheDatabase, project_id: Id, number: Id, withdrawn: Annotated[bool, Form()]
) -> Response:
    with database.writing() as session:
        contents.set_withdrawn(session, find_project(session, project_id), number, withdrawn, now=time.time())
    return RedirectResponse(f"/projects/{project_id}#imports", status_code=303)


@router.get("/{project_id}/tasks/{task_id}")
def task_page(
    request: Request, user: Viewer, database: TheDatabase, pages: ThePages, project_id: Id, task_id: Id
) -> HTMLResponse:
    with database.reading() as session:
        project = find_project(session, project_id)
        task = session.get(Task, task_id)
        if task is None or task.project_id != project.id:
            raise Refused("not_found", f"the project {project.name} has no task {task_id}")
        responses = list(task.responses)
        said = [_said(project, *one) for one in overview.said_of(session, task)]
    return pages(
        request,
        "project_task.html.j2",
        project=project,
        task=task,
        turns=turns(task.prompt),
        responses=[(one, markdown(one.text)) for one in responses],
        said=said,
    )


def _said(project: Project, name: str, assignment: Assignment, judgement: Judgement) -> dict[str, Any]:
    """What somebody said of a task: responses are called by their positions, criteria by what they ask."""
    answer = None if judgement.answer is None else kept_answer(project.kind, judgement.answer)
    questions = {one.name: one.question or one.name for one in settings_of(project).criteria}
    return {
        "name": name,
        "words": in_words(judgement.verdict, answer),
        "replacement": getattr(answer, "edited", None),
        "criteria": [
            (questions.get(key, key), value) for key, value in judgement.criteria.items() if value is not None
        ],
        "assignment": assignment,
        "judgement": judgement,
    }
