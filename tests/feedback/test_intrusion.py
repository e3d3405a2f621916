"""SQL in every field that takes text: it is kept as text where text is kept, refused elsewhere, and never run."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, inspect, select

from keel.feedback.database import Database
from keel.feedback.tables import Base, Judgement, Project, Task, Token, User
from tests.feedback.support import PASSWORD, add_user, csrf_of, quick_app, signed_in, user_named, visitor, with_token
from tests.feedback.worlds import project, tasks_of

ATTACKS = ("'; DROP TABLE judgements; --", "' OR 1=1 --")
BOTH = pytest.mark.parametrize("attack", ATTACKS)


@pytest.fixture
def app(database: Database) -> FastAPI:
    add_user(database, "ann")
    return quick_app(database)


def state(database: Database) -> tuple[set[str], Counter[str]]:
    """The tables that there are, and how many rows each has; what remembers who signed in comes and goes."""
    with database.reading() as session:
        names = set(inspect(session.connection()).get_table_names())
        tables = [table for table in Base.metadata.sorted_tables if table.name != "logins"]
        return names, Counter({one.name: session.scalar(select(func.count()).select_from(one)) or 0 for one in tables})


@BOTH
def test_nobody_comes_in_by_it_and_somebody_may_be_called_it(app: FastAPI, database: Database, attack: str) -> None:
    before = state(database)
    client = visitor(app)
    for name, password in ((attack, attack), ("root", attack), (f"root{attack}", PASSWORD)):
        assert client.post("/sign-in", data={"name": name, "password": password}).status_code == 401
    assert client.get(f"/join/{quote(attack)}").status_code == 404
    assert client.post(f"/join/{quote(attack)}", data={"name": "eve", "password": PASSWORD}).status_code == 404
    for headers in ({"Authorization": f"Bearer {attack}"}, {"Cookie": f"keel={attack}"}):
        assert visitor(app).get("/api/v1/me", headers=headers).status_code == 401
    assert state(database) == before

    admin = signed_in(app, "root")
    link = admin.post(
        "/api/v1/invitations", json={"role": "annotator"}, headers={"X-CSRF-Token": csrf_of(admin)}
    ).json()["url"]
    assert client.post(link, data={"name": attack, "password": f"{attack} {attack}"}).status_code == 303
    someone = signed_in(app, attack, f"{attack} {attack}")
    changed = {"csrf": csrf_of(someone), "current": f"{attack} {attack}", "new": f"new {attack} {attack}"}
    assert someone.post("/account/password", data=changed).status_code == 303
    someone = signed_in(app, attack, f"new {attack} {attack}")
    assert someone.post("/account/tokens", data={"csrf": csrf_of(someone), "label": attack}).status_code == 303
    answer = visitor(app).post(
        "/sign-in", data={"name": attack, "password": f"new {attack} {attack}", "next": f"/{attack}"}
    )
    assert answer.status_code == 303
    headers = {"X-CSRF-Token": csrf_of(someone)}
    assert someone.post("/api/v1/me/tokens", json={"label": attack}, headers=headers).status_code == 201
    with database.reading() as session:
        assert session.scalars(select(User.name).order_by(User.id)).all() == ["root", "ann", attack]
        assert session.scalars(select(Token.label)).all() == [attack, attack]
    assert state(database)[0] == before[0]


@BOTH
def test_projects_tasks_and_judgements_keep_it_as_text(app: FastAPI, database: Database, attack: str) -> None:
    before = state(database)
    admin = signed_in(app, "root")
    headers = {"X-CSRF-Token": csrf_of(admin)}
    form = {
        "csrf": csrf_of(admin), "name": attack, "kind": "review", "question": attack, "guidelines": attack,
        "scale_lowest": "1", "scale_highest": "7", "criterion_name": [attack], "criterion_question": [attack],
        "criterion_options": [f"{attack},no"],
    }  # fmt: skip
    assert admin.post("/projects/new", data=form).status_code == 303
    assert admin.post("/projects/1/settings", data=form).status_code == 303
    criterion = {"name": attack, "question": attack, "options": [attack, "no"]}
    settings = {"question": attack, "guidelines": attack, "criteria": [criterion]}
    body = {"name": f"{attack}2", "kind": "review", "settings": settings}
    assert admin.post("/api/v1/projects", json=body, headers=headers).status_code == 201
    assert admin.put("/api/v1/projects/2/settings", json=settings, headers=headers).status_code == 200
    row = {"prompt": attack, "responses": [attack, "b"], "sources": [attack, attack], attack: {attack: [attack]}}
    asked = {"policy_version": attack, "name": attack}
    put = admin.post("/api/v1/projects/1/tasks", content=json.dumps(row), params=asked, headers=headers)
    assert put.json()["new"] == 2, put.text

    judge = with_token(app, database, user_named(database, "ann"))
    (task,) = judge.post("/api/v1/projects/1/leases", json={"count": 1}).json()["tasks"]
    said = {
        "assignment": task["assignment"], "verdict": "answer", "answer": {"accepted": False, "edited": f"{attack}!"},
        "criteria": {attack: attack}, "comment": attack,
    }  # fmt: skip
    assert judge.put(f"/api/v1/judgements/{quote(attack)}", json=said).status_code == 422
    assert judge.put(f"/api/v1/judgements/{uuid.uuid4()}", json=said | {"assignment": attack}).status_code == 422
    assert judge.put(f"/api/v1/judgements/{uuid.uuid4()}", json=said).status_code == 200
    with database.reading() as session:
        assert session.scalars(select(Project.name).order_by(Project.id)).all() == [attack, f"{attack}2"]
        kept = session.scalars(select(Project.settings)).all()
        for one in kept:
            assert {name: one[name] for name in settings} == settings
        first = tasks_of(session, session.get_one(Project, 1))[0]
        assert (first.prompt, first.policy_version, first.row) == (attack, attack, {attack: {attack: [attack]}})
        assert [(one.text, one.source) for one in first.responses] == [(attack, attack)]
        (judged,) = session.scalars(select(Judgement))
        assert (judged.comment, judged.criteria) == (attack, {attack: attack})
        assert judged.answer == {"accepted": False, "edited": f"{attack}!"}
    (line,) = admin.get("/api/v1/projects/1/export").text.splitlines()
    exported = json.loads(line)
    assert (exported["prompt"], exported["comment"], exported[attack]) == (attack, attack, {attack: [attack]})
    assert state(database)[0] == before[0]


def with_it(schema: dict[str, Any], schemas: dict[str, Any], attack: str) -> Any:
    """A value of that form with the attack wherever a text may be."""
    if "$ref" in schema:
        return with_it(schemas[schema["$ref"].rpartition("/")[2]], schemas, attack)
    if some := schema.get("anyOf", schema.get("oneOf")):
        return with_it(some[0], schemas, attack)
    if schema.get("type") == "object" or "properties" in schema:
        return {name: with_it(one, schemas, attack) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [with_it(schema["items"], schemas, attack)] if "items" in schema else [attack]
    return {"integer": 1, "number": 1.0, "boolean": True}.get(schema.get("type", ""), attack)


@BOTH
def test_no_operation_runs_it(app: FastAPI, database: Database, attack: str) -> None:
    """In every parameter, one at a time, and in every text of every body."""
    with database.writing() as session:
        project(session, tasks=2)
    client = with_token(app, database, user_named(database, "root"))
    before, tried = state(database), 0
    described = app.openapi()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            for one in [None, *parameters]:
                params = {one["name"]: attack} if one and one["in"] == "query" else {}
                there = {each["name"]: "1" for each in parameters if each["in"] == "path"}
                if one and one["in"] == "path":
                    there[one["name"]] = quote(attack)
                body = operation.get("requestBody", {}).get("content", {}).get("application/json")
                sent = None if body is None else with_it(body["schema"], described["components"]["schemas"], attack)
                if method == "delete" and not one:
                    continue  # nothing in it is text
                answer = client.request(method, path.format(**there), params=params, json=sent)
                assert answer.status_code < 500, (method, path, answer.text)
                tried += 1
    names, counts = state(database)
    assert tried > 50
    assert names == before[0]
    assert not before[1] - counts, "rows are gone"
    with database.reading() as session:
        assert session.scalar(select(func.count(Task.id))) == 2


def forms_of(page: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """(where to, what stands in it, the fields in which a person types) of each form that is posted."""
    for form, inside in re.findall(r"<form([^>]*)>(.*?)</form>", page, re.DOTALL):
        if 'method="post"' not in form.lower():
            continue
        action = re.search(r'action="([^"]*)"', form)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', inside))
        typed = re.findall(r'<(?:input|textarea|select)(?![^>]*type="hidden")[^>]*name="(\w+)"', inside)
        yield action[1] if action else "", hidden, typed


@BOTH
def test_no_form_runs_it(app: FastAPI, database: Database, attack: str) -> None:
    with database.writing() as session:
        project(session, tasks=2)
    before, typed = state(database), set()
    for path in ("/sign-in", "/account", "/people", "/projects/new", "/projects/1", "/projects/1/settings"):
        client: TestClient = visitor(app) if path == "/sign-in" else signed_in(app, "root")
        for action, hidden, fields in forms_of(client.get(path).text):
            if not fields:
                continue  # a button alone
            typed.update(fields)
            answer = client.post(action or path, data=hidden | dict.fromkeys(fields, attack))
            assert answer.status_code < 500, (path, action, answer.text)
    assert {"name", "password", "label", "current", "role", "question", "guidelines", "criterion_name"} <= typed
    names, counts = state(database)
    assert names == before[0]
    assert not before[1] - counts, "rows are gone"
