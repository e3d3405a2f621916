"""What a run says of itself in words: right, and never more than it knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from keel.report import facts
from keel.runs.read import RunView, read_run
from tests.report.support import SUMMARIES, evaluation, make_run


def run_with(path: Path, **changes: Any) -> RunView:
    return read_run(make_run(path, summaries={"evaluate": evaluation() | changes}))


def wins(rate: float, low: float, high: float) -> dict[str, Any]:
    return {"win_rate": rate, "win_rate_interval": [low, high]}


@pytest.mark.parametrize(
    ("utility", "kind", "words"),
    [
        (wins(0.874, 0.841, 0.902), "good", "It worked: preferred to its reference in 87% of comparisons (84–90%)"),
        (wins(0.52, 0.49, 0.55), "even", "No clear difference"),
        (wins(0.3, 0.27, 0.33), "bad", "the reward model prefers it in 91%: it was gamed"),
    ],
)
def test_verdict_goes_by_the_true_utility(tmp_path: Path, utility: dict[str, Any], kind: str, words: str) -> None:
    found, sentence = facts.verdict(run_with(tmp_path / "run", utility=utility))
    assert found == kind
    assert words in sentence
    assert "by the true utility" in sentence


def test_verdict_without_a_true_utility_says_so(tmp_path: Path) -> None:
    changed = evaluation()
    del changed["utility"]
    kind, sentence = facts.verdict(read_run(make_run(tmp_path / "run", summaries={"evaluate": changed})))
    assert kind == "good"
    assert "91% of comparisons (89–93%) by the reward model (the true utility is not known)" in sentence


def test_verdict_of_an_unfinished_run_says_where_it_stands(tmp_path: Path) -> None:
    stages = ("sft", "collect", "reward", "ppo")
    run = read_run(make_run(tmp_path / "run", stages=stages, finished=stages[:-1]))
    assert facts.verdict(run) == ("open", "Not judged yet: ppo is not finished: 70 of 70 steps so far.")


def test_reliability_is_stated_either_way(tmp_path: Path) -> None:
    good = facts.reliability_note(run_with(tmp_path / "a"))
    assert good is not None
    assert "128 reference samples a prompt on 64 prompts" in good
    assert "1.79 instead of 1.82" in good
    assert good.endswith("reliable at this KL.")
    assert "not" not in good
    changed = evaluation()["frontier"] | {"reliable": False}
    bad = facts.reliability_note(run_with(tmp_path / "b", frontier=changed))
    assert bad is not None
    assert bad.endswith("not reliable, because the KL is beyond log n = 4.9 nats.")


def test_over_optimisation_is_noticed(tmp_path: Path) -> None:
    # The made-up utility is 2 - ((i - 40) / 40)²: 1 at the start, 2 at 40, 1.4375 at 70; the score is i / 40.
    assert facts.peak_note(read_run(make_run(tmp_path / "run"))) == (
        "Over-optimisation: the true utility peaked at iteration 40 and fell from 2.00 to 1.44, "
        "while the score rose on from 1.00 to 1.75."
    )


def test_comparison_has_a_column_a_run_and_the_reference(tmp_path: Path) -> None:
    other = evaluation()
    other["reference"]["score"] = 0.2
    other["frontier"]["reliable"] = False
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", summaries={"evaluate": other}))]
    rows = {row.label: row for row in facts.comparison(runs)}
    assert rows["score"] == facts.Row("score", "0.00 / 0.20", ("1.68", "1.68"))
    assert rows["on_point"] == facts.Row("on_point", "0.73", ("0.74", "0.74"))
    assert rows["wins by true utility"].values[0] == "87% [84, 90]"
    assert rows["KL (nats a response)"].values[0] == "3.46 ± 0.12"
    assert rows["reached of KL's worth"].values == ("91%", "91% (unreliable)")
    assert rows["reward model right"].values[0] == "81.1% [72, 88]"
    assert rows["NLL of demonstrations"] == facts.Row("NLL of demonstrations", "0.31", ("0.55", "0.55"))


def test_comparison_leaves_out_what_nobody_knows(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft", "collect", "reward"), finished=("sft", "reward")))
    assert [row.label for row in facts.comparison([run])] == ["reward model right", "… noise allows", "… longer wins"]


def test_a_linked_stage_took_no_time(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    shutil.rmtree(second / "sft")
    os.symlink(first / "sft", second / "sft")
    rows = {row.label: row.values for row in facts.timings([read_run(first), read_run(second)])}
    assert rows["sft"] == ("1 min 15 s", "reused")
    assert rows["collect"] == ("9.4 s", "9.4 s")


def test_samples_show_a_prompt_once_for_all_runs(tmp_path: Path) -> None:
    runs = [
        read_run(make_run(tmp_path / "a", "polite")),
        read_run(make_run(tmp_path / "b", "terse", policy_text="sew it .")),
    ]
    first = facts.samples(runs)[0]
    assert first.prompt == "question 0"
    assert [(answer.label, answer.run, answer.text) for answer in first.answers] == [
        ("before", None, "plain 0"),
        ("after: polite", 0, "you are welcome ."),
        ("after: terse", 1, "sew it ."),
    ]
    assert first.answers[0].note == "score −0.50"
    assert first.answers[1].note == "score 1.50, utility 2.00, KL 2.25"


def test_samples_before_the_evaluation_are_those_of_ppo(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft", "ppo"), finished=("sft",)))
    first = facts.samples([run])[0]
    assert [answer.text for answer in first.answers] == ["answer 0 at 0", "answer 0 at 70"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "a", "x")), read_run(make_run(tmp_path / "b", "x"))]
    assert facts.labels(runs) == ["x (a)", "x (b)"]


def test_a_stage_that_the_recipe_does_not_have(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft",)))
    assert facts.state(run, "sft") is None
    assert facts.state(run, "ppo") == "ppo has not begun"
    del run.recipe["collect"]
    assert facts.state(run, "collect") == "its recipe has no collect stage"


def test_support_is_in_order() -> None:
    assert set(SUMMARIES) | {"evaluate"} == {"sft", "collect", "reward", "ppo", "evaluate"}
