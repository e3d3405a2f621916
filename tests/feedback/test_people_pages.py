"""Accounts over HTTP: links, passwords, the admin's page and its API."""

from __future__ import annotations

import time
from pathlib import Path

from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy import update

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.tables import Invitation
from tests.feedback.support import (
    PASSWORD,
    URL,
    csrf_of,
    quick_app,
    shown_once,
    signed_in,
    user_named,
    visitor,
    with_token,
)
from tests.feedback.worlds import answered, project, tasks_of


def test_the_setup_link_works_once(tmp_path: Path) -> None:
    database = Database(tmp_path / "new.db")
    app = quick_app(database)
    with database.writing() as session:
        link = f"/join/{people.setup_secret(session, now=time.time())}"
    client = visitor(app)
    assert "Set up Keel" in client.get(link).text
    short = client.post(link, data={"name": "Ana <b>", "password": "short"})
    assert short.status_code == 422
    assert 'value="Ana &lt;b&gt;"' in short.text  # what was typed stays, as text
    assert client.post(link, data={"name": "Ana", "password": PASSWORD}).headers["location"] == "/"
    assert "Hello, Ana" in client.get("/").text
    other = visitor(app)
    assert other.get(link).status_code == 410
    assert other.post(link, data={"name": "Eve", "password": PASSWORD}).status_code == 410
    assert other.get("/").status_code == 303
    database.close()


def test_the_way_in_is_told_while_nobody_has_an_account(tmp_path: Path) -> None:
    database = Database(tmp_path / "new.db")
    app = quick_app(database)
    assert "in the terminal where the server was started" in visitor(app).get("/sign-in").text
    with database.writing() as session:
        earlier, later = (people.setup_secret(session, now=time.time()) for _ in range(2))
    replaced = visitor(app).get(f"/join/{earlier}")
    assert replaced.status_code == 404
    assert "terminal has a new one at each start." in replaced.text
    visitor(app).post(f"/join/{later}", data={"name": "Ana", "password": PASSWORD})
    assert "Ask an admin for an invitation link" in visitor(app).get("/sign-in").text
    assert "ask for a new one." in visitor(app).get(f"/join/{earlier}").text
    database.close()


def test_a_used_invitation_opens_nothing(app: FastAPI, store: Database) -> None:
    admin = with_token(app, store, user_named(store, "root"))
    link = admin.post("/api/v1/invitations", json={"role": "annotator"}).json()["url"]
    assert visitor(app).post(link, data={"name": "Zoe", "password": PASSWORD}).status_code == 303
    late = visitor(app).get(link)
    assert late.status_code == 410
    assert "has been used" in late.text


def test_an_expired_invitation_makes_no_account(app: FastAPI, store: Database) -> None:
    admin = signed_in(app, "root")
    link = shown_once(admin, admin.post("/people/invitations", data={"csrf": csrf_of(admin), "role": "annotator"}))
    assert link.startswith(URL + "/join/")
    with store.writing() as session:
        session.execute(update(Invitation).where(Invitation.user_id.is_(None)).values(expires_at=time.time() - 1))
    guest = visitor(app)
    assert guest.get(link).status_code == 410
    assert guest.post(link, data={"name": "Eve", "password": PASSWORD}).status_code == 410


def test_a_new_password_ends_the_other_logins(app: FastAPI, store: Database) -> None:
    here, there = signed_in(app, "ann"), signed_in(app, "ann")
    program = with_token(app, store, user_named(store, "ann"))

    def change(current: str, new: str) -> Response:
        return here.post("/account/password", data={"csrf": csrf_of(here), "current": current, "new": new})

    assert "current password is wrong" in change("wrong, wrong", "a new password").text
    assert "at least 10" in change(PASSWORD, "short").text
    assert there.get("/account").status_code == 200
    assert change(PASSWORD, "a new password").status_code == 303
    assert (here.get("/account").status_code, there.get("/account").status_code) == (200, 303)
    assert program.put("/api/v1/me/password", json={"current": "a new password", "new": PASSWORD}).status_code == 204
    assert here.get("/account").status_code == 303
    signed_in(app, "ann")


def test_only_admins_see_and_change_people(app: FastAPI, store: Database) -> None:
    for name in ("ann", "vic"):
        client = with_token(app, store, user_named(store, name))
        assert client.get("/people").status_code == 403
        for method, path, body in (
            ("GET", "users", None),
            ("PATCH", "users/1", {"role": "viewer"}),
            ("GET", "invitations", None),
            ("POST", "invitations", {"role": "admin"}),
            ("DELETE", "invitations/1", None),
        ):
            assert client.request(method, f"/api/v1/{path}", json=body).status_code == 403, path


def test_admins_invite_and_change_people_by_program(app: FastAPI, store: Database) -> None:
    admin = with_token(app, store, user_named(store, "root"))
    made = admin.post("/api/v1/invitations", json={"role": "viewer"})
    assert made.status_code == 201
    (open_one,) = admin.get("/api/v1/invitations").json()
    assert made.json() == {**open_one, "url": made.json()["url"]}
    assert visitor(app).post(made.json()["url"], data={"name": "Zoe", "password": PASSWORD}).status_code == 303
    zoe = next(one for one in admin.get("/api/v1/users").json() if one["name"] == "Zoe")
    changed = admin.patch(f"/api/v1/users/{zoe['id']}", json={"role": "annotator", "active": False})
    assert changed.json().items() <= {**zoe, "role": "annotator", "active": False}.items()
    unwanted = admin.post("/api/v1/invitations", json={"role": "admin"}).json()
    assert admin.delete(f"/api/v1/invitations/{unwanted['id']}").status_code == 204
    assert admin.get("/api/v1/invitations").json() == []
    last = admin.patch("/api/v1/users/1", json={"active": False})
    assert (last.status_code, last.json()["error"]["code"]) == (409, "conflict")


def test_admins_see_whom_a_link_is_for_and_guests_do_not(app: FastAPI, store: Database) -> None:
    admin, note = signed_in(app, "root"), "<b> the night shift"
    fields = {"csrf": csrf_of(admin), "role": "annotator", "note": note}
    link = shown_once(admin, admin.post("/people/invitations", data=fields))
    assert admin.get("/people").text.count("&lt;b&gt; the night shift") == 2  # in the line, and on its button
    guest = visitor(app)
    assert "night shift" not in guest.get(link).text
    guest.post(link, data={"name": "Zoe", "password": PASSWORD})
    assert "&lt;b&gt; the night shift" in admin.get("/people").text
    assert "night shift" not in guest.get("/account").text
    long = admin.post("/people/invitations", data={**fields, "note": "x" * 81})
    assert (long.status_code, "A note has 0 to 80 characters." in long.text) == (422, True)

    program = with_token(app, store, user_named(store, "root"))
    made = program.post("/api/v1/invitations", json={"role": "viewer", "note": "  Dr  Who "}).json()
    (listed,) = program.get("/api/v1/invitations").json()
    assert made["note"] == listed["note"] == "Dr Who"
    assert {one["name"]: one["note"] for one in program.get("/api/v1/users").json()}["Zoe"] == note
    refused = program.post("/api/v1/invitations", json={"role": "viewer", "note": "a\u0000b"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "note")


def test_admins_see_who_judged_how_much_and_when(app: FastAPI, store: Database) -> None:
    with store.writing() as session:
        ann = people.account(session, user_named(store, "ann").id)
        made = project(session, tasks=2)
        for number, task in enumerate(tasks_of(session, made)):
            answered(session, made, ann, task, {"best": 0, "strength": "clear"}, at=86_400.0 * (number + 10))
    page = signed_in(app, "root").get("/people").text
    assert "2 judgements, last on 1970-01-12" in page
    assert page.count("no judgements yet") == 2
    program = with_token(app, store, user_named(store, "root"))
    told = {one["name"]: (one["judgements"], one["last_judged_at"]) for one in program.get("/api/v1/users").json()}
    assert told == {"root": (0, None), "ann": (2, 86_400.0 * 11), "vic": (0, None)}


def test_a_form_that_was_sent_too_often_says_when_to_try_again(app: FastAPI) -> None:
    ann = signed_in(app, "ann")
    form = {"current": "wrong, wrong", "new": "another long one", "csrf": csrf_of(ann)}
    answers = [ann.post("/account/password", data=form) for _ in range(6)]
    assert [one.status_code for one in answers] == [403] * 5 + [429]
    assert [one.headers.get("Retry-After") for one in answers] == [None] * 5 + ["1"]
    assert "Too many attempts; try again in 1 s." in answers[-1].text
