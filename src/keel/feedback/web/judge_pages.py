"""The page on which people judge, and the list of what one said."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from keel.feedback.judgements import closed_with_work_of
from keel.feedback.leases import left_for, project_to_judge
from keel.feedback.projects import all_projects
from keel.feedback.tables import User
from keel.feedback.web.access import Annotator
from keel.feedback.web.given import Id, TheDatabase, ThePages
from keel.feedback.web.home import Entry, HomeList
from keel.feedback.web.judging import own_lines
from keel.feedback.web.shown import in_words, way_of

router = APIRouter(include_in_schema=False)
_A_PAGE = 25


def to_judge(session: Session, user: User) -> HomeList | None:
    """The open projects, for those who may judge; those in which there is work for them come first."""
    if user.role == "viewer":
        return None
    projects = [(project, left_for(session, project, user)) for project in all_projects(session)]
    projects.sort(key=lambda one: one[1].nothing)  # by name among those with work, and among the others
    entries = [Entry(project.name, f"/projects/{project.id}/judge", left.in_words) for project, left in projects]
    return HomeList("To judge", entries, empty="No project is open.")


def judged_before(session: Session, user: User) -> HomeList | None:
    """The closed projects that they judged in, for those who may judge."""
    closed = [] if user.role == "viewer" else closed_with_work_of(session, user)
    entries = [Entry(project.name, f"/projects/{project.id}/history", "What you said") for project in closed]
    return HomeList("Closed projects", entries, empty="") if entries else None


@router.get("/projects/{project_id}/judge")
def judge_page(
    request: Request,
    user: Annotator,
    database: TheDatabase,
    pages: ThePages,
    project_id: Id,
    correct: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
) -> HTMLResponse:
    """`correct` is an assignment of theirs: what they said of it is corrected first."""
    with database.reading() as session:
        project = project_to_judge(session, project_id, user)
    way = way_of(project)
    start = {
        "way": way.model_dump(mode="json"),
        "user": user.id,
        "csrf": request.state.csrf,
        "correct": correct,
    }
    return pages(request, "judge.html.j2", way=way, start=start)


@router.get("/projects/{project_id}/history")
def history_page(
    request: Request,
    user: Annotator,
    database: TheDatabase,
    pages: ThePages,
    project_id: Id,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> HTMLResponse:
    lines = own_lines(database, user, project_id, before=before, count=_A_PAGE)
    with database.reading() as session:
        project = project_to_judge(session, project_id, user)
    older = lines[-1].number if len(lines) == _A_PAGE else None
    said = [(line, in_words(line.said.verdict, line.said.answer)) for line in lines]
    return pages(request, "history.html.j2", project=project, lines=said, older=older)
