from __future__ import annotations

import math
from pathlib import Path

import pytest

from keel.feedback.watch.roots import Roots
from keel.feedback.watch.stage import LiveStage
from keel.feedback.watch.tail import News, Tail
from keel.runs.files import write_json
from keel.runs.metrics import MetricsLog, SamplesLog
from tests.feedback.watch.support import AT_LEISURE, begin_run, begin_stage, log, say


@pytest.fixture
def stage(tmp_path: Path) -> LiveStage:
    path = begin_stage(begin_run(tmp_path / "run"))
    return LiveStage(path, Roots([tmp_path / "run"]))


def curves(stage: LiveStage) -> dict[str, tuple[list[float], list[float]]]:
    return {key: (list(curve.xs), list(curve.ys)) for key, curve in stage.curves.items()}


def test_curves_are_what_was_logged_and_gaps_are_where_it_was_not_finite(stage: LiveStage) -> None:
    log(stage.path, [0], **{"eval/scores": 0.5})
    log(stage.path, [1], **{"objective/scores": 1.0})
    log(stage.path, [2], **{"objective/scores": math.nan, "eval/scores": 0.75})
    assert stage.refresh(AT_LEISURE)
    found = curves(stage)
    assert found["eval/scores"] == ([0, 2], [0.5, 0.75])
    assert found["objective/scores"][0] == [1, 2]
    assert math.isnan(found["objective/scores"][1][1])
    assert stage.last("objective/scores", "eval/scores") == 0.75
    assert not stage.refresh(AT_LEISURE)


def test_what_is_finished_has_its_last_line(stage: LiveStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ended while it was looked at: between a look at its lines and one at its end."""
    log(stage.path, range(1, 4))
    read = Tail.read

    def meanwhile(tail: Tail, deadline: float) -> News:
        news = read(tail, deadline)
        if tail.path.name == "metrics.jsonl":
            monkeypatch.undo()
            log(stage.path, [4])
            write_json(stage.path / "done.json", {"iterations": 4})
        return news

    monkeypatch.setattr(Tail, "read", meanwhile)
    seen = []
    for _ in range(2):
        stage.refresh(AT_LEISURE)
        seen.append((stage.finished, stage.num_rows))
    assert seen == [(False, 3), (True, 4)]


def test_a_resumed_stage_forgets_what_its_run_forgot(stage: LiveStage) -> None:
    log(stage.path, range(1, 9))
    say(stage.path, 8, {"response": "lost"})
    stage.refresh(AT_LEISURE)
    generation = stage.generation
    MetricsLog(stage.path / "metrics.jsonl").truncate_after(5)
    SamplesLog(stage.path / "samples.jsonl").truncate_after(5)
    log(stage.path, [6], **{"objective/scores": -1.0})
    stage.refresh(AT_LEISURE)
    assert stage.generation > generation
    assert curves(stage)["objective/scores"] == ([1, 2, 3, 4, 5, 6], [0.1, 0.2, 0.3, 0.4, 0.5, -1.0])
    assert stage.num_samples == len(stage.samples) == 0


def test_numbers_that_go_back_make_what_came_after_void(stage: LiveStage) -> None:
    """As if the file had been cut back and had grown again, unseen, to what it was."""
    log(stage.path, range(1, 6), **{"a": 1.0, "eval/scores": 1.0})
    stage.refresh(AT_LEISURE)
    generation = stage.generation
    log(stage.path, [3, 4], **{"b": 2.0})
    stage.refresh(AT_LEISURE)
    assert curves(stage) == {"a": ([1, 2], [1, 1]), "eval/scores": ([1, 2], [1, 1]), "b": ([3, 4], [2, 2])}
    assert stage.generation == generation + 1


def test_values_that_are_no_numbers_are_no_points(stage: LiveStage) -> None:
    rows = ['"a": "text", "b": "text"', '"a": true', '"a": [1]', '"a": 1' + "0" * 400, '"a": 1e999', '"a": 5']
    text = "".join(f'{{"iteration": {number}, {row}}}\n' for number, row in enumerate(rows))
    text += '{"iteration": "six", "a": 1}\n{"iteration": 1e999, "a": 1}\n{"a": 1}\n'
    (stage.path / "metrics.jsonl").write_text(text, encoding="utf-8")
    stage.refresh(AT_LEISURE)
    xs, ys = curves(stage)["a"]
    assert xs == [3, 4, 5]
    assert ys[2] == 5
    assert not any(math.isfinite(y) for y in ys[:2])
    assert "b" not in stage.curves


def test_a_window_of_a_curve(stage: LiveStage) -> None:
    log(stage.path, range(1, 101), a=1.0)
    stage.refresh(AT_LEISURE)
    curve = stage.curves["a"]
    assert curve.points(1000, 10, 20)[0].tolist() == list(range(10, 21))
    assert len(curve.points(20, -math.inf, math.inf)[0]) <= 20
    assert curve.count_after(97) == 3
    assert [part.tolist() for part in curve.points(10, 200, 300)] == [[], []]


def test_the_newest_samples_are_kept(stage: LiveStage) -> None:
    for iteration in range(30):
        say(stage.path, iteration, *({"response": str(row)} for row in range(50)))
    stage.refresh(AT_LEISURE)
    assert stage.num_samples == 1500
    assert len(stage.samples) == 1000
    assert stage.samples[-1] == {"iteration": 29, "response": "49"}


def test_what_lies_outside_of_what_was_named_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    log(secret, [1], a=1.0)
    write_json(secret / "done.json", {"stopped": "a secret"})
    old = begin_run(tmp_path / "runs" / "old")
    log(begin_stage(old, "sft"), [1], a=1.0)
    new = begin_run(tmp_path / "runs" / "new")
    (new / "sft").symlink_to(old / "sft")
    (new / "reward").symlink_to(secret)
    for name in ("metrics.jsonl", "done.json"):
        (begin_stage(new) if not (new / "ppo").exists() else new / "ppo").joinpath(name).symlink_to(secret / name)
    roots = Roots([tmp_path / "runs"])
    stages = {name: LiveStage(new / name, roots) for name in ("sft", "reward", "ppo")}
    for stage in stages.values():
        stage.refresh(AT_LEISURE)
    assert {name: list(stage.curves) for name, stage in stages.items()} == {"sft": ["a"], "reward": [], "ppo": []}
    assert stages["ppo"].done.value is None
    assert [stage.readable for stage in stages.values()] == [True, False, True]
    assert not Roots([new]).holds(new / "sft")
