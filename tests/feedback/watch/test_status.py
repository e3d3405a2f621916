from __future__ import annotations

import json
from pathlib import Path

import pytest

from keel.feedback.watch.status import RunStatus, of_run, shown, spoken
from keel.instruments.alarms import alarms
from keel.runs.files import write_json
from tests.feedback.watch.support import AT_LEISURE, age, begin_run, begin_stage, lines, live, log, say


def status(path: Path) -> RunStatus:
    return of_run(live(path))


def states(found: RunStatus) -> dict[str, str]:
    return {stage.name: stage.state for stage in found.stages}


def test_a_run_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a", {"name": "a", "sft": {}, "collect": None, "ppo": {"iterations": 20}})
    found = status(run)
    assert (found.state, states(found)) == ("waiting", {"sft": "waiting", "ppo": "waiting"})
    assert found.current is not None
    assert found.current.name == "sft"
    sft = begin_stage(run, "sft")
    log(sft, range(1, 4), **{"sft/loss": 2.5, "time/step_seconds": 1.0})
    found = status(run)
    assert (found.state, states(found)) == ("running", {"sft": "running", "ppo": "waiting"})
    assert found.numbers == {"loss": "2.50"}
    write_json(sft / "done.json", {"steps": 3})
    assert status(run).state == "running"  # on its way to the next stage
    ppo = begin_stage(run)
    log(ppo, range(6), **{"objective/scores": -0.25, "time/rollout_seconds": 2.0, "time/update_seconds": 1.0})
    found = status(run)
    assert (found.state, states(found)) == ("running", {"sft": "finished", "ppo": "running"})
    assert found.current is not None
    assert (found.current.steps, found.current.planned, found.current.share) == (5, 20, 0.25)
    assert found.current.eta == pytest.approx(15 * 3.0)
    assert found.numbers == {"loss": "2.50", "score": "−0.25"}
    write_json(ppo / "done.json", {"iterations": 20})
    assert status(run).state == "finished"


def test_a_run_is_quiet_when_no_line_comes_for_long(tmp_path: Path) -> None:
    """Two minutes, or ten of its slowest steps; a quarter of an hour where it has not logged one."""
    run = begin_run(tmp_path / "a")
    ppo = begin_stage(run)
    for seconds, expected in ((800, "running"), (1000, "quiet")):
        age(run, seconds)
        assert status(run).state == expected
    log(ppo, [1], **{"time/rollout_seconds": 1.0})
    for seconds, expected in ((100, "running"), (140, "quiet")):
        age(run, seconds)
        assert status(run).state == expected
    log(ppo, [2], **{"time/rollout_seconds": 20.0, "time/evaluation_seconds": 40.0})
    for seconds, expected in ((500, "running"), (700, "quiet")):
        age(run, seconds)
        assert status(run).state == expected
    assert status(run).age == pytest.approx(700, abs=5)


def test_a_stage_that_is_linked_from_elsewhere_says_so(tmp_path: Path) -> None:
    old = begin_stage(begin_run(tmp_path / "old"), "sft")
    run = begin_run(tmp_path / "new")
    (run / "sft").symlink_to(old)
    assert states(status(run)) == {"sft": "elsewhere", "ppo": "waiting"}


def test_the_numbers_of_an_evaluation_and_of_comparisons(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a", {"evaluate": {}, "collect": {}})
    say(begin_stage(run, "collect"), 1, {"chosen": "a"}, {"chosen": "b"})
    assert status(run).numbers == {"comparisons": "2"}
    write_json(begin_stage(run, "evaluate") / "done.json", {"policy": {"score": 1.5, "utility": None}, "kl": 2})
    assert status(run).numbers == {"comparisons": "2", "score": "1.50", "KL": "2.00"}


def judged(iteration: int, utility: float, peak: int) -> str:
    values = {"eval/scores": iteration, "eval/utility": utility, "eval/utility/peak": peak}
    return json.dumps({"iteration": iteration, **values, "eval/utility/fall_error": 0.01}) + "\n"


def falling_run(path: Path, count: int, peak: int) -> Path:
    """Evaluations whose utility was highest at `peak`, by 8; returns ppo's directory."""
    ppo = begin_stage(begin_run(path))
    rows = [judged(n, 9.0 if n == peak else 1.0, peak if n >= peak else 0) for n in range(count)]
    (ppo / "metrics.jsonl").write_text("".join(rows), encoding="utf-8")
    return ppo


def test_alarms_are_those_of_the_instruments(tmp_path: Path) -> None:
    ppo = falling_run(tmp_path / "a", count=6, peak=2)
    (alarm,) = alarms(lines(ppo / "metrics.jsonl"), 2)
    assert "over-optimisation" in alarm.latest
    (warning,) = status(tmp_path / "a").warnings
    assert (warning.stage, warning.sentence, warning.grave) == ("ppo", alarm.latest, True)


def test_alarms_of_a_fork_do_not_compare_two_scales(tmp_path: Path) -> None:
    ppo = falling_run(tmp_path / "a", count=6, peak=2)
    write_json(ppo / "forked_from.json", {"measured_since": 2})
    assert status(tmp_path / "a").warnings == ()


def test_alarms_of_a_very_long_run_know_its_peak(tmp_path: Path) -> None:
    falling_run(tmp_path / "a", count=3000, peak=700)
    (warning,) = status(tmp_path / "a").warnings
    assert "peaked at iteration 700 and fell from 9.00 to 1.00" in warning.sentence


def test_alarms_are_found_anew_when_there_is_more(tmp_path: Path) -> None:
    ppo = falling_run(tmp_path / "a", count=6, peak=2)
    run = live(tmp_path / "a")
    assert of_run(run).warnings
    with (ppo / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(judged(6, 10.0, 6))
    run.due = 0.0
    run.refresh(AT_LEISURE)
    assert of_run(run).warnings == ()


def test_what_the_guards_left_is_told(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a")
    ppo = begin_stage(run)
    (ppo / "faults" / "step-7").mkdir(parents=True)
    log(ppo, [1], **{"objective/kl": -0.5, "objective/kl_standard_error": 0.01, "ppo/skipped": 2.0})
    log(ppo, [2], **{"objective/kl": -0.5, "objective/kl_standard_error": 0.2, "ppo/skipped": 2.0})
    write_json(ppo / "done.json", {"stopped": "the KL budget is spent"})
    said = [warning.sentence for warning in status(run).warnings]
    assert said == [
        "step-7: a number was not finite; faults/step-7 holds what is needed to look closer",
        "it ended early: the KL budget is spent",
        "2 minibatches were left out: not finite",
        "the KL estimate was impossibly negative in 1 of the last 2 iterations: an error",
    ]


def test_numbers_and_times_are_short() -> None:
    numbers = {0.0: "0", 12345.0: "12,345", 0.1234: "0.123", 12.0: "12", -1.5: "−1.50", 1e-7: "1e−07", 2e9: "2e+09"}
    assert {value: shown(value) for value in numbers} == numbers
    times = {5.4: "5 s", 89.0: "89 s", 600.0: "10 min", 7800.0: "2 h 10 min", 259200.0: "3 days"}
    assert {seconds: spoken(seconds) for seconds in times} == times
