"""Who gets in, by what, and what keeps others out, over HTTP."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from itsdangerous import Signer
from sqlalchemy import update
from sqlalchemy.orm import Session

from keel.feedback import people
from keel.feedback.app import ROUTERS, make_app
from keel.feedback.database import Database
from keel.feedback.passwords import Passwords
from keel.feedback.tables import Login, User
from keel.feedback.web.access import Admin, Annotator, SignedIn, Viewer
from keel.feedback.web.home import Entry, HomeList
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

HEADERS = {
    "content-security-policy",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "cache-control",
}


# --- the cookie ---


@pytest.mark.parametrize(
    ("public_url", "secure"), [(None, False), ("http://a.example", False), ("https://a.example", True)]
)
def test_the_cookie_is_kept_from_scripts_and_other_sites(store: Database, public_url: str | None, secure: bool) -> None:
    client = visitor(quick_app(store, public_url=public_url))
    answer = client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
    name_value, *flags = answer.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"keel_session=[\w-]{43}\.[\w-]{43}", name_value)
    assert set(flags) == {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=1209600"} | ({"Secure"} if secure else set())


def test_a_forged_session_opens_nothing(app: FastAPI, store: Database) -> None:
    client = signed_in(app, "ann")
    cookie = client.cookies["keel_session"]
    secret, signature = cookie.split(".")
    guessed = Signer("guess", salt="keel session").sign(secret).decode()
    for forged in (
        secret,
        secret + ".",
        f"{secret[:-1]}x.{signature}",
        f"{secret}.{signature[:-1]}",
        guessed,
        "\xff.\xff",
    ):
        thief = visitor(app)
        assert thief.get("/account", headers={b"Cookie": f"keel_session={forged}".encode("latin-1")}).status_code == 303
    assert visitor(app).get("/account", headers={"Cookie": f"keel_session={cookie}"}).status_code == 200
    # A signature that is right, of a login that is not in the database:
    with store.writing() as session:
        session.execute(update(Login).values(secret_hash="other"))
    assert client.get("/account").status_code == 303


def test_a_login_ends_when_its_time_is_over(app: FastAPI, store: Database) -> None:
    client = signed_in(app, "ann")
    with store.writing() as session:
        session.execute(update(Login).values(expires_at=time.time() - 1))
    assert client.get("/api/v1/me").status_code == 401


def test_signing_out_ends_the_login_and_not_only_the_cookie(app: FastAPI) -> None:
    client = signed_in(app, "ann")
    cookie = client.cookies["keel_session"]
    answer = client.post("/sign-out", data={"csrf": csrf_of(client)})
    assert answer.headers["location"] == "/sign-in"
    assert "keel_session" not in client.cookies
    assert visitor(app).get("/account", headers={"Cookie": f"keel_session={cookie}"}).status_code == 303


def test_the_end_of_an_account_is_felt_at_once(app: FastAPI, store: Database) -> None:
    ann = user_named(store, "ann")
    browser, program, admin = signed_in(app, "ann"), with_token(app, store, ann), signed_in(app, "root")
    assert program.get("/api/v1/me").json()["name"] == "ann"
    admin.post(f"/people/{ann.id}/active", data={"csrf": csrf_of(admin), "active": "false"})
    assert browser.get("/account").status_code == 303
    gone = program.get("/api/v1/me")
    assert (gone.status_code, gone.headers["www-authenticate"]) == (401, "Bearer")
    assert visitor(app).post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 401


def test_a_revoked_token_opens_nothing_even_beside_a_good_cookie(app: FastAPI) -> None:
    browser = signed_in(app, "ann")
    made = browser.post("/account/tokens", data={"csrf": csrf_of(browser), "label": "laptop"})
    bearer = {"Authorization": f"Bearer {shown_once(browser, made)}"}
    program = TestClient(app, base_url=URL)
    (line,) = program.get("/api/v1/me/tokens", headers=bearer).json()
    assert line["label"] == "laptop"
    assert program.delete(f"/api/v1/me/tokens/{line['id']}", headers=bearer).status_code == 204
    assert browser.get("/api/v1/me", headers=bearer).status_code == 401
    assert browser.get("/api/v1/me").status_code == 200
    assert "keel_" not in browser.get("/account").text


# --- requests that somebody else's page sends ---


def test_a_form_needs_what_its_own_login_was_given(app: FastAPI, store: Database) -> None:
    ann, vic = signed_in(app, "ann"), signed_in(app, "vic")
    again = signed_in(app, "ann")
    for csrf in (None, "", "guess", csrf_of(vic), csrf_of(again), csrf_of(ann)[:-1], "\ud7ff"):
        for answer in (
            ann.post("/account/tokens", data={"label": "x"} | ({} if csrf is None else {"csrf": csrf})),
            ann.post(
                "/api/v1/me/tokens",
                json={"label": "x"},
                headers={} if csrf is None else {b"X-CSRF-Token": csrf.encode()},
            ),
        ):
            assert answer.status_code == 403
    with store.reading() as session:
        assert people.tokens_of(session, user_named(store, "ann")) == []
    assert ann.post("/account/tokens", data={"label": "x", "csrf": csrf_of(ann)}).status_code == 303
    made = ann.post("/api/v1/me/tokens", json={"label": "x"}, headers={"X-CSRF-Token": csrf_of(ann)})
    assert made.status_code == 201
    files = {"csrf": (None, csrf_of(ann)), "label": (None, "y")}  # a form that can carry files
    assert ann.post("/account/tokens", files=files).status_code == 303


def test_every_route_that_changes_something_asks_for_it(app: FastAPI) -> None:
    admin = signed_in(app, "root")
    routes = {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or set()) - {"GET"}
    }
    assert ("POST", "/people/{user_id}/role") in routes
    assert ("DELETE", "/api/v1/invitations/{invitation_id}") in routes
    for method, path in sorted(routes):
        if path not in ("/sign-in", "/join/{secret}"):
            answer = admin.request(method, re.sub(r"\{\w+\}", "1", path), json={} if path.startswith("/api") else None)
            assert answer.status_code == 403, (method, path, answer.text)


# --- what each may do ---


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("root", {"any", "annotator", "viewer", "admin"}), ("ann", {"any", "annotator"}), ("vic", {"any", "viewer"})],
)
def test_roles_open_what_is_theirs(app: FastAPI, store: Database, name: str, allowed: set[str]) -> None:
    @app.get("/api/any")
    def for_any(user: SignedIn) -> str:
        return user.name

    @app.get("/api/annotator")
    def for_annotator(user: Annotator) -> str:
        return user.name

    @app.get("/api/viewer")
    def for_viewer(user: Viewer) -> str:
        return user.name

    @app.get("/api/admin")
    def for_admin(user: Admin) -> str:
        return user.name

    for client in (signed_in(app, name), with_token(app, store, user_named(store, name))):
        for role in ("any", "annotator", "viewer", "admin"):
            assert client.get(f"/api/{role}").status_code == (200 if role in allowed else 403)
    assert visitor(app).get("/api/any").status_code == 401


# --- the shape of answers ---


def test_pages_open_to_programs_too(app: FastAPI, store: Database) -> None:
    program = with_token(app, store, user_named(store, "root"))
    for path in ("/", "/account", "/people"):
        assert "root" in program.get(path).text
    assert program.post("/sign-out").status_code == 200
    assert program.get("/api/v1/me").status_code == 200


def test_every_answer_has_the_security_headers(app: FastAPI) -> None:
    @app.get("/fails")
    def fails() -> None:
        raise RuntimeError("a secret of the server")

    client = signed_in(app, "ann")
    client = visitor(app, raise_server_exceptions=False, cookies=client.cookies)
    answers = {
        "/": 200,
        "/nothing": 404,
        "/static/app.css": 200,
        "/static/../app.py": 404,
        "/people": 403,
        "/sign-out": 405,
        "/join/x": 404,
        "/sign-in": 303,
        "/fails": 500,
        "/api/v1/me": 200,
        "/api/v1/users": 403,
        "/api/v1/none": 404,
        "/api/openapi.json": 200,
    }
    for path, status in answers.items():
        answer = client.get(path)
        assert answer.status_code == status, path
        assert answer.headers.keys() >= HEADERS, path
        assert "script-src 'self';" in answer.headers["content-security-policy"]
        assert "a secret" not in answer.text
    assert client.get("/sign-out").headers["allow"] == "POST"
    large = client.post("/api/v1/me/tokens", content=b"x" * (9 << 20), headers={"Content-Type": "application/json"})
    assert large.status_code == 413
    assert large.headers.keys() >= HEADERS


def test_every_refusal_of_the_api_has_one_shape_and_is_described(app: FastAPI, store: Database) -> None:
    client = with_token(app, store, user_named(store, "ann"))
    refused = [
        client.get("/api/v1/none"),
        client.get("/api/v1/users"),
        client.put("/api/v1/me"),
        client.post("/api/v1/me/tokens", content=b"{", headers={"Content-Type": "application/json"}),
        client.post("/api/v1/me/tokens", json={"label": "x", "more": 1}),
        client.post("/api/v1/me/tokens", json={"label": "\x00"}),
        client.post("/api/v1/me/tokens", content=b'{"label": "\\ud800"}', headers={"Content-Type": "application/json"}),
        client.delete("/api/v1/me/tokens/99999999999999"),
        client.delete("/api/v1/me/tokens/77"),
        client.get("/api/v1/me", headers={b"Authorization": "Bearer \u00ff".encode("latin-1")}),
    ]
    assert [answer.status_code for answer in refused] == [404, 403, 405, 422, 422, 422, 422, 422, 404, 401]
    for answer in refused:
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].keys() == {"code", "message", "field"}
    document = client.get("/api/openapi.json").json()
    operations = [(path, item) for path, methods in document["paths"].items() for item in methods.values()]
    assert len(operations) >= 10
    for path, item in operations:
        assert path.startswith("/api/v1/")
        assert "422" not in item["responses"], path
        content = item["responses"]["4XX"]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, path
        assert item["security"] == [{"HTTPBearer": []}], path


def test_the_first_page_has_every_parts_list(app: FastAPI) -> None:
    def projects(session: object, user: User) -> HomeList | None:
        return HomeList("Yours", [Entry("<Polite>", "/projects/1", user.name)], "none") if user.name == "ann" else None

    app.state.home = (projects, lambda session, user: HomeList("Runs", [], "No runs yet."))
    page = signed_in(app, "ann").get("/").text
    assert '<a href="/projects/1">&lt;Polite&gt;</a>' in page
    assert "No runs yet." in page
    assert "Yours" not in signed_in(app, "vic").get("/").text


def test_two_servers_on_a_database_know_each_others_logins(store: Database, tmp_path: Path) -> None:
    client = signed_in(quick_app(store), "ann")
    other = Database(tmp_path / "feedback.db")
    answer = visitor(quick_app(other), cookies=client.cookies).get("/account")
    assert answer.status_code == 200
    other.close()


class Counting(Database):
    """Knows how many of its sessions are open."""

    open = 0

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with super().reading() as session, self._counted():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with super().writing() as session, self._counted():
            yield session

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def test_nobody_waits_for_the_database_while_a_password_is_hashed(three: Path, tmp_path: Path) -> None:
    """Hashing is slow on purpose, and few sessions are open at a time: guesses would stop those who judge."""
    database, open_meanwhile = Counting(shutil.copy(three, tmp_path)), []

    class Watched(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # looks, then the same
            open_meanwhile.append(database.open)
            return super().verify(hash, password)

        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            open_meanwhile.append(database.open)
            return super().hash(password, salt=salt)

    app = make_app(database, passwords=Passwords(Watched(time_cost=1, memory_cost=8, parallelism=1)))
    open_meanwhile.clear()
    client = signed_in(app, "ann")
    assert visitor(app).post("/sign-in", data={"name": "ann", "password": "wrong, wrong"}).status_code == 401
    data = {"current": PASSWORD, "new": "another long one", "csrf": csrf_of(client)}
    assert client.post("/account/password", data=data).status_code == 303
    root = signed_in(app, "root", PASSWORD)
    link = shown_once(root, root.post("/people/invitations", data={"role": "viewer", "csrf": csrf_of(root)}))
    joined = visitor(app).post(link.removeprefix(URL), data={"name": "Zoe", "password": PASSWORD})
    assert joined.status_code == 303
    database.close()
    assert open_meanwhile == [0] * 6  # three sign-ins, a change that checks and hashes, a new account
