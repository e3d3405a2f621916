"""A feedback server with one project, the hands of somebody who judges in it, and what they said by the texts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.projects import Settings, add_project, change_settings
from keel.feedback.tables import Assignment, Judgement, Kind, Project, Task
from keel.feedback.tasks import NewTask, add_tasks
from tests.browser.support import PATIENCE, assert_accessible, keep_picture, serving
from tests.feedback.support import PASSWORD, add_user, quick_app
from tests.feedback.worlds import new_tasks

JUDGEMENTS = re.compile("/api/v1/judgements/")
MENDED = "what it should have been"


@dataclass(frozen=True)
class Desk:
    """Ann's place in a project."""

    url: str
    project: int
    database: Database

    def open(self, page: Page, *, task: bool = True) -> Page:
        """Sign in, and have the first task before one."""
        page.request.post("/sign-in", form={"name": "ann", "password": PASSWORD})
        page.goto(f"/projects/{self.project}/judge")
        if task:
            expect(page.locator("#answer")).to_be_visible()
        return page

    def add(self, tasks: Sequence[NewTask]) -> None:
        with self.database.writing() as session:
            add_tasks(session, session.get_one(Project, self.project), tasks, now=time.time())

    def change(self, **settings: Any) -> None:
        """As an admin does while people judge."""
        with self.database.writing() as session:
            change_settings(session, session.get_one(Project, self.project), Settings(**settings))

    def durations(self) -> list[float]:
        """Of every row, in order: seconds."""
        with self.database.reading() as session:
            return list(session.scalars(select(Judgement.duration).order_by(Judgement.id)))

    def said(self) -> list[dict[str, Any]]:
        """Every row in order: the prompt, the verdict, the answer and criteria with texts for numbers, the comment."""
        with self.database.reading() as session:
            rows = session.scalars(select(Judgement).order_by(Judgement.id)).all()
            return [_by_text(session.get_one(Task, row.task_id), row) for row in rows]

    def states(self) -> list[str]:
        """Of the assignments, in the order of their tasks."""
        with self.database.reading() as session:
            return list(session.scalars(select(Assignment.state).order_by(Assignment.task_id)))

    def ends(self) -> float:
        """When the only lease ends."""
        with self.database.reading() as session:
            return session.scalars(select(Assignment.expires_at)).one()


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


def say(page: Page, act: Callable[[], None]) -> None:
    """Do it, and see another task, or none."""
    before = page.locator("#task").inner_text()
    act()
    expect(page.locator("#task")).not_to_have_text(before, use_inner_text=True)
    expect(page.get_by_text("Fetching")).to_have_count(0)


def point(target: Locator) -> None:
    """With the mouse, or with a finger where there is a touch screen."""
    if target.page.evaluate("navigator.maxTouchPoints > 0"):
        target.tap()
    else:
        target.click()


def press(page: Page, name: str) -> None:
    point(page.get_by_role("button", name=name, exact=True))


def begin_review(page: Page) -> None:
    """A replacement is written, and not sent."""
    page.keyboard.press("r")
    page.get_by_label("A better response").fill(MENDED)


def refuse(page: Page, what: re.Pattern[str], status: int, sentence: str) -> None:
    page.route(what, lambda route: route.fulfill(status=status, json={"error": {"message": sentence}}))


def take_back(page: Page) -> None:
    """By its key, wherever somebody is typing."""
    page.locator("#task").focus()
    page.keyboard.press("u")


def chip(page: Page, letter: str) -> Locator:
    return page.locator(".chip", has_text=letter)


def drag(page: Page, what: Locator, to: Locator) -> None:
    """To the left part of `to`, with the mouse or with a finger."""
    start, end = what.bounding_box(), to.bounding_box()
    assert start is not None
    assert end is not None
    x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
    left, across = end["x"] + 6, end["y"] + end["height"] / 2
    steps = [(x + (left - x) * part / 4, y + (across - y) * part / 4) for part in range(1, 5)]
    if page.evaluate("navigator.maxTouchPoints > 0"):
        fingers = page.context.new_cdp_session(page)

        def touch(kind: str, *at: tuple[float, float]) -> None:
            points = [{"x": x, "y": y} for x, y in at]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", (x, y))
        for step in steps:
            touch("touchMove", step)
        page.wait_for_timeout(150)  # lifted in full swing it would fling the page on, and the next tap would end that
        touch("touchEnd")
    else:
        page.mouse.move(x, y)
        page.mouse.down()
        for step in steps:
            page.mouse.move(*step)
        page.mouse.up()


def looked_at(page: Page, name: str) -> None:
    """Light and dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_accessible(page)
        keep_picture(page, f"{name}-{scheme}")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def met(page: Page, true: Callable[[], object]) -> None:
    """Wait for what the handlers of the page's requests bring about."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


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
