"""Projects over HTTP: who may do what, what the forms and the API make of what they are given, what is too much."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.projects import find_project, settings_of
from keel.feedback.tables import Project, Role, Task, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks
from keel.feedback.web import projects_api
from tests.feedback.support import add_user, csrf_of, quick_app, signed_in, user_named, with_token
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


def text_of(page: Any) -> str:
    assert page.status_code == 200, page.text
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.text)))


READ = ["", "/quality", "/remarks", "/audit", "/tasks/1", "/export.jsonl"]
READ_API = ["", "/progress", "/quality", "/remarks", "/export"]


def test_viewers_read_and_change_nothing_and_annotators_see_none_of_it(judged: World) -> None:
    pages = ["/projects", *(f"/projects/1{page}" for page in READ), API, *(f"{API}/1{part}" for part in READ_API)]
    for url in pages:
        assert judged.admin.get(url).status_code == 200, url
        assert judged.viewer.get(url).status_code == 200, url
        assert judged.by_role["annotator"].get(url).status_code == 403, url
    settings = {"votes": 3}
    for role in ("viewer", "annotator"):
        for url in ("/projects/new", "/projects/1/settings"):
            assert judged.by_role[role].get(url).status_code == 403
            assert judged.post(url, {"name": "x", "kind": "rank"}, role=role).status_code == 403
        assert judged.post("/projects/1/closed", {"closed": "true"}, role=role).status_code == 403
        for method, url, body in (
            ("POST", API, {"name": "x", "kind": "rank"}),
            ("PUT", f"{API}/1/settings", settings),
            ("PUT", f"{API}/1/closed", {"closed": True}),
        ):
            assert judged.send(method, url, role=role, json=body).status_code == 403
        assert judged.upload([PAIR], role=role).status_code == 403
    assert "Put tasks in" not in judged.viewer.get("/projects/1").text
    assert "Put tasks in" in judged.admin.get("/projects/1").text
    with judged.database.reading() as session:
        assert session.scalar(select(func.count(Project.id))) == 1
        assert session.scalar(select(func.count(Task.id))) == 12


def test_pages_of_what_is_not_there_are_not_found(judged: World) -> None:
    with judged.database.writing() as session:
        make_project(session, "rank", tasks=0)
    for url in ("/projects/9", "/projects/9/quality", "/projects/1/tasks/99", "/projects/2/tasks/1", f"{API}/9"):
        assert judged.viewer.get(url).status_code == 404, url


def test_a_project_by_the_form_and_changed_by_it(world: World) -> None:
    form = {
        "name": "kind & true", "kind": "rate", "question": "How good?", "guidelines": "Be <b>fair</b>.\r\n\r\nAlways.",
        "scale_lowest": "0", "scale_highest": "10", "votes": "3", "choice": "disputed", "most_votes": "5",
        "lease_minutes": "10.5", "gold_share": "0.1", "repeat_share": "", "least_seconds": "2",
        "criterion_name": ["helpful", ""], "criterion_question": ["Does it help?", ""],
        "criterion_options": ["yes, no", ""],
    }  # fmt: skip
    assert world.post("/projects/new", form).headers["location"] == "/projects/1"
    with world.database.reading() as session:
        made = find_project(session, "kind & true")
        assert made.kind == "rate"
        assert settings_of(made).model_dump() == {
            "question": "How good?", "guidelines": "Be <b>fair</b>.\n\nAlways.", "scale": (0, 10), "votes": 3,
            "most_votes": 5, "choice": "disputed", "lease_minutes": 10.5, "gold_share": 0.1, "repeat_share": 0.0,
            "least_seconds": 2.0,
            "criteria": ({"name": "helpful", "question": "Does it help?", "options": ("yes", "no")},),
        }  # fmt: skip
        before = settings_of(made)
    page = world.admin.get("/projects/1/settings")
    assert "Be &lt;b&gt;fair&lt;/b&gt;." in page.text
    names = re.findall(r'name="(\w+)"[^>]* value="([^"]*)"', page.text)
    shown = {name: html.unescape(value) for name, value in names if not name.startswith("criterion")}
    again = form | shown | {"votes": "4"}
    assert world.post("/projects/1/settings", again).status_code == 303
    with world.database.reading() as session:
        assert settings_of(find_project(session, 1)) == before.model_copy(update={"votes": 4})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"votes": "none"}, "Votes: "),
        ({"votes": "0"}, "Votes: "),
        ({"scale_lowest": "7"}, "scale from 7 to 7"),
        ({"most_votes": "3"}, "most_votes has no effect"),
        ({"gold_share": "nan"}, "Gold_share: "),
        ({"choice": "best"}, "Choice: "),
        ({"name": " "}, "1 to 80 letters"),
        ({"name": "a\x1b"}, "control characters"),
        ({"question": "a\x00"}, "NUL"),
        ({"kind": "guess"}, "Kind: choose one of"),
    ],
)
def test_what_was_typed_stands_in_the_form_that_refuses_it(shared: World, change: dict[str, str], says: str) -> None:
    form = {"name": "n", "kind": "compare", "guidelines": "Long <words>", "criterion_name": ["c"]} | {
        "criterion_question": ["q"], "criterion_options": [""], "scale_lowest": "1", "scale_highest": "7"
    }  # fmt: skip
    page = shared.post("/projects/new", form | change)
    assert page.status_code == 422
    assert says in html.unescape(page.text)
    assert "Long &lt;words&gt;" in page.text
    assert 'name="criterion_name" value="c"' in page.text
    with shared.database.reading() as session:
        assert session.scalar(select(func.count(Project.id))) == 1


def test_a_closed_project_can_be_opened_again(judged: World) -> None:
    assert judged.post("/projects/1/closed", {"closed": "true"}).status_code == 303
    assert "closed since" in text_of(judged.viewer.get("/projects/1"))
    assert judged.viewer.get(API).json() == []
    assert judged.viewer.get(API, params={"closed": True}).json()[0]["closed_at"] > 0
    assert judged.send("PUT", f"{API}/1/closed", json={"closed": False}).json()["closed_at"] is None


def test_the_pages_tell_what_was_said_and_no_script_of_it_runs(judged: World) -> None:
    assert "24 of 24 votes" in text_of(judged.viewer.get("/projects"))
    overview = text_of(judged.viewer.get("/projects/1"))
    assert "12 of 12 tasks have all of theirs" in overview
    assert "the annotator 12" in overview
    assert "1970-01-12 24" in overview
    assert "Krippendorff's α (nominal)" in text_of(judged.viewer.get("/projects/1/quality"))
    for url in ("/projects/1/remarks", "/projects/1/tasks/1"):
        page = judged.viewer.get(url)
        assert "<script>alert(1)" not in page.text
        assert "<script>alert(1)</script>" in text_of(page).replace("< ", "<") or "&lt;script&gt;alert(1)" in page.text
    assert "/projects/1/tasks/1" in judged.viewer.get("/projects/1/remarks").text
    found = text_of(judged.viewer.get("/projects/1/audit"))
    assert "Nothing is wrong" in found or "comparisons 24" in found
    assert "the response that stood first is preferred" in found
    assert "24 of 24 votes" in text_of(judged.viewer.get("/"))
    assert "Projects" not in text_of(judged.by_role["annotator"].get("/"))


def test_an_audit_counts_the_ties_that_are_not_in_what_it_reads(judged: World) -> None:
    with judged.database.writing() as session:
        made = find_project(session, 1)
        (user,) = session.scalars(select(User).where(User.role == "admin", User.name != "root"))
        for task in tasks_of(session, made)[:3]:
            answered(session, made, user, task, {"best": None, "strength": "tie"})
    assert "ties 3" in text_of(judged.viewer.get("/projects/1/audit"))


def test_a_task_is_told_in_words_and_letters(world: World) -> None:
    with world.database.writing() as session:
        user = session.scalars(select(User).where(User.role == "annotator")).one()
        made = make_project(session, tasks=0, criteria=[{"name": "honest", "question": "Which is honest?"}])
        add_tasks(session, made, [NewTask("Say **it**", [NewResponse("*a*"), NewResponse("|n|\n|-:|\n|1|")])], now=0)
        (task,) = tasks_of(session, made)
        slight = {"best": 1, "strength": "slight"}
        answered(session, made, user, task, slight, order=[1, 0], criteria={"honest": 0}, comment="Hm.")  # as shown
    page = world.viewer.get("/projects/1/tasks/1")
    assert "Say <strong>it</strong>" in page.text
    assert '<td align="right">1</td>' in page.text
    said = text_of(page)
    assert "Response A" in said
    assert "the annotator B slightly better 1970" in said
    assert "shown as B, A Which is honest? B Hm." in said
    assert "Task 1 Say **it**" in text_of(world.viewer.get("/projects/1/remarks"))


def test_an_audit_of_nothing_says_so(world: World) -> None:
    with world.database.writing() as session:
        make_project(session)
    assert "nothing to audit" in text_of(world.viewer.get("/projects/1/audit"))
    assert "Nobody has judged yet" in text_of(world.viewer.get("/projects/1/quality"))


def test_the_api_makes_a_project_fills_it_and_gives_judgements_back(world_on_either: World) -> None:
    world = world_on_either
    made = world.send("POST", API, json={"name": "p", "kind": "compare", "settings": {"votes": 2}})
    assert made.status_code == 201
    assert (made.json()["id"], made.json()["settings"]["votes"]) == (1, 2)
    assert world.send("POST", API, json={"name": "P", "kind": "rank"}).status_code == 409
    done = world.upload([PAIR, PAIR | {"prompt": "q"}, {"prompt": "r"}], round=2, policy_version="v1")
    assert done.status_code == 201, done.text
    assert (done.json()["new"], done.json()["known"]) == (2, 0)
    assert [(one["reason"], one["row"]) for one in done.json()["left_out"]] == [("missing field", 2)]
    gold = world.upload([{"prompt": "g", "chosen": "a", "rejected": "b"}], purpose="gold")
    assert gold.json()["new"] == 1
    assert world.send("PUT", f"{API}/1/settings", json={"votes": 3}).json()["settings"]["votes"] == 3
    with world.database.writing() as session:
        user = session.scalars(select(User).where(User.role == "annotator")).one()
        found = find_project(session, 1)
        for task in tasks_of(session, found):
            answered(session, found, user, task, {"best": 0, "strength": "clear"}, comment="odd")
    progress = world.viewer.get(f"{API}/1/progress").json()
    assert progress["rounds"] == [{"round": 2, "tasks": 2, "complete": 0, "votes": 2, "wanted": 6}]
    assert (progress["people"], progress["days"]) == (
        [{"name": "the annotator", "answers": 3}],
        [{"day": "1970-01-12", "answers": 3}],
    )
    quality = world.viewer.get(f"{API}/1/quality").json()
    assert quality["alpha"] is None
    assert "no task has answers of two people" in quality["unknown"]
    assert quality["people"][0]["gold"]["hits"] == 1
    assert [one["comment"] for one in world.viewer.get(f"{API}/1/remarks").json()] == ["odd"] * 3
    answer = world.viewer.get(f"{API}/1/export", params={"purpose": "all", "anonymous": True})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert "attachment" in answer.headers["content-disposition"]
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [(row["purpose"], row["chosen"]) for row in rows] == [("label", "a"), ("label", "a"), ("gold", "a")]
    assert all(row["annotator"].startswith("person-") for row in rows)
    page = world.viewer.get(
        "/projects/1/export.jsonl", params={"what": "judgements", "round": "", "everything": "true"}
    )
    assert len(page.text.splitlines()) == 3
    assert world.viewer.get("/projects/1/export.jsonl", params={"round": "1"}).text == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"prompt,chosen,rejected\np,a,b\n"),
        ("T.JSON", b'[{"prompt": "p", "chosen": "a", "rejected": "b"}]'),
        ("t.jsonl.gz", gzip.compress(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n')),
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
        (b"", "", "holds no rows"),
        (b"PK\x03\x04....", "", "a zip archive"),
        (b"PAR1....", "t.parquet", "damaged Parquet"),
        (gzip.compress(b'{"prompt"' * 1000)[:-10], "", "damaged gzip"),
        (b'{"prompt": "p"}\n', "", "none of its 1 rows"),
        (b"\x00\x01\x02", "", "none of its 1 rows"),
    ],
)
def test_a_file_that_is_no_data_is_refused_without_a_path(shared: World, content: bytes, name: str, says: str) -> None:
    answer = shared.send("POST", f"{API}/1/tasks", params={"name": name}, content=content)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert says in message
    assert message.startswith("the file")
    assert "keel-upload" not in message


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
    monkeypatch.setattr(projects_api, "MOST_UPLOADED", 1 << 20)
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


def test_texts_that_a_database_cannot_hold_are_refused(world_on_either: World) -> None:
    """With PostgreSQL they would be an error of the server."""
    world = world_on_either
    for body in ({"name": "a\x00", "kind": "rank"}, {"name": "a", "kind": "rank", "settings": {"question": "\x00"}}):
        assert world.send("POST", API, json=body).status_code == 422
    with world.database.writing() as session:
        made = make_project(session, tasks=0)
        number = made.id
    answer = world.send("POST", f"{API}/{number}/tasks", content=json.dumps(PAIR), params={"policy_version": "\x00"})
    assert answer.status_code == 422


def test_a_form_is_no_file(shared: World) -> None:
    url, csrf = f"{API}/1/tasks", csrf_of(shared.admin)
    token = with_token(shared.app, shared.database, user_named(shared.database, "the admin"))
    answers = [shared.admin.post(url, data={"csrf": csrf}), shared.admin.post(url, files={"csrf": (None, csrf)})]
    for answer in (*answers, token.post(url, files={"file": json.dumps(PAIR)})):
        assert answer.status_code == 422
        assert "no form around it" in answer.json()["error"]["message"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl says of any body
    assert token.post(url, content=json.dumps(PAIR), headers=form).status_code == 201


def test_who_has_no_form_of_ours_changes_nothing(judged: World) -> None:
    assert judged.admin.post("/projects/1/closed", data={"closed": "true"}).status_code == 403
    assert judged.admin.post(f"{API}/1/tasks", content=json.dumps(PAIR)).status_code == 403
    with judged.database.reading() as session:
        found = find_project(session, 1)
        assert (found.closed_at, len(tasks_of(session, found))) == (None, 12)


def test_the_api_describes_itself(world: World) -> None:
    paths = world.admin.get("/api/openapi.json").json()["paths"]
    assert "requestBody" in paths[f"{API}/{{project_id}}/tasks"]["post"]
    assert "application/x-ndjson" in paths[f"{API}/{{project_id}}/export"]["get"]["responses"]["200"]["content"]
