"""Which names the server answers to, whose pages may send it something, and where it sends people."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.web.sites import Sites
from tests.feedback.support import (
    PASSWORD,
    URL,
    csrf_of,
    field_of,
    quick_app,
    signed_in,
    visitor,
)


@pytest.mark.parametrize(
    ("path", "own"), [("/sign-in", 303), ("/join/guess", 404), ("/account/tokens", 303), ("/api/v1/me/tokens", 422)]
)
def test_another_sites_page_sends_nothing(app: FastAPI, path: str, own: int) -> None:
    """`own` is what the server's own page is answered; the API takes no form."""
    client = signed_in(app, "ann")
    data = {"name": "ann", "password": PASSWORD, "label": "x", "csrf": csrf_of(client)}
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example"):
        answer = client.post(path, data=data, headers={"Origin": origin})
        assert (answer.status_code, "another site" in answer.text) == (403, True)
    assert client.post(path, data=data, headers={"Origin": URL}).status_code == own


def test_behind_a_proxy_the_public_site_is_the_own_one(store: Database) -> None:
    app = quick_app(store, public_url="https://Keel.example:443/")
    client = visitor(app)
    data = {"name": "ann", "password": PASSWORD}
    for host, origin, status in (
        ("keel.example", "https://keel.example", 303),
        ("127.0.0.1:8400", "https://keel.example", 303),
        ("keel.example", "https://keel.example.evil", 403),
        ("evil.example", "https://keel.example", 403),
        ("127.0.0.1:8400", "http://127.0.0.1:8400", 303),  # browsers keep the cookie of their own machine
        ("localhost", "http://localhost", 303),
    ):
        assert client.post("/sign-in", data=data, headers={"Host": host, "Origin": origin}).status_code == status


def test_who_would_not_stay_signed_in_is_sent_to_where_they_would(store: Database) -> None:
    """The cookie is for TLS alone: without this the sign-in page would come again and again, and say nothing."""
    client = visitor(quick_app(store, public_url="https://keel.example"))
    for host in ("keel.example", "10.0.0.5:8400"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        answer = client.post("/sign-in", data={"name": "ann", "password": PASSWORD}, headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (422, False)
        assert "address without TLS; open https://keel.example." in answer.text
    for path in ("/sign-in", "/join/secret"):  # before anybody types a password there
        assert "open https://keel.example." in client.get(path, headers={"Host": "10.0.0.5:8400"}).text
        for host in ("keel.example", "127.0.0.1:8400"):  # a proxy has taken the TLS off; this machine
            assert "open https://keel.example." not in client.get(path, headers={"Host": host}).text


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
