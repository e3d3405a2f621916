"""Setting up, inviting, joining, signing in and out, as people do it in a browser."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import Page, expect

from keel.feedback import people
from keel.feedback.database import Database
from tests.browser.support import Visitors, assert_accessible, keep_picture, serving
from tests.feedback.support import PASSWORD, add_user, quick_app


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
        admin.get_by_label("For whom").fill("Béla, of the night shift")
        admin.get_by_role("button", name="Make a link").click()
        expect(admin.get_by_label("Send this link")).to_be_focused()
        link = admin.get_by_label("Send this link").input_value()
        looked_at(admin, f"people-{size}")
        admin.reload()
        expect(admin.get_by_text("If it is lost, withdraw it and make another")).to_be_visible()
        expect(admin.get_by_role("button", name="Withdraw")).to_have_count(1)
        looked_at(admin, f"lost-{size}")

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
        guest.get_by_label("Current password").fill("my few own words")
        guest.get_by_label("New password").fill("my other few words")
        guest.get_by_role("button", name="Change the password").click()
        expect(guest.get_by_role("alert")).to_have_text("The current password is wrong.")
        expect(guest.get_by_label("Current password")).to_be_focused()
        guest.goto(guest.url)  # as a telephone does with a page that it has put away
        guest.get_by_label("Current password").fill("my own few words")
        guest.get_by_label("New password").fill("my other few words")
        guest.get_by_role("button", name="Change the password").click()
        expect(guest.get_by_role("status")).to_contain_text("The password is changed")
        looked_at(guest, f"changed-{size}")

        guest.get_by_role("button", name="Sign out").click()
        fill(guest, "béla", "not my own words")
        guest.get_by_role("button", name="Sign in").click()
        expect(guest.get_by_role("alert")).to_contain_text("The name or the password is wrong")
        expect(guest.get_by_label("Password")).to_be_focused()
        looked_at(guest, f"sign-in-{size}")
        guest.goto("/account")
        fill(guest, "béla", "my other few words")
        guest.keyboard.press("Enter")
        expect(guest.get_by_role("heading", name="Béla")).to_be_visible()

        admin.goto("/people")
        admin.get_by_role("button", name="End the account of Béla").click()
        expect(admin.get_by_role("button", name="Open the account of Béla again")).to_be_visible()
        looked_at(admin, f"ended-{size}")
        guest.goto("/account")
        expect(guest.get_by_role("heading", name="Sign in")).to_be_visible()
    database.close()


def test_a_secret_is_copied_by_keys(visit: Visitors, tmp_path: Path) -> None:
    database = Database(tmp_path / "feedback.db")
    add_user(database, "ann")
    with serving(quick_app(database)) as url:
        page = visit(url, permissions=["clipboard-read", "clipboard-write"])
        secret = ask_for_token(page)
        expect(page.get_by_role("button", name="Copy")).to_be_visible()  # the script is there
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#copied")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == secret

        page = visit(url, size="phone")
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without TLS
        secret = ask_for_token(page)
        page.get_by_role("button", name="Copy").tap()
        expect(page.locator("#copied")).to_contain_text("copy it yourself")
        assert page.evaluate("getSelection().toString()") == secret
        looked_at(page, "copy-refused")

        page = visit(url, java_script_enabled=False)
        ask_for_token(page)
        expect(page.locator("#copy")).to_be_hidden()
    database.close()


def ask_for_token(page: Page) -> str:
    """The token that ann has made, on the page that shows it."""
    page.goto("/account")
    fill(page, "ann", PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("What it is for").fill("laptop")
    page.get_by_role("button", name="Make a token").click()
    return page.get_by_label("Your new token").input_value()


def fill(page: Page, name: str, password: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)


def looked_at(page: Page, name: str) -> None:
    assert_accessible(page)
    keep_picture(page, name)
