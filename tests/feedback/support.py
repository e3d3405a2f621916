"""The app as tests use it: quick passwords, people who are signed in, links and forms taken from the pages."""

from __future__ import annotations

import html
import re
import time
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from keel.feedback import database as databases
from keel.feedback import people
from keel.feedback.app import make_app
from keel.feedback.database import Database
from keel.feedback.passwords import Passwords
from keel.feedback.tables import Role, User

URL = "http://localhost"
PASSWORD = "correct horse battery"


def quick_passwords() -> Passwords:
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


def quick_app(database: Database, **options: Any) -> FastAPI:
    """The app, with passwords that cost nothing."""
    return make_app(database, passwords=quick_passwords(), **options)


def add_user(database: Database, name: str, role: Role = "annotator") -> User:
    """An account with PASSWORD."""
    with database.writing() as session:
        if not people.has_admin(session):
            secret = people.setup_secret(session, now=time.time())
            assert secret is not None
            people.join(session, secret, "root", quick_passwords().hash(PASSWORD), now=time.time())
        root = people.everybody(session)[0].user
        _, secret = people.invite(session, role, by=root, now=time.time())
        user = people.join(session, secret, name, quick_passwords().hash(PASSWORD), now=time.time())
        session.expunge(user)
        return user


def user_named(store: Database, name: str) -> User:
    with store.reading() as session:
        return next(one.user for one in people.everybody(session) if one.user.name == name)


def visitor(app: FastAPI, **options: Any) -> TestClient:
    """A browser that nobody has signed in yet; it stays where it is sent away from."""
    return TestClient(app, base_url=URL, follow_redirects=False, **options)


def signed_in(app: FastAPI, name: str, password: str = PASSWORD) -> TestClient:
    client = visitor(app)
    answer = client.post("/sign-in", data={"name": name, "password": password})
    assert answer.status_code == 303, answer.text
    return client


def csrf_of(client: TestClient) -> str:
    """What this visitor's forms hold."""
    return field_of(client.get("/account").text, "csrf")


def field_of(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return html.unescape(found[1])


def shown_once(client: TestClient, answer: Response) -> str:
    """The link or token on the page to which the answer to a form leads."""
    assert answer.status_code == 303, answer.text
    secret = secret_of(client.get(answer.headers["location"]).text)
    assert secret
    return secret


def secret_of(page: str) -> str | None:
    """What a page shows once, where it shows something."""
    found = re.search(r'<input id="secret" [^>]*value="([^"]+)"', page)
    return html.unescape(found[1]) if found else None


def with_token(app: FastAPI, database: Database, user: User) -> TestClient:
    """A program of theirs."""
    with database.writing() as session:
        _, secret = people.make_token(session, user, "test", now=time.time())
    return TestClient(app, base_url=URL, headers={"Authorization": f"Bearer {secret}"})


def cramp(monkeypatch: pytest.MonkeyPatch, pragma: str) -> None:
    """Each connection to SQLite from now on has a disk that takes nothing more, or may not write at all."""
    prepare = databases._prepare

    def cramped(connection: Any, record: Any) -> None:
        prepare(connection, record)
        connection.execute(f"PRAGMA {pragma}")

    monkeypatch.setattr(databases, "_prepare", cramped)
