"""Making a project, filling it and looking at what came of it, as an admin does it in a browser."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.projects import find_project
from keel.feedback.tables import User
from keel.feedback.tasks import add_tasks
from tests.browser.support import Visitors, assert_accessible, keep_picture, serving
from tests.feedback.support import PASSWORD, add_user, quick_app
from tests.feedback.worlds import NOW, answered, new_tasks, people, project, tasks_of

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
        expect(page.get_by_role("status")).to_contain_text("12 new tasks in Helpful answers.")
        left_out = "Row 12 of tasks.jsonl: A field that this kind of record needs is missing or null"
        expect(page.get_by_role("status")).to_contain_text(left_out)
        expect(page.get_by_role("status")).to_have_class("notice warn")
        keep_picture(page, f"project-put-in-{size}")
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
        for name in ("Progress", "Tasks", "Quality", "Remarks", "Audit", "Settings"):
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


def shade(page: Page, table: Locator) -> int:
    """How much the right edge of a table's box differs from the page around it: 0 to 255."""
    box = table.bounding_box()
    assert box is not None
    shown = Image.open(io.BytesIO(page.screenshot())).convert("L")
    last = round(box["y"] + 2) * shown.width + round(box["x"] + box["width"]) - 1  # pixel of the box in that row
    return abs(shown.tobytes()[last] - shown.tobytes()[last + 2])


def test_the_quality_of_everybody_is_in_sight(visit: Visitors, size: str, tmp_path: Path) -> None:
    """All columns on a desktop; on a phone the edge is shaded as long as there are more."""
    database = Database(tmp_path / "feedback.db")
    add_user(database, "vera", "viewer")
    with database.writing() as session:
        made = project(session, tasks=30, votes=2, least_seconds=2.0)
        add_tasks(session, made, new_tasks(30, purpose="gold", expected={"best": 0, "strength": "clear"}), now=NOW)
        names = ("Maximiliane Annegret von und zu Hohenlohe", "bob", "cleo")
        for user in people(session, *names):
            for number, task in enumerate(tasks_of(session, made)):
                for occasion in (0, 1):
                    answer = {"best": number % 2, "strength": "clear"}
                    answered(session, made, user, task, answer, occasion=occasion, duration=number / 7)
    with serving(quick_app(database)) as url:
        page = visit(url, size=size, dark=size == "phone")
        page.request.post("/sign-in", form={"name": "vera", "password": PASSWORD})
        page.goto("/projects/1/quality")
        table = page.get_by_role("group", name="Quality by annotator")
        expect(table.get_by_text("50% of 30").first).to_be_visible()
        assert_accessible(page)
        keep_picture(page, f"quality-{size}")
        assert table.evaluate("e => e.scrollWidth <= e.clientWidth") == (size == "desktop")
        assert (shade(page, table) > 15) == (size == "phone")
        table.evaluate("e => e.scrollTo(1e4, 0)")
        expect(table.get_by_text("takes the first")).to_be_in_viewport(ratio=0.9)
        keep_picture(page, f"quality-end-{size}")
        assert shade(page, table) == 0
    database.close()


def test_what_was_put_in_by_mistake_is_found_and_withdrawn(visit: Visitors, size: str, tmp_path: Path) -> None:
    database = Database(tmp_path / "feedback.db")
    add_user(database, "Ana")
    gold = new_tasks(5, purpose="gold", expected={"best": 0, "strength": "clear"})
    file = tmp_path / "gold.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}))
    with database.writing() as session:
        made = project(session, tasks=3)
        add_tasks(session, made, new_tasks(60, round=2, policy_version="ppo-3"), now=NOW + 60)
        add_tasks(session, made, gold, now=NOW + 120)
    with serving(quick_app(database)) as url:
        page = visit(url, size=size, dark=size == "phone")
        page.goto("/projects/1")
        page.get_by_label("Name", exact=True).fill("root")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_text("0 of 63 votes")).to_be_visible()
        expect(page.get_by_text("Nobody is given gold in")).to_be_visible()
        withdraw = page.get_by_role("button", name="Withdraw import 4", exact=True)
        assert_accessible(page)
        withdraw.click()
        expect(page.get_by_text("0 of 3 votes")).to_be_visible()
        expect(page.get_by_role("button", name="Put back import")).to_have_count(1)
        assert_accessible(page)
        keep_picture(page, f"project-imports-{size}")

        page.get_by_label("File").set_input_files(file)
        page.get_by_label("What they are for").select_option("gold")
        page.get_by_role("button", name="Put them in").click()
        expect(page.get_by_role("status")).to_contain_text("1 new task in compare of 3.But nobody is given gold in")
        expect(page.get_by_role("button", name="Withdraw import")).to_have_count(3)
        page.get_by_role("button", name="Withdraw import").first.click()
        page.get_by_label("File").set_input_files(file)
        page.get_by_label("What they are for").select_option("gold")
        page.get_by_role("button", name="Put them in").click()
        expect(page.get_by_role("status")).to_contain_text("1 new task in compare of 3.")

        page.get_by_role("link", name="Tasks", exact=True).click()
        expect(page.get_by_role("listitem").filter(has_text="Task")).to_have_count(9)
        page.get_by_label("State").select_option("Withdrawn")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("listitem").filter(has_text="Task")).to_have_count(50)
        assert_accessible(page)
        keep_picture(page, f"project-tasks-{size}")
        page.get_by_role("link", name="More").click()
        expect(page.get_by_role("listitem").filter(has_text="Task")).to_have_count(11)
        page.get_by_role("link", name="Task 63").click()
        expect(page.get_by_text("Withdrawn on")).to_be_visible()

        page.goto("/projects/1")
        page.get_by_role("button", name="Put back import 4", exact=True).click()
        expect(page.get_by_text("0 of 63 votes")).to_be_visible()
    database.close()
