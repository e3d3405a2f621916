"""A project's tasks over HTTP: put in, looked at, withdrawn; what is no file of tasks, and what is too much."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import time
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from keel.feedback import people
from keel.feedback.projects import Settings, change_settings, find_project
from keel.feedback.tables import Project, User
from keel.feedback.tasks import add_tasks
from keel.feedback.web import tasks_api
from tests.feedback.offices import API, PAIR, World, text_of
from tests.feedback.support import csrf_of, quick_app, user_named, with_token
from tests.feedback.worlds import NOW, answered, new_tasks, tasks_of
from tests.feedback.worlds import project as make_project

CLEAR = {"best": 0, "strength": "clear"}


def test_an_import_is_withdrawn_and_put_back_by_the_page_and_the_api(world_on_either: World) -> None:
    world = world_on_either
    with world.database.writing() as session:
        made = make_project(session, tasks=2)
        user = session.scalars(select(User).where(User.role == "annotator")).one()
        answered(session, made, user, tasks_of(session, made)[0], CLEAR, comment="odd")
    rows = [PAIR | {"prompt": f"wrong {k}"} for k in range(3)]
    world.upload(rows, round=2, policy_version="v<1>")
    wrong, right = world.viewer.get(f"{API}/1/imports").json()
    assert {key: wrong[key] for key in ("number", "round", "policy_version", "tasks", "votes", "withdrawn_at")} == {
        "number": 3, "round": 2, "policy_version": "v<1>", "tasks": 3, "votes": 0, "withdrawn_at": None
    }  # fmt: skip
    assert (right["number"], right["created_at"], right["tasks"], right["votes"]) == (1, NOW, 2, 1)
    assert "3 tasks" in text_of(world.admin.get("/projects/1"))
    assert "v&lt;1&gt;" in world.admin.get("/projects/1").text

    answer = world.post("/projects/1/imports/3", {"withdrawn": "true"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/projects/1#imports")
    page = world.admin.get("/projects/1")
    assert "1 of 2 votes" in text_of(page)
    assert "Put back" in page.text
    assert world.viewer.get(f"{API}/1/progress").json()["tasks"] == 2
    assert "Withdrawn on" in text_of(world.viewer.get("/projects/1/tasks/3"))
    answer = world.send("PUT", f"{API}/1/imports/1/withdrawn", json={"withdrawn": True})
    assert answer.json()["withdrawn_at"] > NOW
    assert world.viewer.get(f"{API}/1/remarks").json() == []
    assert world.viewer.get(f"{API}/1/export").text == ""
    everything = world.viewer.get(f"{API}/1/export", params={"purpose": "all"}).text
    assert json.loads(everything)["withdrawn"] is True

    mended = {"new": 3, "known": 0}
    assert world.upload(rows, round=2).json().items() >= mended.items()
    refused = world.send("PUT", f"{API}/1/imports/3/withdrawn", json={"withdrawn": False})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert world.send("PUT", f"{API}/1/imports/1/withdrawn", json={"withdrawn": False}).json()["withdrawn_at"] is None
    assert world.viewer.get(f"{API}/1/progress").json()["tasks"] == 5
    for number in (2, 99):
        refused = world.send("PUT", f"{API}/1/imports/{number}/withdrawn", json={"withdrawn": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_tasks_are_listed_page_by_page_and_by_what_they_are(world: World) -> None:
    with world.database.writing() as session:
        made = make_project(session, tasks=60, votes=2)
        add_tasks(session, made, new_tasks(2, purpose="gold", expected=CLEAR, round=2), now=NOW + 1)
        user = session.scalars(select(User).where(User.role == "annotator")).one()
        answered(session, made, user, tasks_of(session, made)[0], CLEAR)
    first = world.viewer.get("/projects/1/tasks")
    assert "Task 1 prompt 0 round 1 1 of 2 votes" in text_of(first)
    assert "Task 51" not in text_of(first)
    more = "?purpose=&amp;round=&amp;state=&amp;order=number&amp;after=50"
    assert more in first.text
    second = world.viewer.get("/projects/1/tasks" + more.replace("&amp;", "&"))
    assert "Task 51 prompt 50" in text_of(second)
    assert "Task 61 prompt 0 gold round 2 0 votes" in text_of(second)
    assert "More" not in text_of(second)
    gold = text_of(world.viewer.get("/projects/1/tasks", params={"purpose": "gold", "round": "2", "state": ""}))
    assert ("Task 60 " in gold, "Task 61 " in gold) == (False, True)
    listed = world.viewer.get(f"{API}/1/tasks", params={"round": 2, "after": 61, "count": 9}).json()["tasks"]
    assert [(one["id"], one["prompt"], one["purpose"], one["votes"]) for one in listed] == [(62, "prompt 1", "gold", 0)]
    assert world.viewer.get("/projects/1/tasks", params={"state": "lost"}).status_code == 422


def test_gold_and_practice_are_counted_beside_the_others(world: World) -> None:
    with world.database.writing() as session:
        made = make_project(session, tasks=1)
        add_tasks(session, made, new_tasks(2, purpose="gold", expected=CLEAR), now=NOW)
        add_tasks(session, made, new_tasks(3, purpose="practice", expected=CLEAR), now=NOW)
    assert "tasks to which the answer is known: 2 of gold and 3 for practice." in text_of(
        world.viewer.get("/projects/1")
    )
    found = world.viewer.get(f"{API}/1/progress").json()
    assert (found["tasks"], found["gold"], found["practice"]) == (1, 2, 3)


def test_gold_that_nobody_would_be_given_says_so(world: World) -> None:
    with world.database.writing() as session:
        make_project(session, tasks=1)
    gold = {"prompt": "g", "chosen": "a", "rejected": "b"}
    assert world.upload([PAIR]).json()["never_given"] == ""
    assert world.upload([gold], purpose="practice").json()["never_given"] == ""
    why = "nobody is given gold in compare of 1 while its gold_share is 0; set it to 0.05, say, in its settings"
    assert world.upload([gold], purpose="gold").json()["never_given"] == why
    assert why[1:] in text_of(world.viewer.get("/projects/1"))
    with world.database.writing() as session:
        change_settings(session, find_project(session, 1), Settings(gold_share=0.1))
    assert world.upload([gold], purpose="gold").json()["never_given"] == ""
    assert why[1:] not in text_of(world.viewer.get("/projects/1"))
    world.send("PUT", f"{API}/1/closed", json={"closed": True})
    assert "while it is closed; open it again" in world.upload([PAIR]).json()["never_given"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"prompt,chosen,rejected\np,a,b\n"),
        ("T.JSON", b'[{"prompt": "p", "chosen": "a", "rejected": "b"}]'),
        ("t.jsonl.gz", gzip.compress(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n', mtime=0)),
        ("../../etc/t.csv", b"prompt,chosen,rejected\np,a,b\n"),
    ],
)
def test_files_of_other_forms_are_told_by_their_names(shared: World, name: str, content: bytes) -> None:
    done = shared.send("POST", f"{API}/1/tasks", params={"name": name}, content=content)
    assert done.status_code == 201, done.text
    assert done.json()["new"] + done.json()["known"] == 1


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "", "holds no rows; a compare project takes rows with prompt and responses, or prompt, chosen and"),
        (b"PK\x03\x04....", "", "a zip archive"),
        (b"PAR1....", "t.parquet", "damaged Parquet"),
        (gzip.compress(b'{"prompt"' * 1000, mtime=0)[:-10], "", "damaged gzip"),
        (b'{"prompt": "p"}\n', "", "none of its 1 rows"),
        (b"\x00\x01\x02", "", "none of its 1 rows"),
    ],
)
def test_a_file_that_is_no_data_is_refused_without_a_path(shared: World, content: bytes, name: str, says: str) -> None:
    answer = shared.send("POST", f"{API}/1/tasks", params={"name": name}, content=content)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert says in message
    assert message.startswith(name or "the file")
    assert "keel-upload" not in message


def test_what_is_wrong_beside_the_file_is_named(world_on_either: World) -> None:
    with world_on_either.database.writing() as session:
        make_project(session, tasks=0)
    for wrong, says in (
        ({"policy_version": "\x00"}, "policy_version: a NUL character, or half of a surrogate pair, is no text"),
        ({"round": 0}, "round: give 1 or more"),
        ({"purpose": "none"}, "purpose: give 'label', 'gold' or 'practice'"),
    ):
        answer = world_on_either.upload([PAIR], **wrong)
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, says)
    answer = world_on_either.upload([PAIR], purpose="gold")
    assert "gold in a compare project is rows that say what is right, with chosen and rejected" in answer.text
    for query, says in (("state=lost", "State: give 'open', 'complete' or 'withdrawn'"), ("round=0", "Round: give 1")):
        assert says in text_of_refusal(world_on_either.viewer.get(f"/projects/1/tasks?{query}"))


def text_of_refusal(page: Any) -> str:
    assert page.status_code == 422
    return html.unescape(page.text)


async def _taken_of_a_gigabyte(app: FastAPI, token: str, *, declared: bool) -> tuple[int, int]:
    """(status, bytes taken) where a program sends a gigabyte, straight to the app."""
    length = 1 << 30
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]
    scope = {
        "type": "http", "method": "POST", "path": f"{API}/1/tasks", "raw_path": b"", "query_string": b"",
        "headers": headers + [(b"content-length", str(length).encode())] * declared, "client": ("127.0.0.1", 1),
        "server": ("localhost", 80), "scheme": "http", "root_path": "", "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    taken, status = 0, 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1 << 16
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": taken < length}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status, taken


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    """By what it declares without a byte of it, and else as soon as the limit is passed."""
    monkeypatch.setattr(tasks_api, "MOST_UPLOADED", 1 << 20)
    with world.database.writing() as session:
        make_project(session, tasks=0)
        admin = session.scalars(select(User).where(User.name == "the admin")).one()
        _, token = people.make_token(session, admin, "test", now=time.time())
    status, taken = asyncio.run(_taken_of_a_gigabyte(quick_app(world.database), token, declared=declared))
    assert status == 413
    assert taken <= (0 if declared else (1 << 20) + (1 << 16))


def test_only_an_admin_may_send_more_than_others(world: World) -> None:
    """Nobody else's large body is read, whatever it says it is."""
    with world.database.writing() as session:
        make_project(session, tasks=0)
    big = json.dumps({"prompt": "p" * (9 << 20), "responses": ["a", "b"]}).encode() + b"\n"
    assert world.send("POST", f"{API}/1/tasks", content=big).status_code == 201
    assert world.send("POST", f"{API}/1/tasks", content=big, role="viewer").status_code == 403
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for client in (world.admin, world.viewer):
        assert client.post(f"{API}/1/tasks", content=big, headers=form).status_code == 413
    assert world.send("POST", API, content=big).status_code == 413


def test_one_is_said_as_one_and_a_vote_too_many_is_of_no_number(world: World) -> None:
    with world.database.writing() as session:
        made = make_project(session, tasks=2)
        users = session.scalars(select(User).order_by(User.id)).all()[:2]
        for user in users:
            answered(session, made, user, tasks_of(session, made)[0], CLEAR)
    assert "So far 1 of 2 votes, 1 a task; 1 of 2 tasks complete." in text_of(world.viewer.get("/projects/1"))
    listed = text_of(world.viewer.get("/projects/1/tasks"))
    assert "complete round 1 2 votes" in listed
    assert "Task 2 prompt 1 round 1 0 of 1 vote " in listed
    assert "Round 1, label: 2 votes." in text_of(world.viewer.get("/projects/1/tasks/1"))
    with world.database.writing() as session:
        make_project(session, "rank", tasks=1)
    assert "0 of 1 vote on 1 task " in text_of(world.viewer.get("/projects"))


def test_a_form_is_no_file(shared: World) -> None:
    url, csrf = f"{API}/1/tasks", csrf_of(shared.admin)
    token = with_token(shared.app, shared.database, user_named(shared.database, "the admin"))
    answers = [shared.admin.post(url, data={"csrf": csrf}), shared.admin.post(url, files={"csrf": (None, csrf)})]
    for answer in (*answers, token.post(url, files={"file": json.dumps(PAIR)})):
        assert answer.status_code == 422
        assert "no form around it" in answer.json()["error"]["message"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl says of any body
    assert token.post(url, content=json.dumps(PAIR), headers=form).status_code == 201


def test_a_column_of_their_own_that_is_called_withdrawn_comes_back(world: World) -> None:
    with world.database.writing() as session:
        make_project(session, tasks=0)
    world.upload([PAIR | {"withdrawn": "by the author"}])
    with world.database.writing() as session:
        made = session.get_one(Project, 1)
        user = session.scalars(select(User).where(User.role == "annotator")).one()
        answered(session, made, user, tasks_of(session, made)[0], CLEAR)
    row = json.loads(world.viewer.get("/projects/1/export.jsonl").text)
    assert row["withdrawn"] == "by the author"


def test_a_wrong_filter_leads_back_to_the_project(world: World) -> None:
    with world.database.writing() as session:
        make_project(session, tasks=0)
    assert 'href="/projects/1"' in world.viewer.get("/projects/1/tasks?round=abc").text
