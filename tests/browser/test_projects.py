"""Making a project, filling it and looking at what came of it, as an admin does it in a browser."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import expect
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.projects import find_project
from keel.feedback.tables import User
from tests.browser.support import Visitors, assert_accessible, keep_picture, serving
from tests.feedback.support import PASSWORD, add_user, quick_app
from tests.feedback.worlds import answered, tasks_of

LONG = "A response goes on for a while, as they do. " * 4


def test_a_project_from_its_form_to_its_audit(visit: Visitors, size: str, tmp_path: Path) -> None:
    database = Database(tmp_path / "feedback.db")
    for name in ("Ana", "Béla"):
        add_user(database, name)
    file = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"Why is {k} odd?", "responses": [f"{k}. {LONG}", f"It is {k}."]} for k in range(12)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"prompt": "p"}]))
    with serving(quick_app(database)) as url:
        page = visit(url, size=size, dark=size == "phone")
        page.goto("/projects/new")
        page.get_by_label("Name", exact=True).fill("root")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_label("Name", exact=True).fill("Helpful answers")
        page.get_by_label("Votes a task").fill("2")
        page.get_by_label("Question", exact=True).first.fill("Which is more helpful?")
        assert_accessible(page)
        keep_picture(page, f"project-form-{size}")
        page.get_by_role("button", name="Make the project").click()

        expect(page.get_by_role("heading", name="Helpful answers")).to_be_visible()
        page.get_by_label("File").set_input_files(file)
        page.get_by_role("button", name="Put them in").click()
        expect(page.get_by_role("status")).to_contain_text("12 new tasks. 1 left out: A field that this kind")
        expect(page.get_by_text("0 of 24 votes")).to_be_visible()

        with database.writing() as session:
            made = find_project(session, "Helpful answers")
            for user in session.scalars(select(User).where(User.role == "annotator")):
                for number, task in enumerate(tasks_of(session, made)):
                    best = int(number % 3 == 0 and user.name == "Ana")
                    comment = "Both ramble on." if number == 4 else ""
                    answer = {"best": best, "strength": "clear"}
                    answered(session, made, user, task, answer, order=[number % 2, 1 - number % 2], comment=comment)
        page.reload()
        expect(page.get_by_text("24 of 24 votes")).to_be_visible()
        for name in ("Progress", "Quality", "Remarks", "Audit", "Settings"):
            page.get_by_role("link", name=name, exact=True).click()
            page.wait_for_load_state()
            assert_accessible(page)
            keep_picture(page, f"project-{name}-{size}")
        page.goto("/projects/1/remarks")
        page.get_by_role("link", name="Task 5").first.click()
        expect(page.get_by_text("Both ramble on.").first).to_be_visible()
        assert_accessible(page)
        keep_picture(page, f"project-task-{size}")

        page.goto("/projects/1")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as JSON lines").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 24
        page.goto("/projects")
        assert_accessible(page)
        keep_picture(page, f"projects-{size}")
    database.close()
