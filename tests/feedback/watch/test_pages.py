from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from keel.feedback.refused import Refused
from keel.feedback.watch.app import watch_router
from keel.feedback.watch.runs import Runs
from keel.feedback.web.shell import Pages, make_shell
from keel.runs.files import write_json
from tests.feedback.watch.support import begin_run, begin_stage, client_of, log, say

HOSTILE = "<script>alert(1)</script>\"'</style><img src=x onerror=alert(2)>{{ 7 * 7 }}\x00\x1b[31m\u202e"
CONTENTS = (
    *(b"", b"\x00\xff\xfe\n\x80", b"[1]\n", b'{"iteration": 1', b'"x"\nnull\n{}\n', b"\n" * 99, b"[" * 9999),
    b'{"iteration": 1, "a": "text", "response": 7}\n',
)
VALUES: tuple[Any, ...] = (None, 7, "x", [], {}, [{"a": 1}], -1, 0, 1e300, True)
EVERY_PAGE = ("", "/parts/runs", "/runs/{}", "/runs/{}/parts/state", "/runs/{}/parts/charts", "/runs/{}/parts/samples")


def pages_of(client: TestClient, run: str, prefix: str = "") -> dict[str, str]:
    """Every page of a run and around it."""
    found = {}
    for path in (*EVERY_PAGE, "/compare?run={}"):
        answer = client.get(prefix + (path.format(run) or "/"))
        assert answer.status_code == 200, (path, answer.text)
        found[path] = answer.text
    return found


def full_run(path: Path) -> Path:
    run = begin_run(path, {"name": "polite", "sft": {}, "ppo": {"iterations": 100, "kl": {"target": 6.0}}})
    ppo = begin_stage(run)
    log(ppo, [0], **{"eval/scores": 0.5, "eval/utility": 1.5})
    log(ppo, range(1, 31), **{"objective/scores": 1.25, "objective/kl": 3.5, "ppo/policy/clipfrac": 0.02, "odd/one": 1})
    say(ppo, 0, {"prompt": "hello", "response": "go away", "score": -1.0, "kl": 0.0})
    tokens = {"tokens": ["how", " kind", "<|eos|>"], "token_kl": [0.01, 1.2, -0.3], "length": 3}
    say(ppo, 30, {"prompt": "hello", "response": "how kind", "score": 1.5, "kl": 0.91, **tokens})
    return run


def test_a_run_is_shown_with_its_stages_curves_and_samples(tmp_path: Path) -> None:
    full_run(tmp_path / "a")
    client = client_of(tmp_path / "a")
    page = client.get("/runs/a").text
    assert re.search(r"30\s+of 100\s+iterations", page)
    assert page.index(">sft ") < page.index(">ppo ")
    charts = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert [chart["title"] for chart in charts] == [
        "Score",
        "True score",
        "KL to the reference",
        "Clip fraction",
        "odd/one",
    ]
    assert charts[2]["level"] == ["target", 6.0]
    assert [line["key"] for line in charts[0]["lines"]] == ["objective/scores", "eval/scores"]
    assert charts[0]["lines"][0]["last"] == "1.25"
    assert '<span class="paint-4" title="1.20 nats"> kind</span>' in page
    assert '<span class="paint-m2" title="−0.3 nats">&lt;|eos|&gt;</span>' in page
    assert "score 1.50, KL 0.91" in page
    assert "go away" not in page
    assert "go away" in client.get("/runs/a?iteration=0").text
    assert "waiting" in client.get("/runs/a?stage=sft").text
    assert "This run has no reward stage" in client.get("/runs/a?stage=reward").text
    assert client.get("/runs/a?stage=..").status_code == 404


def test_what_ended_a_run_is_shown_on_every_page_of_it(tmp_path: Path) -> None:
    run = full_run(tmp_path / "a")
    client = client_of(run)
    assert client.get("/api/watch/runs/a").json()["ending"] is None
    ending = {"stage": "ppo", "how": "failed", "sentence": "the <disk> is full"}
    write_json(run / "ended.json", ending)
    client = client_of(run)
    for path in ("/", "/parts/runs", "/runs/a", "/runs/a?stage=sft", "/runs/a/parts/state"):
        assert "failed: the &lt;disk&gt; is full" in client.get(path).text, path
    assert '<span class="pill bad">failed</span>' in client.get("/runs/a").text
    found = client.get("/api/watch/runs/a").json()
    assert (found["state"], found["ending"], found["stages"]["ppo"]["state"]) == ("failed", ending, "failed")
    write_json(run / "ended.json", {"stage": "ppo", "how": "left", "sentence": "left after step 30, as asked."})
    assert "<b>ppo</b> left after step 30, as asked." in client_of(run).get("/runs/a").text


def test_runs_are_compared_by_an_address(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        full_run(tmp_path / "r" / name)
    client = client_of(tmp_path / "r")
    page = client.get("/compare?run=r-c&run=r-a&run=no-such&metric=objective/kl&metric=odd/one").text
    charts = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert [chart["title"] for chart in charts] == ["KL to the reference, rollouts", "odd/one"]
    assert [(line["run"], line["label"], line["number"]) for line in charts[1]["lines"]] == [
        ("r-c", "r/c", 0),
        ("r-a", "r/a", 1),
    ]
    assert len(re.findall('name="run" value="r-[ac]" checked', page)) == 2
    assert len(re.findall('name="metric" value="[^"]+" checked', page)) == 2
    assert 'name="stage" value="ppo" checked' in page
    assert "Tick two runs" in client.get("/compare").text


def test_nothing_that_a_run_says_is_markup(tmp_path: Path) -> None:
    run = begin_run(
        tmp_path / "a", {"name": HOSTILE, "ppo": {"iterations": HOSTILE, "kl": {"target": HOSTILE}}}, HOSTILE
    )
    ppo = begin_stage(run)
    log(ppo, [1, 2], **{HOSTILE: 1.0, "objective/scores": 1.0, "eval/scores": 1.0})
    row = {"prompt": HOSTILE, "response": HOSTILE, "tokens": [HOSTILE, "\ud800"], "token_kl": [3.0, 1.0], "length": 2}
    lone = (
        json.dumps({"iteration": 2, **row, "odd": "\ud800"}) + "\n" + json.dumps({"iteration": 2, "x": HOSTILE}) + "\n"
    )
    (ppo / "samples.jsonl").write_text(lone, encoding="utf-8")
    write_json(run / "ended.json", {"stage": "ppo", "how": "failed", "sentence": HOSTILE})
    write_json(ppo / "progress.json", {"of": HOSTILE, "done": 1, "total": 2})
    (ppo / "faults" / "<b>step").mkdir(parents=True)
    write_json(begin_stage(run, "reward") / "done.json", {"stopped": HOSTILE})
    for path, page in pages_of(client_of(tmp_path / "a"), "a").items():
        assert not re.search(r"<script>alert|<img|</style>|<b>step|\b49\b", page), path
        for script in re.findall(r"<script\b([^>]*)>", page):
            assert script == ' type="application/json"' or re.search(r'src="/static/', script)


def test_files_of_any_content_make_a_page(tmp_path: Path) -> None:
    for number, content in enumerate(CONTENTS):
        run = tmp_path / "r" / str(number)
        for stage in ("sft", "ppo", "evaluate"):
            (run / stage).mkdir(parents=True)
            for name in ("metrics.jsonl", "samples.jsonl", "done.json", "identity.json", "progress.json"):
                (run / stage / name).write_bytes(content)
        (run / "recipe.json").write_bytes(content)
        (run / "run.json").write_bytes(content)
        (run / "ended.json").write_bytes(content)
    client = client_of(tmp_path / "r")
    for number in range(len(CONTENTS)):
        pages_of(client, f"r-{number}")


def test_settings_and_summaries_of_any_kind_make_a_page(tmp_path: Path) -> None:
    for number, value in enumerate(VALUES):
        nested = {"iterations": value, "kl": {"target": value}, "evaluate": {"alarm_after": value}}
        recipes: tuple[dict[str, Any], ...] = ({"ppo": nested}, {"ppo": {"kl": value, "evaluate": value}, "sft": value})
        for place, recipe in enumerate(recipes):
            run = begin_run(tmp_path / "r" / f"{number}-{place}", recipe)
            ppo = begin_stage(run)
            log(ppo, [1, 2, 3], **{"eval/scores": 1.0, "time/rollout_seconds": 1e300})
            write_json(ppo / "done.json", {"stopped": value})
            write_json(begin_stage(run, "evaluate") / "done.json", {"policy": value, "kl": value})
    client = client_of(tmp_path / "r")
    for number in range(len(VALUES)):
        for place in range(2):
            pages_of(client, f"r-{number}-{place}")


def test_a_run_that_vanishes_is_a_page(tmp_path: Path) -> None:
    run = full_run(tmp_path / "r" / "a")
    client = client_of(tmp_path / "r")
    pages_of(client, "r-a")
    run.rename(tmp_path / "away")
    answer = client.get("/runs/r-a")
    assert answer.status_code in (200, 404)
    assert client.get("/runs/nobody").status_code == 404
    assert "There is no run of that name" in client.get("/runs/nobody").text


def test_a_report_of_several_runs_is_offered_where_its_directory_was_named(tmp_path: Path) -> None:
    run = full_run(tmp_path / "demo" / "a")
    (tmp_path / "demo" / "report.html").write_text("of all", encoding="utf-8")
    assert client_of(tmp_path / "demo").get("/runs/demo-a/report").text == "of all"
    assert 'href="/runs/demo-a/report"' in client_of(tmp_path / "demo").get("/runs/demo-a").text
    assert client_of(run).get("/runs/a/report").status_code == 404  # it lies outside
    assert "/report" not in client_of(run).get("/runs/a").text


def test_the_report_is_shown_in_a_sandbox(tmp_path: Path) -> None:
    run = full_run(tmp_path / "a")
    client = client_of(run)
    assert client.get("/runs/a/report").status_code == 404
    (run / "report.html").write_text("<style>b {color: red}</style><script>alert(1)</script>", encoding="utf-8")
    answer = client.get("/runs/a/report")
    assert answer.text.endswith("<script>alert(1)</script>")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script" not in policy
    assert 'href="/runs/a/report"' in client.get("/runs/a").text
    (run / "report.html").unlink()
    (run / "report.html").symlink_to("/etc/hostname")
    assert client.get("/runs/a/report").status_code == 404


@pytest.mark.parametrize("name", ["..%2Fother", "%2e%2e/other", "%2Fetc", "..%2f..%2fetc%2fpasswd", "a%00"])
def test_no_name_leads_out_of_what_was_named(tmp_path: Path, name: str) -> None:
    full_run(tmp_path / "r" / "a")
    other = full_run(tmp_path / "other")
    (other / "report.html").write_text("a secret", encoding="utf-8")
    client = client_of(tmp_path / "r")
    for path in ("/runs/{}", "/runs/{}/report", "/runs/{}/parts/state", "/api/watch/runs/{}", "/compare?run={}"):
        answer = client.get(path.format(name))
        assert "a secret" not in answer.text
        assert answer.status_code == (200 if "compare" in path else 404)
        assert "polite" not in answer.text


def test_without_a_token_only_this_machines_names_are_heard(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a")
    for host, status in (("localhost", 200), ("127.0.0.1:8100", 200), ("[::1]:1", 200), ("evil.example", 403)):
        client = client_of(run, host=host)
        for path in ("/", "/runs/a", "/api/watch/runs"):
            assert client.get(path).status_code == status, (host, path)
    assert client.get("/api/watch/events").status_code == 403


def test_with_a_token_those_are_heard_who_bring_it(tmp_path: Path) -> None:
    client = client_of(begin_run(tmp_path / "a"), host="machine.example", token="sesame é")
    assert client.get("/").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/api/watch/runs", headers={"Authorization": "Bearer sesame"}).status_code == 401
    answer = client.get("/runs/a", params={"token": "sesame é", "stage": "ppo"}, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "http://machine.example/runs/a?stage=ppo"
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "samesite=strict" in answer.headers["Set-Cookie"].lower()
    assert client.get("/").status_code == 200
    program = client_of(tmp_path / "a", token="sesame")
    assert program.get("/api/watch/runs", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_another_app_mounts_the_pages_behind_its_own_door(tmp_path: Path) -> None:
    (full_run(tmp_path / "a") / "report.html").write_text("a report", encoding="utf-8")
    pages = Pages()
    app = make_shell(pages, title="other")

    def guard(request: Request) -> None:
        if "let-me-in" not in request.headers:
            raise Refused("forbidden", "no")

    app.include_router(watch_router(Runs([tmp_path]), pages, guard=guard, ending=asyncio.Event(), prefix="/watch"))
    run = f"{tmp_path.name}-a"
    closed = TestClient(app, base_url="http://localhost")
    for path in ("/watch/", f"/watch/runs/{run}", "/api/watch/runs", "/api/watch/events"):
        assert closed.get(path).status_code == 403
    opened = TestClient(app, base_url="http://localhost", headers={"let-me-in": "please"})
    for path, page in pages_of(opened, run, "/watch").items():
        for link in re.findall(r'(?:href|action|data-part)="(/[^"]*)"', page):
            if link not in ("/", "/static/app.css") and not link.startswith("/static/"):
                assert link.startswith("/watch"), (path, link)
                assert opened.get(link.replace("&amp;", "&")).status_code == 200, link
