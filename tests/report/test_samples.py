"""Before and after, chosen by a rule and shown whole."""

from __future__ import annotations

from pathlib import Path

from keel.report import samples
from keel.runs.read import read_run
from tests.report.support import make_run, write_lines


def test_samples_show_a_prompt_once_for_all_runs(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / "a", "polite")),
        read_run(make_run(tmp_path / "b", "terse", policy_text="sew it .")),
    ]
    first = samples.samples(runs)[0]
    assert first.prompt == "question 0"
    assert [(answer.label, answer.run, answer.text) for answer in first.answers] == [
        ("before", None, "plain 0"),
        ("after: polite", 0, "you are welcome ."),
        ("after: terse", 1, "sew it ."),
    ]
    assert first.answers[0].note == "score −0.50"
    assert first.answers[1].note == "score 1.50, utility 2.00, KL 2.25"


def test_responses_before_stand_before_those_after(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", "polite"), make_run(tmp_path / "b", "terse")
    write_lines(
        second / "evaluate" / "samples.jsonl",
        [{"iteration": 0, "prompt": "question 0", "policy": "x", "reference": "other"}],
    )
    answers = samples.samples([read_run(first), read_run(second)])[0].answers
    assert [answer.text for answer in answers] == ["plain 0", "other", "you are welcome .", "x"]


def test_samples_keep_the_order_of_the_data(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert [sample.prompt for sample in samples.samples([run])] == [f"question {p}" for p in range(6)]
    assert "in the order of its data" in samples.rule([run])


def test_samples_before_the_evaluation_are_those_of_ppo(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft", "ppo"), finished=("sft",)))
    first = samples.samples([run])[0]
    assert [answer.text for answer in first.answers] == ["answer 0 at 0", "answer 0 at 70"]
    assert "prompts that PPO holds out" in samples.rule([run])


def test_times_are_spread_from_the_first_to_the_last(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    found = samples.over_time(run, prompts=2, times=3)
    assert [prompt for prompt, _ in found] == ["prompt 0", "prompt 1"]
    assert [row["iteration"] for row in found[0][1]] == [0, 40, 70]  # of eight, the first, the fifth and the last


def test_the_first_comparison_is_shown_as_it_was_judged(tmp_path: Path) -> None:
    assert samples.first_comparisons([read_run(make_run(tmp_path / "none"))]) == []
    run = make_run(tmp_path / "run")
    rows = [{"iteration": 1, "prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(2)]
    write_lines(run / "collect" / "samples.jsonl", rows)
    (found,) = samples.first_comparisons([read_run(run)])
    assert found.prompt == "p0"
    assert [(answer.label, answer.text) for answer in found.answers] == [("preferred", "yes 0"), ("rejected", "no 0")]


def test_the_first_comparison_of_people_is_shown_once_they_have_judged(tmp_path: Path) -> None:
    """Their samples hold what was drawn; which response was preferred stands in what the stage hands on."""
    run = make_run(tmp_path / "run")
    shown = {"iteration": 1, "prompt": "p0", "prompt_number": 0, "responses": ["b", "a"], "ended": [True, True]}
    write_lines(run / "collect" / "samples.jsonl", [shown])
    assert samples.first_comparisons([read_run(run)]) == []
    (run / "collect" / "comparisons").mkdir()
    judged = [{"prompt": "p0", "chosen": "a", "rejected": "b", "annotator": "Dora"}]
    write_lines(run / "collect" / "comparisons" / "comparisons.jsonl", judged)
    (found,) = samples.first_comparisons([read_run(run)])
    assert [(answer.label, answer.text) for answer in found.answers] == [("preferred", "a"), ("rejected", "b")]
