"""Limits on guessing, by hand numbers and over HTTP."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from keel.feedback.database import Database
from keel.feedback.refused import Refused
from keel.feedback.web import access, attempts
from keel.feedback.web.attempts import Attempts
from tests.feedback.support import (
    PASSWORD,
    URL,
    signed_in,
    user_named,
    visitor,
    with_token,
)


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


def test_successes_do_not_keep_old_failures_alive() -> None:
    """An office behind one address: two typos in the morning, and somebody signs in every half an hour."""
    limit = Attempts(free=2, longest=3)
    limit.begin("office", 0.0)
    limit.begin("office", 10.0)
    for minutes in (30, 60):
        limit.begin("office", minutes * 60.0)
        limit.take_back("office")
    limit.begin("office", 3611.0)  # an hour after the last typo: the first of two free ones
    limit.begin("office", 3611.0)
    with pytest.raises(Refused):
        limit.begin("office", 3611.0)


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of a second is not over because the machine is slow."""
    now = time.time()
    monkeypatch.setattr(access, "time", SimpleNamespace(time=lambda: now))


@pytest.mark.usefixtures("no_time_passes")
def test_a_name_is_not_guessed_at_for_long(app: FastAPI) -> None:
    client = visitor(app)

    def attempt(name: str, password: str) -> int:
        return client.post("/sign-in", data={"name": name, "password": password}).status_code

    assert [attempt(name, "wrong, wrong") for name in ("ann", "ANN", "ann", " ann", "ann")] == [401] * 5
    late = client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
    assert (late.status_code, late.headers["retry-after"]) == (429, "1")
    assert "try again in 1 s" in late.text
    assert attempt("vic", PASSWORD) == 303


@pytest.mark.usefixtures("no_time_passes")
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


@pytest.mark.usefixtures("no_time_passes")
def test_the_current_password_is_not_guessed_at_either(app: FastAPI, store: Database) -> None:
    program = with_token(app, store, user_named(store, "ann"))
    body = {"current": "wrong, wrong", "new": "a new password"}
    codes = [program.put("/api/v1/me/password", json=body).status_code for _ in range(6)]
    assert codes == [403] * 5 + [429]
