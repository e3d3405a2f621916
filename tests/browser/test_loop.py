"""The whole loop with people at real browsers: a policy, two who judge, a reward, PPO, and the new policy's round."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from keel.feedback.database import Database
from keel.feedback.projects import find_project
from keel.pipeline import people
from tests.browser.support import Visitors, serving
from tests.end_to_end.looping import PROJECT, go_round
from tests.feedback.support import PASSWORD, add_user, quick_app


def test_two_rounds(visit: Visitors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "_POLL_SECONDS", 0.05)
    database = Database(tmp_path / "feedback.db")
    names = {"ann": "desktop", "ben": "phone"}
    for name in names:
        add_user(database, name)
    with serving(quick_app(database)) as url:
        pages = {name: visit(url, size=size) for name, size in names.items()}
        for name, page in pages.items():
            sign_in(page, name)

        def judging(tasks: int) -> None:
            with database.reading() as session:
                number = find_project(session, PROJECT).id
            for page in pages.values():
                page.goto(f"/projects/{number}/judge")
                for _ in range(tasks):
                    prefer_the_longer(page)
                expect(page.get_by_text("Nothing is left for you to judge")).to_be_visible()
                expect(page.locator("#saving")).to_have_text("Saved")

        go_round(tmp_path, database, judging)
    database.close()


def sign_in(page: Page, name: str) -> None:
    page.goto("/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()


def prefer_the_longer(page: Page) -> None:
    """By its button; then another task is there, or none."""
    expect(page.locator("#answer")).to_be_visible()
    before = page.locator("#task").inner_text()
    first, second = page.locator("#task .response > .text").all_inner_texts()
    page.get_by_role("button", name="A better" if len(first) >= len(second) else "B better", exact=True).click()
    expect(page.locator("#task")).not_to_have_text(before, use_inner_text=True)
    expect(page.get_by_text("Fetching")).to_have_count(0)
