"""A secret is shown once, to the browser that asked for it, and a reload makes no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from keel.feedback import people
from keel.feedback.database import Database
from tests.feedback.support import csrf_of, quick_app, secret_of, shown_once, signed_in, user_named, visitor


def send(client: TestClient, path: str, **fields: str) -> Response:
    return client.post(path, data={"csrf": csrf_of(client), **fields})


@pytest.mark.parametrize(
    ("path", "fields", "page"),
    [("/people/invitations", {"role": "viewer"}, "/people"), ("/account/tokens", {"label": "laptop"}, "/account")],
)
def test_a_reload_shows_no_secret_and_makes_no_other(
    app: FastAPI, store: Database, path: str, fields: dict[str, str], page: str
) -> None:
    admin = signed_in(app, "root")
    answer = send(admin, path, **fields)
    there = answer.headers["location"]
    secret = shown_once(admin, answer)
    assert there.startswith(f"{page}?new=")
    assert secret.rpartition("/")[2] not in there
    assert "keel_flash" not in admin.cookies
    again = admin.get(there).text
    assert secret not in again
    assert "was shown once and cannot be shown again" in again
    assert "was shown once" not in admin.get(page).text
    with store.reading() as session:
        tokens = people.tokens_of(session, user_named(store, "root"))
        assert len(people.open_invitations(session, now=0)) + len(tokens) == 1


def test_it_is_said_once_that_the_password_is_changed(app: FastAPI) -> None:
    ann = signed_in(app, "ann")
    answer = send(ann, "/account/password", current="correct horse battery", new="another long one")
    there = answer.headers["location"]
    assert "password is changed" in ann.get(there).text
    assert "password is changed" not in ann.get(there).text


def test_any_process_shows_it(store: Database, tmp_path: Path) -> None:
    """It is on no server: several share a database, and each may be started anew."""
    admin = signed_in(quick_app(store), "root")
    answer = send(admin, "/account/tokens", label="laptop")
    other = Database(tmp_path / "feedback.db")
    client = visitor(quick_app(other), cookies=admin.cookies)
    assert (secret_of(client.get(answer.headers["location"]).text) or "").startswith("keel_")
    other.close()


def test_its_cookie_goes_to_one_page_of_one_login(store: Database) -> None:
    app = quick_app(store, public_url="https://keel.example")
    admin = visitor(app, headers={"Origin": "https://keel.example"})
    login = admin.post("/sign-in", data={"name": "root", "password": "correct horse battery"}).headers["set-cookie"]
    session = {"Cookie": login.partition(";")[0]}
    page = admin.get("/account", headers=session).text
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    answer = admin.post("/account/tokens", data={"csrf": csrf, "label": "laptop"}, headers=session)
    flash, *flags = answer.headers["set-cookie"].split("; ")
    assert set(flags) == {"HttpOnly", "SameSite=strict", "Path=/account", "Max-Age=60", "Secure"}

    def shown(path: str, *cookies: str) -> bool:
        """And the message ended with it; one that is not this page's stays for the page that it is for."""
        page = admin.get(path, headers={"Cookie": "; ".join(cookies)})
        ended = "keel_flash" in page.headers.get("set-cookie", "")
        assert ended or secret_of(page.text) is None
        return ended

    there, mine = answer.headers["location"], session["Cookie"]
    another = visitor(app).post("/sign-in", data={"name": "root", "password": "correct horse battery"})
    assert not shown(there, another.headers["set-cookie"].partition(";")[0], flash)
    assert not shown(there, mine, flash[:-1])
    assert not shown(there, mine, "keel_flash=1.planted")
    assert not shown("/people?new=1", mine, flash)
    assert not shown("/account?new=2", mine, flash)
    assert shown(there, mine, flash)


def test_of_two_that_are_made_at_once_the_earlier_page_says_that_it_is_lost(app: FastAPI) -> None:
    admin = signed_in(app, "root")
    first, second = (send(admin, "/people/invitations", role="viewer") for _ in range(2))
    assert "If it is lost, withdraw it and make another" in admin.get(first.headers["location"]).text
    assert shown_once(admin, second)


@pytest.mark.parametrize(
    ("form", "page"),
    [
        ("/account/password", "/account"),
        ("/account/tokens", "/account"),
        ("/account/tokens/99/revoke", "/account"),
        ("/people/invitations", "/people"),
        ("/people/invitations/99/withdraw", "/people"),
        ("/people/1/role", "/people"),
        ("/people/1/active", "/people"),
    ],
)
def test_a_refusals_address_leads_to_its_page(app: FastAPI, form: str, page: str) -> None:
    admin = signed_in(app, "root")
    assert send(admin, form, role="viewer", active="false", note="x" * 81, label="x" * 81).is_client_error
    assert admin.get(form).headers["location"] == page


def test_what_was_refused_is_still_in_the_form(app: FastAPI) -> None:
    admin = signed_in(app, "root")
    refused = send(admin, "/people/invitations", role="viewer", note="for <Ann>" + "!" * 81).text
    assert "<option selected>viewer</option>" in refused.partition("Make a link")[0]
    assert f'value="for &lt;Ann&gt;{"!" * 81}"' in refused
    assert f'value="{"x" * 81}"' in send(admin, "/account/tokens", label="x" * 81).text
