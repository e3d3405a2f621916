"""Setting up, inviting, joining, signing in and out, as people do it in a browser."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import Page, expect

from keel.feedback import people
from keel.feedback.database import Database
from tests.browser.support import Visitors, assert_accessible, keep_picture, serving
from tests.feedback.support import PASSWORD, quick_app


def test_people_set_up_invite_join_and_come_back(visit: Visitors, size: str, tmp_path: Path) -> None:
    database = Database(tmp_path / "feedback.db")
    with database.writing() as session:
        setup = people.setup_secret(session, now=time.time())
    with serving(quick_app(database)) as url:
        admin = visit(url, size=size)
        admin.goto(f"/join/{setup}")
        looked_at(admin, f"setup-{size}")
        fill(admin, "Ana", PASSWORD)
        admin.get_by_role("button", name="Make the account").click()
        expect(admin.get_by_role("heading", name="Hello, Ana")).to_be_visible()
        looked_at(admin, f"home-{size}")

        admin.get_by_role("link", name="People").click()
        admin.get_by_label("Role", exact=True).select_option("viewer")
        admin.get_by_role("button", name="Make a link").click()
        link = admin.get_by_label("Send this link").input_value()
        looked_at(admin, f"people-{size}")

        guest = visit(url, size=size, dark=True)
        guest.goto(link)
        looked_at(guest, f"join-{size}")
        fill(guest, "Béla", "my own few words")
        guest.get_by_role("button", name="Make the account").click()
        guest.get_by_role("link", name="Béla").click()
        guest.get_by_label("What it is for").fill("my laptop")
        guest.get_by_role("button", name="Make a token").click()
        expect(guest.get_by_label("Your new token")).to_have_value(re.compile("^keel_"))
        looked_at(guest, f"account-{size}")

        guest.get_by_role("button", name="Sign out").click()
        fill(guest, "béla", "not my own words")
        guest.get_by_role("button", name="Sign in").click()
        expect(guest.get_by_role("alert")).to_contain_text("The name or the password is wrong")
        looked_at(guest, f"sign-in-{size}")
        guest.goto("/account")
        fill(guest, "béla", "my own few words")
        guest.keyboard.press("Enter")
        expect(guest.get_by_role("heading", name="Béla")).to_be_visible()

        admin.goto("/people")
        admin.get_by_role("button", name="End the account of Béla").click()
        expect(admin.get_by_role("button", name="Open the account of Béla again")).to_be_visible()
        looked_at(admin, f"ended-{size}")
        guest.goto("/account")
        expect(guest.get_by_role("heading", name="Sign in")).to_be_visible()
    database.close()


def fill(page: Page, name: str, password: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)


def looked_at(page: Page, name: str) -> None:
    assert_accessible(page)
    keep_picture(page, name)
