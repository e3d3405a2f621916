"""A feedback server with one project, somebody who judges in it, and what they said there by the responses' texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.projects import Settings, add_project
from keel.feedback.tables import Judgement, Kind, Project, Task
from keel.feedback.tasks import NewTask, add_tasks
from tests.browser.support import serving
from tests.feedback.support import PASSWORD, add_user, quick_app
from tests.feedback.worlds import new_tasks


@dataclass(frozen=True)
class Desk:
    """Ann's place in a project."""

    url: str
    project: int
    database: Database

    def open(self, page: Page, *, task: bool = True) -> Page:
        """Sign in, and have the first task before one."""
        page.goto(f"/sign-in?next=/projects/{self.project}/judge")
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        if task:
            expect(page.locator("#answer")).to_be_visible()
        return page

    def add(self, tasks: Sequence[NewTask]) -> None:
        with self.database.writing() as session:
            add_tasks(session, session.get_one(Project, self.project), tasks, now=time.time())

    def said(self) -> list[dict[str, Any]]:
        """Every row in order: the prompt, the verdict, the answer and criteria with texts for numbers, the comment."""
        with self.database.reading() as session:
            rows = session.scalars(select(Judgement).order_by(Judgement.id)).all()
            return [_by_text(session.get_one(Task, row.task_id), row) for row in rows]


@contextmanager
def desk(folder: Path, kind: Kind, tasks: Sequence[NewTask] | None = None, **settings: Any) -> Iterator[Desk]:
    database = Database(folder / "feedback.db")
    add_user(database, "ann")
    if tasks is None:
        tasks = new_tasks(4, {"compare": 2, "rank": 3, "rate": 2, "review": 1}[kind])
    with database.writing() as session:
        project = add_project(session, f"to {kind}", kind, Settings(**settings), now=time.time())
        add_tasks(session, project, tasks, now=time.time())
        number = project.id
    with serving(quick_app(database)) as url:
        yield Desk(url, number, database)
    database.close()


def shown(page: Page) -> list[str]:
    """The responses' texts, as they stand."""
    return [text.strip() for text in page.locator("#task .response > .text").all_inner_texts()]


def prompt(page: Page) -> str:
    return page.locator("#task .prompt").inner_text().strip()


def saved(page: Page) -> None:
    expect(page.locator("#saving")).to_have_text("Saved")


def _by_text(task: Task, row: Judgement) -> dict[str, Any]:
    texts = {one.position: one.text for one in task.responses}
    answer = dict(row.answer or {})
    if isinstance(answer.get("best"), int):
        answer["best"] = texts[answer["best"]]
    for key in ("ranks", "ratings"):
        if key in answer:
            answer[key] = {texts[position]: value for position, value in enumerate(answer[key])}
    criteria = {name: texts[value] if isinstance(value, int) else value for name, value in row.criteria.items()}
    return {
        "prompt": task.prompt,
        "verdict": row.verdict,
        "answer": answer,
        "criteria": criteria,
        "comment": row.comment,
    }
