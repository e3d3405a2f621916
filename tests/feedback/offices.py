"""The app with a person of each role, each in a browser of their own, and projects in it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from keel.feedback.database import Database
from keel.feedback.tables import Role, User
from tests.feedback.support import add_user, csrf_of, quick_app, signed_in
from tests.feedback.worlds import answered, tasks_of
from tests.feedback.worlds import project as make_project

PAIR = {"prompt": "p", "responses": ["a", "b"]}
API = "/api/v1/projects"


class World:
    """An app with a person of each role, each in a browser."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.app = app = quick_app(database)
        for role in ("admin", "viewer", "annotator"):
            add_user(database, f"the {role}", role)
        self.by_role: dict[Role, TestClient] = {
            role: signed_in(app, f"the {role}") for role in ("admin", "viewer", "annotator")
        }

    @property
    def admin(self) -> TestClient:
        return self.by_role["admin"]

    @property
    def viewer(self) -> TestClient:
        return self.by_role["viewer"]

    def send(self, method: str, url: str, *, role: Role = "admin", **more: Any) -> Any:
        client = self.by_role[role]
        return client.request(method, url, headers={"X-CSRF-Token": csrf_of(client)}, **more)

    def post(self, url: str, data: dict[str, Any], *, role: Role = "admin") -> Any:
        """A form."""
        client = self.by_role[role]
        return client.post(url, data=data | {"csrf": csrf_of(client)})

    def upload(self, rows: list[Any], *, role: Role = "admin", **query: Any) -> Any:
        content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        return self.send("POST", f"{API}/1/tasks", role=role, content=content, params=query)


def text_of(page: Any) -> str:
    assert page.status_code == 200, page.text
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.text)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """On SQLite: what differs between the databases lies below, and is tried there."""
    database = Database(tmp_path / "feedback.db")
    yield World(database)
    database.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with one project without tasks, for tests that leave it as it is or do not mind."""
    database = Database(tmp_path_factory.mktemp("shared") / "feedback.db")
    with database.writing() as session:
        make_project(session, tasks=0)
    yield World(database)
    database.close()


@pytest.fixture
def world_on_either(database: Database) -> World:
    return World(database)


@pytest.fixture
def judged(world: World) -> World:
    """A project of twelve pairs, on ten of which two people agree; one remark of each sort, hostile ones."""
    with world.database.writing() as session:
        users = session.scalars(select(User).where(User.role != "admin").order_by(User.id)).all()
        made = make_project(session, tasks=12, votes=2)
        for number, task in enumerate(tasks_of(session, made)):
            for user in users:
                best = int(number < 2 and user is users[0])
                comment = "<script>alert(1)</script>" if number == 0 else ""
                answered(session, made, user, task, {"best": best, "strength": "clear"}, comment=comment)
    return world
