from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from keel.feedback.watch import runs as module
from keel.runs.metrics import MetricsLog
from tests.feedback.watch.support import begin_run, begin_stage, client_of, log


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is a look."""
    monkeypatch.setattr(module, "_EVERY", 0.0)


def series(client: TestClient, **asked: Any) -> dict[str, Any]:
    answer = client.get("/api/watch/runs/a/stages/ppo/series", params={"key": "objective/scores"} | asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_where_runs_stand(tmp_path: Path) -> None:
    log(begin_stage(begin_run(tmp_path / "a")), range(1, 4))
    client = client_of(tmp_path / "a")
    (run,) = client.get("/api/watch/runs").json()
    assert run == client.get("/api/watch/runs/a").json()
    assert (run["run"], run["state"]) == ("a", "running")
    ppo = run["stages"]["ppo"]
    assert (ppo["state"], ppo["steps"], ppo["planned"], ppo["lines"]) == ("running", 3, 100, 3)


def test_new_points_join_the_old_ones(tmp_path: Path) -> None:
    ppo = begin_stage(begin_run(tmp_path / "a"))
    log(ppo, range(1, 4))
    client = client_of(tmp_path / "a")
    first = series(client)
    assert first["whole"]
    assert first["series"] == [{"key": "objective/scores", "x": [1, 2, 3], "y": [0.1, 0.2, 0.3]}]
    log(ppo, [4], **{"objective/scores": math.nan})
    log(ppo, [5])
    cursor = {"after": first["until"], "generation": first["generation"]}
    more = series(client, **cursor)
    assert not more["whole"]
    assert more["series"] == [{"key": "objective/scores", "x": [4, 5], "y": [None, 0.5]}]
    assert series(client, after=more["until"], generation=more["generation"])["series"][0]["x"] == []
    log(ppo, range(6, 200))
    assert series(client, points=50, **cursor)["whole"]  # more is new than was asked for
    MetricsLog(ppo / "metrics.jsonl").truncate_after(2)
    cut = series(client, **cursor)
    assert cut["whole"]
    assert cut["series"][0]["x"] == [1, 2]


def test_a_long_curve_is_thinned_and_a_window_of_it_is_not(tmp_path: Path) -> None:
    ppo = begin_stage(begin_run(tmp_path / "a"))
    rows = "".join(f'{{"iteration": {n}, "objective/scores": {math.sin(n / 100)}}}\n' for n in range(20_000))
    (ppo / "metrics.jsonl").write_text(rows, encoding="utf-8")
    client = client_of(tmp_path / "a")
    (curve,) = series(client, points=200)["series"]
    assert 100 < len(curve["x"]) <= 200
    assert (curve["x"][0], curve["x"][-1]) == (0, 19_999)
    assert max(curve["y"]) == pytest.approx(1, abs=1e-4)
    (window,) = series(client, points=200, low=500, high=600)["series"]
    assert window["x"] == list(range(499, 602))  # and the next beyond each end, for lines to reach it
    assert window["y"][8] == pytest.approx(math.sin(5.07), abs=1e-5)


def test_what_is_not_there_and_what_makes_no_sense_has_one_shape(tmp_path: Path) -> None:
    log(begin_stage(begin_run(tmp_path / "a")), [1])
    client = client_of(tmp_path / "a")
    for path, status in (
        ("/api/watch/runs/b", 404),
        ("/api/watch/runs/..%2Fa", 404),
        ("/api/watch/runs/a/stages/sft/series?key=x", 404),
        ("/api/watch/runs/a/stages/..%2F..%2Fa%2Fppo/series?key=x", 404),
        ("/api/watch/runs/a/stages/ppo/series", 422),
        ("/api/watch/runs/a/stages/ppo/series?key=x&points=4", 422),
        ("/api/watch/runs/a/stages/ppo/series?key=x&after=soon", 422),
    ):
        answer = client.get(path)
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"code", "message", "field"}
    assert series(client, key="no/such/metric")["series"] == []


def test_every_path_is_described(tmp_path: Path) -> None:
    begin_run(tmp_path / "a")
    found = client_of(tmp_path / "a").get("/api/openapi.json").json()
    assert set(found["paths"]) == {
        "/api/watch/runs",
        "/api/watch/runs/{run_id}",
        "/api/watch/runs/{run_id}/stages/{stage}/series",
        "/api/watch/events",
    }
