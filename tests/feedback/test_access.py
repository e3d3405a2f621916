"""Who gets in, by what, and what keeps others out, over HTTP."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response
from itsdangerous import Signer
from sqlalchemy import update

from keel.errors import UserError
from keel.feedback import people
from keel.feedback.app import ROUTERS
from keel.feedback.database import Database
from keel.feedback.refused import Refused
from keel.feedback.tables import Invitation, Login, User
from keel.feedback.web import attempts
from keel.feedback.web.access import Admin, Annotator, SignedIn, Viewer
from keel.feedback.web.attempts import Attempts
from keel.feedback.web.home import Entry, HomeList
from keel.feedback.web.sites import Sites
from tests.feedback.support import (
    PASSWORD,
    URL,
    add_user,
    csrf_of,
    field_of,
    quick_app,
    shown_once,
    signed_in,
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


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with an admin `root`, an annotator `ann` and a viewer `vic`."""
    path = tmp_path_factory.mktemp("three") / "feedback.db"
    database = Database(path)
    add_user(database, "ann", "annotator")
    add_user(database, "vic", "viewer")
    database.close()
    return path


@pytest.fixture
def store(three: Path, tmp_path: Path) -> Iterator[Database]:
    """These three anew. HTTP is the same on either database."""
    made = Database(shutil.copy(three, tmp_path))
    yield made
    made.close()


@pytest.fixture
def app(store: Database) -> FastAPI:
    return quick_app(store)


def user_named(store: Database, name: str) -> User:
    with store.reading() as session:
        return next(user for user in people.everybody(session) if user.name == name)


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
    page = browser.post("/account/tokens", data={"csrf": csrf_of(browser), "label": "laptop"})
    bearer = {"Authorization": f"Bearer {shown_once(page.text)}"}
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
    assert ann.post("/account/tokens", data={"label": "x", "csrf": csrf_of(ann)}).status_code == 200
    made = ann.post("/api/v1/me/tokens", json={"label": "x"}, headers={"X-CSRF-Token": csrf_of(ann)})
    assert made.status_code == 201
    files = {"csrf": (None, csrf_of(ann)), "label": (None, "y")}  # a form that can carry files
    assert ann.post("/account/tokens", files=files).status_code == 200


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


@pytest.mark.parametrize("path", ["/sign-in", "/join/guess", "/account/tokens", "/api/v1/me/tokens"])
def test_another_sites_page_sends_nothing(app: FastAPI, path: str) -> None:
    client = signed_in(app, "ann")
    data = {"name": "ann", "password": PASSWORD, "label": "x", "csrf": csrf_of(client)}
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example"):
        answer = client.post(path, data=data, headers={"Origin": origin})
        assert (answer.status_code, "another site" in answer.text) == (403, True)
    assert client.post(path, data=data, headers={"Origin": URL}).status_code in (303, 404, 200, 422)


def test_behind_a_proxy_the_public_site_is_the_own_one(store: Database) -> None:
    app = quick_app(store, public_url="https://Keel.example:443/")
    client = visitor(app)
    data = {"name": "ann", "password": PASSWORD}
    for host, origin, status in (
        ("keel.example", "https://keel.example", 303),
        ("127.0.0.1:8400", "https://keel.example", 303),
        ("keel.example", "https://keel.example.evil", 403),
        ("evil.example", "https://keel.example", 403),
    ):
        assert client.post("/sign-in", data=data, headers={"Host": host, "Origin": origin}).status_code == status


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "a@[", "", "localhost@evil"]
)
def test_a_name_that_is_not_ours_gets_no_page(app: FastAPI, host: str) -> None:
    client = signed_in(app, "ann")
    for path in ("/", "/account", "/sign-in", "/api/v1/me", "/join/x"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 403, (path, answer.text)
    assert "--public-url" in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8400", "127.0.0.1:8400", "[::1]:8400", "10.0.0.5", "box"])
def test_addresses_and_the_name_it_is_bound_to_are_ours(store: Database, host: str) -> None:
    assert visitor(quick_app(store, host="box")).get("/sign-in", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "url", ["keel.example", "ftp://keel.example", "https://", "https://a/b", "https://a:x", "https://u@a"]
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--public-url"):
        Sites(url)


@pytest.mark.parametrize(
    "next",
    ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "/\t/evil.example", "javascript:x", ""],
)
def test_signing_in_leads_nowhere_else(app: FastAPI, next: str) -> None:
    answer = visitor(app).post("/sign-in", data={"name": "ann", "password": PASSWORD, "next": next})
    assert answer.headers["location"] == "/"
    assert field_of(visitor(app).get("/sign-in", params={"next": next}).text, "next") == "/"
    assert signed_in(app, "ann").get("/sign-in", params={"next": next}).headers["location"] == "/"


def test_signing_in_leads_to_what_was_asked_for(app: FastAPI) -> None:
    sent = visitor(app).get("/people?a=1&b=//x")
    assert sent.headers["location"] == "/sign-in?next=%2Fpeople%3Fa%3D1%26b%3D%2F%2Fx"
    client = visitor(app)
    next = field_of(client.get(sent.headers["location"]).text, "next")
    answer = client.post("/sign-in", data={"name": "root", "password": PASSWORD, "next": next})
    assert answer.headers["location"] == "/people?a=1&b=//x"


# --- guessing ---


def test_waits_grow_and_are_forgotten_by_hand_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Attempts(free=2, longest=3)
    waits = []
    for now in (0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 3.0, 5.0, 6.0):
        try:
            limit.begin("ann", now)
            waits.append(0)
        except Refused as refused:
            waits.append(refused.retry_after or -1)
    # Two are free; then 1 s from 0.0, 2 s from 1.0, 3 s (not 4) from 3.0.
    assert waits == [0, 0, 1, 1, 0, 2, 0, 1, 0]
    limit.begin("ben", 6.0)  # somebody else
    limit.begin("ann", 6.0 + 3601)  # an hour later
    limit.begin("ann", 6.0 + 3601)
    with pytest.raises(Refused):
        limit.begin("ann", 6.0 + 3601)
    limit.take_back("ann")
    limit.begin("ann", 6.0 + 3601)
    limit.forget("ann")
    limit.begin("ann", 6.0 + 3601)
    monkeypatch.setattr(attempts, "_KEPT", 3)
    for name in "abcdef":
        limit.begin(name, 1.0)
    assert list(limit._failures) == ["d", "e", "f"]


def test_a_name_is_not_guessed_at_for_long(app: FastAPI) -> None:
    client = visitor(app)

    def attempt(name: str, password: str) -> int:
        return client.post("/sign-in", data={"name": name, "password": password}).status_code

    assert [attempt(name, "wrong, wrong") for name in ("ann", "ANN", "ann", " ann", "ann")] == [401] * 5
    late = client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
    assert (late.status_code, late.headers["retry-after"]) == (429, "1")
    assert "try again in 1 s" in late.text
    assert attempt("vic", PASSWORD) == 303


def test_an_address_does_not_try_names_for_long(app: FastAPI) -> None:
    for name in ("vic", "ann", "root") * 10:
        signed_in(app, name)  # is no guess
    client = visitor(app)
    codes = [client.post("/sign-in", data={"name": f"name {k}", "password": "x"}).status_code for k in range(22)]
    assert codes == [401] * 20 + [429] * 2
    elsewhere = TestClient(app, base_url=URL, client=("10.0.0.7", 1), follow_redirects=False)
    assert elsewhere.post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 303
    neighbours = [TestClient(app, base_url=URL, client=(f"2001:db8::{k}", 1)) for k in range(1, 22)]
    assert [one.post("/sign-in", data={"name": f"n{k}"}).status_code for k, one in enumerate(neighbours)][-1] == 429


def test_a_new_password_ends_the_other_logins(app: FastAPI, store: Database) -> None:
    here, there = signed_in(app, "ann"), signed_in(app, "ann")
    program = with_token(app, store, user_named(store, "ann"))

    def change(current: str, new: str) -> Response:
        return here.post("/account/password", data={"csrf": csrf_of(here), "current": current, "new": new})

    assert "current password is wrong" in change("wrong, wrong", "a new password").text
    assert "at least 10" in change(PASSWORD, "short").text
    assert there.get("/account").status_code == 200
    assert "password is changed" in change(PASSWORD, "a new password").text
    assert (here.get("/account").status_code, there.get("/account").status_code) == (200, 303)
    assert program.put("/api/v1/me/password", json={"current": "a new password", "new": PASSWORD}).status_code == 204
    assert here.get("/account").status_code == 303
    signed_in(app, "ann")


def test_pages_open_to_programs_too(app: FastAPI, store: Database) -> None:
    program = with_token(app, store, user_named(store, "root"))
    for path in ("/", "/account", "/people"):
        assert "root" in program.get(path).text
    assert program.post("/sign-out").status_code == 200
    assert program.get("/api/v1/me").status_code == 200


def test_the_current_password_is_not_guessed_at_either(app: FastAPI, store: Database) -> None:
    program = with_token(app, store, user_named(store, "ann"))
    body = {"current": "wrong, wrong", "new": "a new password"}
    codes = [program.put("/api/v1/me/password", json=body).status_code for _ in range(6)]
    assert codes == [403] * 5 + [429]


# --- links ---


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


def test_a_used_invitation_opens_nothing(app: FastAPI, store: Database) -> None:
    admin = with_token(app, store, user_named(store, "root"))
    link = admin.post("/api/v1/invitations", json={"role": "annotator"}).json()["url"]
    assert visitor(app).post(link, data={"name": "Zoe", "password": PASSWORD}).status_code == 303
    late = visitor(app).get(link)
    assert late.status_code == 410
    assert "has been used" in late.text


def test_an_expired_invitation_makes_no_account(app: FastAPI, store: Database) -> None:
    admin = signed_in(app, "root")
    page = admin.post("/people/invitations", data={"csrf": csrf_of(admin), "role": "annotator"})
    link = shown_once(page.text)
    assert link.startswith(URL + "/join/")
    with store.writing() as session:
        session.execute(update(Invitation).where(Invitation.user_id.is_(None)).values(expires_at=time.time() - 1))
    guest = visitor(app)
    assert guest.get(link).status_code == 410
    assert guest.post(link, data={"name": "Eve", "password": PASSWORD}).status_code == 410


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
    assert changed.json() == {**zoe, "role": "annotator", "active": False}
    unwanted = admin.post("/api/v1/invitations", json={"role": "admin"}).json()
    assert admin.delete(f"/api/v1/invitations/{unwanted['id']}").status_code == 204
    assert admin.get("/api/v1/invitations").json() == []
    last = admin.patch("/api/v1/users/1", json={"active": False})
    assert (last.status_code, last.json()["error"]["code"]) == (409, "conflict")


# --- the shape of answers ---


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
