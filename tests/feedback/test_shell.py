"""What becomes of a database's own errors: a client is told whether the same may do later."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from keel.feedback import database as databases
from keel.feedback.database import Database
from tests.feedback.support import cramp, csrf_of, quick_app, signed_in, visitor


def test_who_waits_too_long_for_the_database_is_told_to_come_again(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes for longer than SQLite waits."""
    monkeypatch.setattr(databases, "_BUSY_SECONDS", 0.01)
    impatient = Database(tmp_path / "feedback.db")
    client = signed_in(quick_app(impatient), "root")
    csrf = csrf_of(client)
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    body = {"name": "p", "kind": "rank"}
    answer = client.post("/api/v1/projects", json=body, headers={"X-CSRF-Token": csrf})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["code"] == "busy"
    page = client.post("/account/tokens", data={"label": "x", "csrf": csrf})
    assert (page.status_code, page.headers["retry-after"]) == (503, "2")
    assert "The database is busy" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    other.rollback()
    assert client.post("/api/v1/projects", json=body, headers={"X-CSRF-Token": csrf}).status_code == 201
    other.close()
    impatient.close()


def test_a_full_disk_loses_nothing_and_is_named(
    store: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cramp(monkeypatch, "max_page_count = 1")  # SQLite takes it for as many as there are
    full = Database(tmp_path / "feedback.db")
    client = signed_in(quick_app(store), "root")
    client = visitor(quick_app(full), cookies=client.cookies, headers={"X-CSRF-Token": csrf_of(client)})
    body = {"name": "p", "kind": "rank", "settings": {"guidelines": "x" * 99_999}}
    answer = client.post("/api/v1/projects", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert "has no room" in answer.json()["error"]["message"]
    assert "database or disk is full" in caplog.text
    assert client.get("/api/v1/projects").json() == []
    full.close()
    assert signed_in(quick_app(store), "root").get("/api/v1/projects").json() == []


def test_what_somebody_else_did_at_the_same_time_is_a_conflict(app: FastAPI, store: Database) -> None:
    client = signed_in(app, "root")

    @app.get("/api/v1/twice")
    def twice() -> None:
        with store.writing() as session:
            for _ in range(2):
                session.execute(text("INSERT INTO secrets VALUES ('one', 'x')"))

    answer = client.get("/api/v1/twice")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"
    assert "INSERT" not in answer.text


def test_every_operation_says_that_it_may_be_busy(app: FastAPI) -> None:
    for methods in app.openapi()["paths"].values():
        for operation in methods.values():
            assert "503" in operation["responses"]
