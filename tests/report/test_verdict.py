"""The verdict: right, and never more than the run knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keel.report.verdict import Verdict, verdict
from keel.runs.read import RunView, read_run
from tests.report.support import STAGES, evaluation, make_run, write_lines


def wins(rate: float, low: float, high: float) -> dict[str, Any]:
    return {"win_rate": rate, "win_rate_interval": [low, high]}


def run_with(path: Path, changed: dict[str, Any]) -> RunView:
    """A run whose utility rises to the end, so that nothing but its evaluation decides."""
    run = make_run(path, summaries={"evaluate": changed})
    rows = [{"iteration": at, "eval/utility": at, "eval/scores": at} for at in range(0, 71, 10)]
    write_lines(run / "ppo" / "metrics.jsonl", rows)
    return read_run(run)


@pytest.mark.parametrize(
    ("utility", "kind", "headline", "words"),
    [
        (wins(0.874, 0.841, 0.902), "good", "It worked", "in 87% of comparisons (95% interval 84–90%) by the true ut"),
        (wins(0.52, 0.49, 0.55), "even", "No clear difference", "The interval includes 50%, so it cannot be told."),
        (wins(0.5, 0.5, 0.5), "even", "No clear difference", "cannot be told"),
        (wins(0.3, 0.27, 0.33), "bad", "The reward model was gamed", "The reward model itself prefers it in 91%"),
    ],
)
def test_the_true_utility_decides(
    tmp_path: Path, utility: dict[str, Any], kind: str, headline: str, words: str
) -> None:
    found = verdict(run_with(tmp_path / "run", evaluation() | {"utility": utility}))
    assert (found.kind, found.headline) == (kind, headline)
    assert words in found.sentence
    assert "for a KL of 3.46 nats a response (91% of the score that this KL can buy)" in found.sentence


def test_worse_by_everything_is_not_called_gamed(tmp_path: Path) -> None:
    changed = evaluation() | {"utility": wins(0.3, 0.27, 0.33), "score": wins(0.4, 0.37, 0.43)}
    assert verdict(run_with(tmp_path / "run", changed)).headline == "It got worse"


def test_an_unreliable_share_is_not_claimed(tmp_path: Path) -> None:
    changed = evaluation()
    changed["frontier"]["reliable"] = False
    assert "can buy" not in verdict(run_with(tmp_path / "run", changed)).sentence


@pytest.mark.parametrize(
    ("rewards", "judges", "words"),
    [
        ([{"model": "reward"}], None, "by the reward model that it was trained on (the true utility is not known)"),
        ([{"service": ["http://judge"], "name": "judge"}], None, "by the reward service that it was trained on"),
        ([{"function": "rules:f"}], None, "by the reward function that it was trained on"),
        ([{"model": "reward"}, {"function": "rules:f"}], None, "by the rewards that it was trained on"),
        ([{"model": "reward"}], [{"model": "another"}], "by a reward that it was not trained on"),
    ],
)
def test_without_a_true_utility_the_judge_is_named(
    tmp_path: Path, rewards: list[dict[str, Any]], judges: list[dict[str, Any]] | None, words: str
) -> None:
    changed = evaluation()
    del changed["utility"]
    run = run_with(tmp_path / "run", changed)
    run.recipe["ppo"]["reward"], run.recipe["evaluate"]["reward"] = rewards, judges
    found = verdict(run)
    assert found.kind == "good"
    assert "in 91% of comparisons (95% interval 89–93%)" in found.sentence
    assert words in found.sentence


def test_a_success_with_a_grave_concern_is_qualified(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", evaluation())
    run.recipe["ppo"]["kl"]["target"] = 2.0  # and 3.456 were spent
    found = verdict(run)
    assert (found.kind, found.headline) == ("mixed", "It worked, but")
    assert found.sentence.endswith("The KL is 3.46 nats a response, past its target of 2.")


def without_ppo(path: Path, found: dict[str, Any]) -> RunView:
    run = run_with(path, found)
    del run.recipe["ppo"]
    run.recipe["direct"] = {"kind": "dpo"}
    return run


def test_a_policy_of_the_direct_stage_was_trained_on_no_reward(tmp_path: Path) -> None:
    found = evaluation()
    del found["utility"]
    assert "by a reward that it was not trained on" in verdict(without_ppo(tmp_path / "better", found)).sentence
    worse = evaluation() | {"utility": {"win_rate": 0.3, "win_rate_interval": [0.25, 0.35]}}
    assert verdict(without_ppo(tmp_path / "worse", worse)).headline == "It got worse"  # so nothing was gamed


def test_an_unfinished_run_says_where_it_stands(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=STAGES[:4], finished=STAGES[:3]))
    assert verdict(run) == Verdict("open", "Not judged yet", "The ppo stage is not finished: 70 of 70 steps so far.")


def test_a_run_without_an_evaluation_says_so(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft",)))
    for stage in STAGES[1:]:
        del run.recipe[stage]
    assert verdict(run).text == "Not judged. Its recipe has no evaluate stage."
