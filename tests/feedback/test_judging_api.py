"""Judging over HTTP: what is shown and what is not, what is kept, and whose it is."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from keel.feedback import leases, render
from keel.feedback.database import Database
from keel.feedback.projects import Settings, change_settings, close_project, find_project
from keel.feedback.tables import Assignment, Judgement, Kind, Task
from keel.feedback.tasks import NewResponse, NewTask, add_tasks, progress
from keel.feedback.web import shown as shown_module
from keel.schema import Message
from tests.feedback.support import add_user, csrf_of, signed_in, user_named, with_token
from tests.feedback.worlds import new_tasks, project

A_BETTER = {"best": 0, "strength": "clear"}


class Annotator:
    """A program with the token of an annotator, at work in one project."""

    def __init__(self, client: TestClient, project: int) -> None:
        self.client = client
        self.project = project

    def get(self, path: str) -> Any:
        answer = self.client.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def lease(self, count: int = 1) -> list[dict[str, Any]]:
        answer = self.client.post(f"/api/v1/projects/{self.project}/leases", json={"count": count})
        assert answer.status_code == 200, answer.text
        tasks: list[dict[str, Any]] = answer.json()["tasks"]
        return tasks

    def say(self, assignment: str, answer: Any = None, verdict: str = "answer", *, key: str = "", **more: Any) -> Any:
        body = {"assignment": assignment, "verdict": verdict, "answer": answer, **more}
        return self.client.put(f"/api/v1/judgements/{key or uuid.uuid4()}", json=body)


class World:
    """The app with its three people, and projects as a test wants them."""

    def __init__(self, database: Database, app: FastAPI) -> None:
        self.database = database
        self.app = app

    def project(self, kind: Kind = "compare", tasks: list[NewTask] | None = None, **settings: Any) -> int:
        with self.database.writing() as session:
            made = project(session, kind, tasks=0 if tasks is not None else 3, **settings)
            add_tasks(session, made, tasks or [], now=time.time())
            return made.id

    def annotator(self, name: str, project: int) -> Annotator:
        """One of the three, or somebody new."""
        known = name in ("root", "ann", "vic")
        user = user_named(self.database, name) if known else add_user(self.database, name)
        return Annotator(with_token(self.app, self.database, user), project)

    def rows(self) -> list[Judgement]:
        with self.database.reading() as session:
            return list(session.scalars(select(Judgement).order_by(Judgement.id)))


@pytest.fixture
def world(store: Database, app: FastAPI) -> World:
    return World(store, app)


def test_a_task_shows_its_texts_and_nothing_of_where_they_come_from(world: World) -> None:
    prompt = (Message("system", "Be *brief*."), Message("user", "Hi"))
    responses = [
        NewResponse("**one**", source="policy-a", extra={"ended": True}),
        NewResponse("two", source="policy-b"),
    ]
    task = NewTask(prompt, responses, policy_version="v7", batch="b1", round=3, row={"secret": "of the row"})
    ann = world.annotator("ann", world.project(tasks=[task], criteria=({"name": "honest"},), guidelines="*Read.*"))
    (shown,) = ann.lease()
    assert set(shown) == {"assignment", "practice", "seconds_left", "prompt", "responses", "said"}
    assert sorted(one["text"] for one in shown["responses"]) == ["**one**", "two"]
    assert {one["html"].strip() for one in shown["responses"]} == {
        '<p dir="auto"><strong>one</strong></p>',
        '<p dir="auto">two</p>',
    }
    assert [(turn["role"], turn["text"]) for turn in shown["prompt"]] == [("system", "Be *brief*."), ("user", "Hi")]
    assert 0 < shown["seconds_left"] <= 30 * 60
    for hidden in ("policy", "position", "v7", "source", "secret", "ended"):
        assert hidden not in str(shown)
    way = ann.get(f"/projects/{ann.project}/judging")["way"]
    assert (way["kind"], way["criteria"][0]["name"]) == ("compare", "honest")
    assert "<em>Read.</em>" in way["guidelines"]


def test_a_replacement_may_be_longer_than_its_response_however_long_that_is(world: World) -> None:
    ann = world.annotator("ann", world.project("review", [NewTask("p", [NewResponse("語" * 150_000)])]))
    (task,) = ann.lease()
    refused = ann.say(task["assignment"], {"accepted": False, "edited": "語" * 250_001})
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "answer.edited: give 250000 characters or fewer"
    assert refused.json()["error"]["field"] == "answer.edited"
    assert ann.say(task["assignment"], {"accepted": False, "edited": "語" * 250_000}).status_code == 200
    assert [len((row.answer or {})["edited"]) for row in world.rows()] == [250_000]


def test_a_lease_tells_whether_people_are_asked_otherwise(world: World) -> None:
    ann = world.annotator("ann", world.project(guidelines="Read."))

    def told(**settings: Any) -> str:
        with world.database.writing() as session:
            change_settings(session, find_project(session, ann.project), Settings(**settings))
        lent = ann.client.post(f"/api/v1/projects/{ann.project}/leases", json={"count": 1}).json()
        assert lent["version"] == ann.get(f"/projects/{ann.project}/judging")["way"]["version"]
        version: str = lent["version"]
        return version

    first = told(guidelines="Read.")
    assert told(guidelines="Read.", votes=2, gold_share=0.1) == first
    others = [
        told(guidelines="Read on."),
        told(guidelines="Read.", question="Which?"),
        told(guidelines="Read.", criteria=({"name": "kind"},)),
        told(guidelines="Read.", scale=(0, 10)),
    ]
    assert len({first, *others}) == 5
    assert told(guidelines="Read.") == first


@pytest.mark.parametrize(
    ("kind", "responses", "answer"),
    [
        ("compare", 2, {"best": 1, "strength": "slight"}),
        ("rank", 4, {"ranks": [2, 1, 3, 1]}),
        ("rate", 3, {"ratings": [7, 1, 4]}),
        ("review", 1, {"accepted": False, "edited": "better"}),
    ],
)
def test_what_is_said_of_places_is_kept_of_texts_and_comes_back_in_places(
    world: World, kind: Kind, responses: int, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_chance", random.Random(0))  # five orders that fell alike would test nothing
    ann = world.annotator("ann", world.project(kind, tasks=list(new_tasks(6, responses))))
    for shown in ann.lease(5):
        assert ann.say(shown["assignment"], answer, comment="so", duration=2.5).status_code == 200
        back = ann.get(f"/assignments/{shown['assignment']}")
        assert back["said"] == {"verdict": "answer", "answer": answer, "criteria": {}, "comment": "so", "duration": 2.5}
        row = world.rows()[-1]
        assert row.answer is not None
        with world.database.reading() as session:
            texts = {one.position: one.text for one in session.get_one(Task, row.task_id).responses}
        by_place = [one["text"] for one in shown["responses"]]
        if kind == "compare":
            assert texts[row.answer["best"]] == by_place[1]
        for key in {"ranks", "ratings"} & set(answer):
            said = {texts[position]: value for position, value in enumerate(row.answer[key])}
            assert said == dict(zip(by_place, answer[key], strict=True))
    assert any(row.order != sorted(row.order) for row in world.rows()) or responses == 1


def test_criteria_come_back_in_places_too(world: World) -> None:
    ann = world.annotator("ann", world.project(criteria=({"name": "honest"}, {"name": "kind"}, {"name": "short"})))
    for shown in ann.lease(3):
        said = {"honest": 1, "kind": None}
        assert ann.say(shown["assignment"], A_BETTER, criteria=said).status_code == 200
        assert ann.get(f"/assignments/{shown['assignment']}")["said"]["criteria"] == said


def test_a_judgement_sent_again_is_one_and_its_key_is_for_no_other(world: World) -> None:
    ann = world.annotator("ann", world.project())
    (one,) = ann.lease()
    key = str(uuid.uuid4())
    first = ann.say(one["assignment"], A_BETTER, key=key)
    assert ann.say(one["assignment"], A_BETTER, key=key.upper()).json() == first.json()
    assert ann.say(one["assignment"], {"best": 1, "strength": "clear"}, key=key).status_code == 409
    assert len(world.rows()) == 1


def test_taking_back_gives_the_task_again_and_what_was_said_stays_in_the_log(world: World) -> None:
    ann = world.annotator("ann", world.project())
    (one,) = ann.lease()
    ann.say(one["assignment"], A_BETTER)
    before = ann.get(f"/projects/{ann.project}/judging")
    assert ann.say(one["assignment"], verdict="withdrawn").json()["verdict"] == "withdrawn"
    assert ann.get(f"/assignments/{one['assignment']}")["said"] is None
    assert [task["assignment"] for task in ann.lease()] == [one["assignment"]]
    after = ann.get(f"/projects/{ann.project}/judging")
    assert (before["answered"], before["left"], after["answered"], after["left"]) == (1, 2, 0, 3)
    assert [row.verdict for row in world.rows()] == ["answer", "withdrawn"]
    assert ann.say(one["assignment"], verdict="withdrawn").status_code == 409


def test_the_history_is_ones_own_newest_first_and_corrected_by_a_row(world: World) -> None:
    number = world.project()
    ann, bob = world.annotator("ann", number), world.annotator("bob", number)
    tasks = ann.lease(3)
    ann.say(tasks[0]["assignment"], A_BETTER)
    ann.say(tasks[1]["assignment"], verdict="skip", comment="hm")
    ann.say(tasks[0]["assignment"], {"best": None, "strength": "tie"})
    lines = ann.get(f"/projects/{number}/history")["lines"]
    assert [(line["assignment"], line["said"]["verdict"]) for line in lines] == [
        (tasks[0]["assignment"], "answer"),
        (tasks[1]["assignment"], "skip"),
    ]
    assert lines[0]["said"]["answer"] == {"best": None, "strength": "tie"}
    assert lines[0]["prompt"] == tasks[0]["prompt"][0]["text"]
    assert ann.get(f"/projects/{number}/history?before={lines[0]['number']}")["lines"] == lines[1:]
    assert bob.get(f"/projects/{number}/history")["lines"] == []
    assert len(world.rows()) == 3
    with world.database.reading() as session:
        assert progress(session, find_project(session, number)).votes == 1


def test_no_text_is_made_html_while_a_transaction_is_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile one takes a while, and everybody who writes would wait for it."""
    open_now, rendered = 0, 0

    def watched(name: str) -> None:
        inner = getattr(world.database, name)

        @contextmanager
        def session() -> Iterator[Session]:
            nonlocal open_now
            open_now += 1
            with inner() as found:
                yield found
            open_now -= 1

        monkeypatch.setattr(world.database, name, session)

    def markdown(text: str) -> str:
        nonlocal rendered
        assert open_now == 0
        rendered += 1
        return text

    tasks = list(new_tasks(1, purpose="practice", expected=A_BETTER, row={"why": "so"}))
    number = world.project(tasks=tasks, guidelines="*Read.*")
    ann = world.annotator("ann", number)
    watched("reading")
    watched("writing")
    monkeypatch.setattr(shown_module, "markdown", markdown)
    monkeypatch.setattr(render, "markdown", markdown)
    (one,) = ann.lease()
    assert rendered == 3
    assert ann.say(one["assignment"], A_BETTER).json()["practice"]["why"] == "so"
    ann.get(f"/assignments/{one['assignment']}")
    assert rendered == 7
    assert ann.get(f"/projects/{number}/judging")["way"]["guidelines"] == "*Read.*"
    assert ann.client.get(f"/projects/{number}/judge").status_code == 200
    assert rendered == 9


def test_a_replacement_that_is_the_response_itself_is_none(world: World) -> None:
    tasks = [NewTask("p", [NewResponse("one\r\ntwo\rthree")])]
    ann = world.annotator("ann", world.project("review", tasks=tasks))
    (one,) = ann.lease()
    for edited in ("one\ntwo\nthree", "one\r\ntwo\r\nthree", "one\ntwo\nfour"):
        key = str(uuid.uuid4())
        for _ in range(2):  # sent again, it is the same
            assert ann.say(one["assignment"], {"accepted": False, "edited": edited}, key=key).status_code == 200
    replacements = [None, None, "one\ntwo\nfour"]
    assert [row.answer for row in world.rows()] == [{"accepted": False, "edited": text} for text in replacements]


def test_another_persons_assignment_is_not_there(world: World) -> None:
    number = world.project()
    ann, bob = world.annotator("ann", number), world.annotator("bob", number)
    (one,) = ann.lease()
    path = f"/api/v1/assignments/{one['assignment']}"
    answers = [
        bob.say(one["assignment"], A_BETTER),
        bob.client.get(path),
        bob.client.get(f"{path}/differences"),
        bob.client.post(f"{path}/renew"),
        bob.client.post(f"{path}/return"),
        bob.client.get(f"/api/v1/assignments/{'0' * 32}"),
    ]
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(404, "not_found")] * 6
    assert world.rows() == []
    assert [task["assignment"] for task in ann.lease()] == [one["assignment"]]


def test_who_only_looks_may_not_judge_and_an_admin_may(world: World) -> None:
    number = world.project()
    vic, root = world.annotator("vic", number), world.annotator("root", number)
    leases = f"/api/v1/projects/{number}/leases"
    assert vic.client.post(leases, json={"count": 1}).status_code == 403
    assert vic.client.get(f"/api/v1/projects/{number}/history").status_code == 403
    assert vic.client.put(f"/api/v1/judgements/{uuid.uuid4()}", json={}).status_code == 403
    assert len(root.lease()) == 1
    nobody = TestClient(world.app, base_url="http://localhost")
    assert nobody.post(leases, json={"count": 1}).status_code == 401


def test_a_cookie_alone_judges_nothing(world: World) -> None:
    number = world.project()
    browser = signed_in(world.app, "ann")
    leases = f"/api/v1/projects/{number}/leases"
    assert browser.post(leases, json={"count": 1}).status_code == 403
    assert browser.post(leases, json={"count": 1}, headers={"X-CSRF-Token": csrf_of(browser)}).status_code == 200


def test_a_task_given_back_or_lapsed_goes_to_another_and_can_be_held_on_to(world: World) -> None:
    number = world.project(tasks=list(new_tasks(1)))
    ann, bob = world.annotator("ann", number), world.annotator("bob", number)
    (one,) = ann.lease()
    path = f"/api/v1/assignments/{one['assignment']}"
    assert bob.lease() == []
    lapse(world)
    assert ann.client.post(f"{path}/renew").json()["seconds_left"] == pytest.approx(1800, abs=5)
    assert ann.client.post(f"{path}/return").status_code == 204
    assert ann.client.post(f"{path}/return").status_code == 204
    (taken,) = bob.lease()
    assert ann.client.post(f"{path}/renew").status_code == 410
    lapse(world)
    world.app.state.lapses._due = 0.0  # as if a second had gone by
    assert [task["assignment"] for task in ann.lease()] == [one["assignment"]]
    assert bob.client.post(f"/api/v1/assignments/{taken['assignment']}/renew").status_code == 410
    assert bob.say(taken["assignment"], A_BETTER).status_code == 200  # late, and kept
    assert bob.client.post(f"/api/v1/assignments/{taken['assignment']}/renew").status_code == 409


def lapse(world: World) -> None:
    with world.database.writing() as session:
        session.execute(update(Assignment).values(expires_at=time.time() - 1))


def test_practice_is_told_what_was_expected_and_gold_is_not(world: World) -> None:
    tasks = [
        *new_tasks(1, purpose="practice", expected={"best": 0, "strength": "clear"}, row={"why": "It is *true*."}),
        NewTask("gold", [NewResponse("g0"), NewResponse("g1")], purpose="gold", expected=A_BETTER),
        NewTask("label", [NewResponse("l0"), NewResponse("l1")]),
    ]
    ann = world.annotator("ann", world.project(tasks=tasks, gold_share=0.5))
    (practice,) = ann.lease()
    assert practice["practice"] is True
    place = [one["text"] for one in practice["responses"]].index("response 0.0")
    wrong = ann.say(practice["assignment"], {"best": 1 - place, "strength": "clear"}).json()["practice"]
    assert (wrong["agrees"], wrong["expected"]) == (False, f"{'AB'[place]} better")
    assert "<em>true</em>" in wrong["why"]
    right = ann.say(practice["assignment"], {"best": place, "strength": "slight"}).json()["practice"]
    assert right["agrees"] is True
    others = ann.lease(5)
    assert [task["practice"] for task in others] == [False] * len(others)
    for task in others:
        assert ann.say(task["assignment"], A_BETTER).json()["practice"] is None


def test_differences_are_of_the_responses_as_they_are_shown(world: World) -> None:
    texts = ["the cat sat", "the dog sat", "the cat lay"]
    ann = world.annotator("ann", world.project("rank", tasks=[NewTask("p", [NewResponse(text) for text in texts])]))
    (one,) = ann.lease()
    found = ann.get(f"/assignments/{one['assignment']}/differences")["responses"]
    shown = [response["text"] for response in one["responses"]]
    assert [html.replace("<mark>", "").replace("</mark>", "") for html in found] == shown
    for html, text in zip(found[1:], shown[1:], strict=True):
        only = [word for word in text.split() if word not in shown[0].split()]
        assert re.findall(r"\w+", " ".join(re.findall("<mark>(.*?)</mark>", html))) == only


UNSAYABLE: list[tuple[dict[str, Any], str]] = [
    ({"answer": {"best": 7, "strength": "clear"}}, "answer"),
    ({"answer": {"best": 2, "strength": "clear"}}, "answer"),
    ({"answer": "A"}, "answer"),
    ({"answer": None}, "answer"),
    ({"answer": A_BETTER, "verdict": "skip"}, "answer"),
    ({"answer": A_BETTER, "verdict": "shrug"}, "verdict"),
    ({"answer": A_BETTER, "comment": "x" * 10_001}, "comment"),
    ({"answer": A_BETTER, "comment": "a\x00b"}, "comment"),
    ({"answer": A_BETTER, "comment": "\ud800"}, "comment"),
    ({"answer": A_BETTER, "criteria": {"kind\x00": 0}}, "criteria"),
    ({"answer": A_BETTER, "duration": -1}, "duration"),
    ({"answer": A_BETTER, "more": 1}, "more"),
    ({"answer": A_BETTER, "assignment": "' OR 1=1 --"}, "assignment"),
    ({"answer": A_BETTER, "assignment": "\x00"}, "assignment"),
]


def test_what_cannot_be_said_is_refused_naming_the_field(world: World) -> None:
    ann = world.annotator("ann", world.project())
    (one,) = ann.lease()
    for body, field in UNSAYABLE:
        text = json.dumps({"assignment": one["assignment"], "verdict": "answer", **body})
        headers = {"Content-Type": "application/json"}
        answer = ann.client.put(f"/api/v1/judgements/{uuid.uuid4()}", content=text, headers=headers)
        assert answer.status_code == 422, body
        assert answer.json()["error"]["field"].startswith(field)
    assert world.rows() == []


def test_a_body_that_is_no_json_blames_no_field(world: World) -> None:
    ann = world.annotator("ann", world.project())
    headers = {"Content-Type": "application/json"}
    answer = ann.client.put(f"/api/v1/judgements/{uuid.uuid4()}", content='{"answer": nul', headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        {"code": "invalid", "message": "the request is no JSON: Expecting value, after 11 characters", "field": None},
    )


def test_a_name_that_none_can_have_is_refused_without_its_pattern(world: World) -> None:
    number = world.project()
    page = signed_in(world.app, "ann").get(f"/projects/{number}/judge?correct=17")
    assert page.status_code == 422
    assert "Correct: nothing here has such a name." in page.text
    answer = world.annotator("ann", number).client.get("/api/v1/assignments/17")
    assert answer.json()["error"]["message"] == "assignment_id: nothing here has such a name"


def test_a_closed_project_lends_nothing_and_an_unknown_one_is_not_there(world: World) -> None:
    ann = world.annotator("ann", world.project())
    (one,) = ann.lease()
    with world.database.writing() as session:
        close_project(find_project(session, ann.project), now=time.time())
    assert ann.client.post(f"/api/v1/projects/{ann.project}/leases", json={}).status_code == 410
    assert ann.say(one["assignment"], A_BETTER).status_code == 200
    assert ann.client.post("/api/v1/projects/999/leases", json={}).status_code == 404


def test_a_closed_project_is_named_to_nobody_who_never_had_a_task_of_it(world: World) -> None:
    number = world.project()
    ann, bob = world.annotator("ann", number), world.annotator("bob", number)
    ann.lease()
    with world.database.writing() as session:
        made = find_project(session, number)
        name, path = made.name, f"/api/v1/projects/{number}"
        close_project(made, now=time.time())
    assert ann.get(f"/projects/{number}/judging")["way"]["name"] == name
    answers = [
        bob.client.get(f"{path}/judging"),
        bob.client.get(f"{path}/history"),
        bob.client.post(f"{path}/leases", json={}),
        signed_in(world.app, "bob").get(f"/projects/{number}/judge"),
        signed_in(world.app, "bob").get(f"/projects/{number}/history"),
        bob.client.get("/api/v1/projects/999/judging"),
    ]
    assert [answer.status_code for answer in answers] == [410] * 5 + [404]
    assert not any(name in answer.text for answer in answers)
    assert world.annotator("root", number).get(f"/projects/{number}/judging")["way"]["name"] == name


def test_a_closed_project_stays_on_the_page_of_who_judged_in_it(world: World) -> None:
    number = world.project()
    ann = world.annotator("ann", number)
    world.annotator("bob", number).lease()
    (one,) = ann.lease()
    ann.say(one["assignment"], A_BETTER)
    history, judge = f"/projects/{number}/history", f"/projects/{number}/judge"

    def pages(name: str) -> str:
        return signed_in(world.app, name).get("/").text

    assert history not in pages("ann")
    with world.database.writing() as session:
        close_project(find_project(session, number), now=time.time())
    assert re.search(rf"<h2>Closed projects</h2>.*{history}", pages("ann"), re.DOTALL)
    assert all("Closed projects" not in pages(name) for name in ("bob", "vic"))
    said = signed_in(world.app, "ann").get(history).text
    assert ">closed</span>" in said
    assert f'{judge}"' not in said
    assert f"{judge}?correct={one['assignment']}" in said


def test_projects_with_work_come_first(world: World) -> None:
    made: list[tuple[Kind, int, float]] = [("compare", 0, 0.0), ("rank", 2, 0.0), ("rate", 0, 0.1), ("review", 1, 0.1)]
    for kind, tasks, gold_share in made:
        world.project(kind, list(new_tasks(tasks, 1 if kind == "review" else 2)), gold_share=gold_share)
    page = signed_in(world.app, "ann").get("/").text
    listed = re.findall(r'judge">(\w+) of 0</a></h3><p class="note">([^<]*)<', page)
    assert listed == [
        ("rank", "2 left for you"),
        ("review", "a few left for you"),
        ("compare", "0 left for you"),
        ("rate", "0 left for you"),
    ]


def test_pages_are_for_those_who_judge(world: World) -> None:
    number = world.project()
    ann = world.annotator("ann", number)
    browser = signed_in(world.app, "ann")
    assert f"/projects/{number}/judge" in browser.get("/").text
    for one in ann.lease(2):
        ann.say(one["assignment"], A_BETTER, comment="<script>alert(1)</script>")
    page = browser.get(f"/projects/{number}/history").text
    assert page.count("A better") == 2
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page
    assert browser.get(f"/projects/{number}/judge").status_code == 200
    looker = signed_in(world.app, "vic")
    assert f"/projects/{number}/judge" not in looker.get("/").text
    assert looker.get(f"/projects/{number}/judge").status_code == 403
