"""Projects over HTTP: who may do what, and what the forms and the API make of what they are given."""

from __future__ import annotations

import html
import json
import re

import pytest
from sqlalchemy import func, select

from keel.feedback.projects import find_project, settings_of
from keel.feedback.tables import Project, Task, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks
from tests.feedback.offices import API, PAIR, World, text_of
from tests.feedback.worlds import answered, tasks_of
from tests.feedback.worlds import project as make_project

READ = ["", "/tasks", "/tasks/1", "/quality", "/remarks", "/audit", "/export.jsonl"]
READ_API = ["", "/tasks", "/imports", "/progress", "/quality", "/remarks", "/export"]


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
        assert judged.post("/projects/1/imports/1", {"withdrawn": "true"}, role=role).status_code == 403
        for method, url, body in (
            ("POST", API, {"name": "x", "kind": "rank"}),
            ("PUT", f"{API}/1/settings", settings),
            ("PUT", f"{API}/1/closed", {"closed": True}),
            ("PUT", f"{API}/1/imports/1/withdrawn", {"withdrawn": True}),
        ):
            assert judged.send(method, url, role=role, json=body).status_code == 403
        assert judged.upload([PAIR], role=role).status_code == 403
    for heading in ("Put tasks in", "What was put in"):
        assert heading not in judged.viewer.get("/projects/1").text
        assert heading in judged.admin.get("/projects/1").text
    with judged.database.reading() as session:
        assert session.scalar(select(func.count(Project.id))) == 1
        assert session.scalar(select(func.count(Task.id)).where(Task.withdrawn_at.is_(None))) == 12


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
        ({"votes": "none"}, "Votes a task: give a whole number."),
        ({"votes": "0"}, "Votes a task: give 1 or more."),
        ({"scale_lowest": "7"}, "scale from 7 to 7"),
        ({"most_votes": "3"}, "most_votes has no effect"),
        ({"gold_share": "nan"}, "Share of gold: give a number."),
        ({"gold_share": "0.6"}, "Share of gold: give 0.5 or less."),
        ({"lease_minutes": "0"}, "Minutes for a task: give more than 0."),
        ({"choice": "best"}, "Which task comes next: give 'random', 'disputed' or 'uncertain'."),
        ({"question": "q" * 501}, "Question: give 500 characters or fewer."),
        ({"criterion_options": ["yes"]}, "Criterion 1, options: give 2 or more, not 1."),
        ({"criterion_name": [""]}, "Criterion 1, name in the export: give it."),
        ({"name": " "}, "1 to 80 letters"),
        ({"name": "a\x1b"}, "control characters"),
        ({"question": "a\x00"}, "NUL"),
        ({"kind": "guess"}, "How it is judged: choose one of"),
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
    assert 'name="criterion_question" value="q"' in page.text
    with shared.database.reading() as session:
        assert session.scalar(select(func.count(Project.id))) == 1


def test_the_field_that_is_to_blame_is_marked(shared: World) -> None:
    page = shared.post("/projects/new", {"name": "n", "kind": "compare", "gold_share": "5%"})
    marked = re.findall(r'<input[^>]* name="(\w+)"[^>]* aria-invalid="true"', page.text)
    assert marked == ["gold_share"]
    assert "aria-invalid" not in shared.admin.get("/projects/new").text


def test_a_closed_project_can_be_opened_again(judged: World) -> None:
    assert judged.post("/projects/1/closed", {"closed": "true"}).status_code == 303
    assert "closed since" in text_of(judged.viewer.get("/projects/1"))
    assert judged.viewer.get(API).json() == []
    assert judged.viewer.get(API, params={"closed": True}).json()[0]["closed_at"] > 0
    assert judged.send("PUT", f"{API}/1/closed", json={"closed": False}).json()["closed_at"] is None


def test_the_pages_tell_what_was_said_and_no_script_of_it_runs(judged: World) -> None:
    assert "24 of 24 votes" in text_of(judged.viewer.get("/projects"))
    overview = text_of(judged.viewer.get("/projects/1"))
    assert "So far 24 of 24 votes, 2 a task; 12 of 12 tasks complete." in overview
    assert "the annotator 12" in overview
    assert "1970-01-12 24" in overview
    assert "Krippendorff's α (nominal)" in text_of(judged.viewer.get("/projects/1/quality"))
    for url in ("/projects/1/remarks", "/projects/1/tasks/1"):
        page = judged.viewer.get(url)
        assert "<script>alert(1)" not in page.text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "/projects/1/tasks/1" in judged.viewer.get("/projects/1/remarks").text
    found = text_of(judged.viewer.get("/projects/1/audit"))
    assert "comparisons 24" in found
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
