from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keel.feedback.watch import runs
from keel.feedback.watch.status import RunStatus, of_run
from keel.instruments.alarms import alarms
from keel.report.concerns import concerns
from keel.runs.files import write_json
from keel.runs.read import read_run
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


def progress(stage: Path, of: str, done: int, total: int, seconds_left: float | None = None) -> None:
    write_json(stage / "progress.json", {"of": of, "done": done, "total": total, "seconds_left": seconds_left})


@pytest.mark.parametrize(("how", "sentence"), [("failed", "the disk is full"), ("left", "left after step 3, as asked")])
def test_a_run_says_what_ended_it_early(tmp_path: Path, how: str, sentence: str) -> None:
    run = begin_run(tmp_path / "a", {"sft": {}, "ppo": {"iterations": 20}})
    sft = begin_stage(run, "sft")
    log(sft, [1, 2, 3], **{"sft/loss": 2.5})
    progress(sft, "sft", 3, 12)
    write_json(run / "ended.json", {"stage": "sft", "how": how, "sentence": sentence, "time": "2030-01-02"})
    found = status(run)
    assert (found.state, states(found)) == (how, {"sft": how, "ppo": "waiting"})
    assert found.current is not None
    assert (found.current.name, found.current.steps, found.current.planned, found.current.eta) == ("sft", 3, 12, None)
    assert found.ending is not None
    assert (found.ending.stage, found.ending.how, found.ending.sentence) == ("sft", how, sentence)
    write_json(sft / "done.json", {})  # as where a callback fails that is told of the stage's end
    found = status(run)
    assert (found.state, states(found)) == (how, {"sft": "finished", "ppo": "waiting"})
    assert found.ending is not None
    write_json(begin_stage(run) / "done.json", {})
    found = status(run)
    assert (found.state, found.ending) == ("finished", None)


def test_what_ended_a_run_does_not_name_the_stage_that_is_named_beside_it(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a")
    for said, told in (("ppo: nothing ended: raise it", "nothing ended: raise it"), ("reward: gone", "reward: gone")):
        write_json(run / "ended.json", {"stage": "ppo", "how": "failed", "sentence": said})
        ending = status(run).ending
        assert ending is not None
        assert (ending.stage, ending.sentence) == ("ppo", told)


def test_a_run_that_failed_before_a_stage_began_says_so(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a", {"sft": {}, "ppo": {"iterations": 20}})
    write_json(begin_stage(run, "sft") / "done.json", {})
    write_json(run / "ended.json", {"stage": "ppo", "how": "failed", "sentence": "there is no data.jsonl"})
    found = status(run)
    assert (found.state, states(found)) == ("failed", {"sft": "finished", "ppo": "failed"})
    assert found.current is not None
    assert found.current.name == "ppo"


@pytest.mark.parametrize("value", [{}, {"stage": "ppo", "how": "gone", "sentence": "x"}, {"stage": [], "how": {}}])
def test_an_ending_that_says_nothing_is_none(tmp_path: Path, value: dict[str, Any]) -> None:
    run = begin_run(tmp_path / "a")
    begin_stage(run)
    write_json(run / "ended.json", value)
    assert (status(run).state, status(run).ending) == ("running", None)


HOLDER = """
import sys, pathlib
from keel.runs.run import Run
with Run.open(pathlib.Path(sys.argv[1]), "held", console=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not say who holds what")
def test_a_run_that_a_process_holds_is_running(tmp_path: Path) -> None:
    """However long it has written nothing, and whatever ended it before; killed, it is quiet."""
    run = begin_run(tmp_path / "a", {"collect": {}})
    begin_stage(run, "collect")
    write_json(run / "ended.json", {"stage": "collect", "how": "failed", "sentence": "the disk is full"})
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        age(run, 10_000)
        found = status(run)
        assert (found.state, states(found), found.ending) == ("running", {"collect": "running"}, None)
        holder.kill()
        holder.wait()
        assert status(run).state == "failed"
        (run / "ended.json").unlink()
        age(run, 10_000)
        assert status(run).state == "quiet"


def test_a_run_that_fails_while_it_is_looked_at_is_not_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended it is written before nobody holds it any more."""
    run = begin_run(tmp_path / "a", {"collect": {}})
    begin_stage(run, "collect")
    age(run, 10_000)

    def fails(lock: Path) -> bool:
        write_json(run / "ended.json", {"stage": "collect", "how": "failed", "sentence": "the disk is full"})
        return False

    monkeypatch.setattr(runs, "is_held", fails)
    (run / ".lock").touch()
    assert status(run).state == "failed"


def test_how_long_the_rest_takes(tmp_path: Path) -> None:
    """By the last steps, of 2 seconds, or by what a stage that times none says itself, less what went by since."""
    run = begin_run(tmp_path / "a", {"collect": {}, "reward": {}})
    collect, reward = begin_stage(run, "collect"), begin_stage(run, "reward")
    log(reward, [1, 2, 3, 4], **{"reward/loss": 0.5, "time/step_seconds": 2.0})
    progress(reward, "reward", 3, 10, 1e9)
    progress(collect, "people", 3, 40, 500.0)
    age(collect, 100)
    people, training = status(run).stages
    assert (people.steps, people.planned, people.unit, people.share) == (3, 40, "pairs judged", 0.075)
    assert people.eta == pytest.approx(400, abs=5)
    assert (training.steps, training.planned, training.unit) == (4, 10, "steps")
    assert training.eta == pytest.approx(6 * 2.0)
    age(collect, 600)
    assert status(run).stages[0].eta is None
    progress(collect, "collect", 1, 3)
    assert status(run).stages[0].unit == "rounds of prompts"


@pytest.mark.parametrize("value", [None, "x", -1, 1e300, [], {}, True])
def test_progress_of_any_kind_is_a_status(tmp_path: Path, value: Any) -> None:
    run = begin_run(tmp_path / "a", {"sft": {}, "collect": {}})
    for name in ("sft", "collect"):
        write_json(
            begin_stage(run, name) / "progress.json", dict.fromkeys(("of", "done", "total", "seconds_left"), value)
        )
    log(run / "sft", [1], **{"time/step_seconds": 1.0})
    for stage in status(run).stages:
        assert stage.eta is None
        assert stage.share is None or 0 <= stage.share <= 1


def test_a_stage_that_is_linked_from_elsewhere_says_so(tmp_path: Path) -> None:
    old = begin_stage(begin_run(tmp_path / "old"), "sft")
    run = begin_run(tmp_path / "new")
    (run / "sft").symlink_to(old)
    assert states(status(run)) == {"sft": "elsewhere", "ppo": "waiting"}


def test_the_numbers_of_an_evaluation_and_of_comparisons(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a", {"evaluate": {}, "collect": {}})
    say(begin_stage(run, "collect"), 1, {"chosen": "a"}, {"chosen": "b"})
    assert status(run).numbers == {"pairs": "2"}
    write_json(begin_stage(run, "evaluate") / "done.json", {"policy": {"score": 1.5, "utility": None}, "kl": 2})
    assert status(run).numbers == {"pairs": "2", "score": "1.50", "KL": "2.00"}


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
    said = f"{alarm.latest[0].upper()}{alarm.latest[1:]}."
    assert (warning.stage, warning.sentence, warning.grave) == ("ppo", said, True)


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
        "A number was not finite in step-7: faults/step-7 holds what is needed to look closer.",
        "It ended early: the KL budget is spent.",
        "2 minibatches were left out, with numbers that were not finite.",
        "The KL estimate was impossibly negative in 1 iteration: an error.",
    ]


def leashless_run(path: Path, iterations: int) -> Path:
    """So much of 60 iterations that leave the reference, never end, and are worth less at each evaluation."""
    kl = {"coef": 0.05, "target": 6, "budget": None}
    run = begin_run(path, {"collect": {}, "reward": {}, "ppo": {"iterations": 60, "kl": kl}})
    rated = {"accuracy_interval": [0.48, 0.84], "longer_wins": 0.5}
    write_json(begin_stage(run, "reward") / "done.json", rated)
    ppo = begin_stage(run)
    for at in range(1, iterations + 1):
        held_out = {"eval/scores": 1.0, "eval/kl": at + 3.0, "eval/objective": -at / 10} if at % 5 == 0 else {}
        log(ppo, [at], **{"objective/kl": at + 1.0, "objective/ended": 0.0, **held_out})
    return run


LEASHLESS = [
    ("reward", "It may be no better than a coin: right in 48–84% of held-out pairs.", True),
    ("ppo", "The objective, score − β·KL, lies below its start: −0.50 → −6.00.", True),
    ("ppo", "The KL is 63.00 nats a response, past its target of 6.", True),
    ("ppo", "Only 0% of the responses end by themselves: raise max_new_tokens.", False),
]


def test_what_the_report_warns_of_is_told(tmp_path: Path) -> None:
    run = leashless_run(tmp_path / "a", iterations=60)
    write_json(run / "ppo" / "done.json", {"model_of_iteration": 60, "stopped": None})
    told = [(one.stage, one.sentence, one.grave) for one in status(run).warnings]
    assert told == LEASHLESS
    assert told == [(one.stage, one.sentence, one.grave) for one in concerns(read_run(run))]


def test_a_run_at_work_is_told_what_matters_before_its_end(tmp_path: Path) -> None:
    """The KL at once; what any run may show at its start from a quarter of it on."""
    begun, further = leashless_run(tmp_path / "a", iterations=14), leashless_run(tmp_path / "b", iterations=15)
    assert [one.sentence for one in status(begun).warnings[1:]] == [
        "The KL is 13.00 nats a response, past its target of 6."
    ]
    assert [one.sentence for one in status(further).warnings[1:]] == [
        "The objective, score − β·KL, lies below its start: −0.50 → −1.50.",
        "The KL is 18.00 nats a response, past its target of 6.",
        "Only 0% of the responses end by themselves: raise max_new_tokens.",
    ]
    for run in (begun, further):
        assert list(status(run).warnings) == concerns(read_run(run))


def test_concerns_are_found_anew_when_there_is_more(tmp_path: Path) -> None:
    path = leashless_run(tmp_path / "a", iterations=40)
    run = live(path)
    assert len(of_run(run).warnings) == 4
    log(path / "ppo", range(41, 59), **{"objective/ended": 1.0, "eval/kl": 2.0, "eval/objective": 3.0})
    run.due = 0.0
    run.refresh(AT_LEISURE)
    assert [one.stage for one in of_run(run).warnings] == ["reward"]
    write_json(path / "reward" / "done.json", {"accuracy_interval": "broken", "commonest_level": 10**400})
    run.due = 0.0
    run.refresh(AT_LEISURE)
    assert of_run(run).warnings == ()
