"""Concerns: each is raised by a run that shows it, and none by a healthy one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from keel.report.concerns import concerns, instruments, spent_kl
from keel.runs.read import RunView, read_run
from tests.report.support import SUMMARIES, evaluation, make_run, write_json, write_lines

HEALTHY = {
    "objective/kl": 3.0,
    "objective/kl_standard_error": 0.2,
    "objective/ended": 0.97,
    "ppo/policy/clipfrac": 0.1,
    "ppo/val/explained_variance": 0.6,
    "reward/reward/missing": 0.0,
}


def run_with(
    path: Path, metrics: dict[str, Any] | None = None, held_out: dict[str, list[float]] | None = None, **summaries: Any
) -> RunView:
    """Eight iterations of PPO: healthy for the first four, with `metrics` for the last four."""
    run = make_run(path, summaries=summaries)
    rows = [{"iteration": at, **HEALTHY, **((metrics or {}) if at > 4 else {})} for at in range(1, 9)]
    for key, values in (held_out or {}).items():
        for row, value in zip(rows, values, strict=False):
            row[key] = value
    write_lines(run / "ppo" / "metrics.jsonl", rows)
    return read_run(run)


def sentences(run: RunView) -> list[str]:
    return [concern.sentence for concern in concerns(run)]


def test_a_healthy_run_raises_none(tmp_path: Path) -> None:
    assert concerns(run_with(tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"objective/ended": 0.4}, "Only 40% of the responses end by themselves"),
        ({"ppo/policy/clipfrac": 0.35}, "35% of the tokens are clipped"),
        ({"objective/groups_alike": 0.75}, "In 75% of the groups all responses score alike"),
        ({"ppo/val/explained_variance": -0.2}, "its explained variance is −0.20"),
        ({"reward/reward/missing": 0.25}, "The reward “reward” had no opinion on 25.0% of the responses."),
        ({"objective/kl": -1.5}, "The KL estimate was impossibly negative in 4 iterations"),
    ],
)
def test_what_leaves_its_range_is_named(tmp_path: Path, metrics: dict[str, float], words: str) -> None:
    (sentence,) = sentences(run_with(tmp_path / "run", metrics))
    assert words in sentence


def test_a_passing_excursion_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [{"iteration": at, **HEALTHY, "ppo/policy/clipfrac": 0.5 if at < 3 else 0.05} for at in range(9)]
    write_lines(run / "ppo" / "metrics.jsonl", rows)
    assert concerns(read_run(run)) == []


def test_an_objective_below_its_start_is_grave(tmp_path: Path) -> None:
    (found,) = concerns(run_with(tmp_path / "run", held_out={"eval/objective": [0.1, 0.4, -0.3]}))
    assert found.grave
    assert found.sentence == "The objective, score − β·KL, lies below its start: 0.10 → −0.30."


@pytest.mark.parametrize(("key", "limit", "words"), [("target", 2.0, "target of 2"), ("budget", 3.4, "budget of 3.4")])
def test_a_kl_past_its_limit_is_grave(tmp_path: Path, key: str, limit: float, words: str) -> None:
    run = run_with(tmp_path / "run")
    run.recipe["ppo"]["kl"] = {key: limit}  # the evaluation measured 3.456
    (found,) = concerns(run)
    assert found.grave
    assert found.sentence.endswith(f"past its {words}.")


def test_the_kl_is_the_evaluations_else_the_last_that_was_measured(tmp_path: Path) -> None:
    assert spent_kl(read_run(make_run(tmp_path / "a"))) == 3.456
    assert spent_kl(read_run(make_run(tmp_path / "b", stages=("ppo",), finished=()))) == 3.5  # eval/kl at 70 is 70 / 20
    assert spent_kl(read_run(make_run(tmp_path / "c", stages=("sft",)))) is None


def test_over_optimisation_is_noticed(tmp_path: Path) -> None:
    # The made-up utility is 2 - ((i - 40) / 40)²: 1 at the start, 2 at 40, 1.4375 at 70; the score is i / 40.
    run = read_run(make_run(tmp_path / "run"))
    (found,) = instruments(run)
    assert found.sentence.startswith(
        "Over-optimisation: the true utility peaked at iteration 40 and fell from 2.00 to 1.44, "
        "while the score rose on from 1.00 to 1.75; "
    )
    assert [concern for concern in concerns(run) if concern.grave] == [found]


def test_a_fall_from_what_another_reward_was_worth_is_none(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    fork = {"source": "old/ppo", "step": 45, "sha256": "", "changed": [], "measured_since": 45}
    write_json(run.stages["ppo"].path / "forked_from.json", fork)
    assert instruments(run) == []
    objective = {"eval/objective": [9.0, 9.0, 1.0, 2.0]}
    fallen = run_with(tmp_path / "fallen", held_out=objective)
    assert [concern.grave for concern in concerns(fallen)] == [True]
    write_json(fallen.stages["ppo"].path / "forked_from.json", {**fork, "measured_since": 2})
    assert concerns(fallen) == []


def test_what_was_over_optimised_after_the_policy_that_was_handed_on_is_not_grave(tmp_path: Path) -> None:
    # the made-up utility is 1.94 at 50, 1.75 at 60 and 1.44 at 70: the alarm is raised at the second of them
    taken = SUMMARIES["ppo"] | {"model_of_iteration": 40}
    (found,) = instruments(read_run(make_run(tmp_path / "run", summaries={"ppo": taken})))
    assert not found.grave
    assert found.sentence.endswith("; the policy of iteration 40, before that, was handed on.")


def test_an_instrument_that_is_out_of_its_range_to_the_end_is_named(tmp_path: Path) -> None:
    evaluations = {"eval/scores": [0.0, 1.0, 1.5, 1.6], "eval/repetition": [0.01, 0.02, 0.2, 0.3]}
    (found,) = concerns(run_with(tmp_path / "run", held_out=evaluations))
    assert found.sentence == "The responses repeat themselves: 30% of their four-grams, where it was 1%."
    assert not found.grave
    evaluations["eval/repetition"] = [0.01, 0.2, 0.2, 0.03]  # it came back
    assert concerns(run_with(tmp_path / "passing", held_out=evaluations)) == []


def test_the_recipe_says_after_how_many_evaluations(tmp_path: Path) -> None:
    evaluations = {"eval/scores": [0.0, 1.0, 1.5, 1.6], "eval/repetition": [0.01, 0.02, 0.2, 0.3]}
    run = run_with(tmp_path / "run", held_out=evaluations)
    run.recipe["ppo"]["evaluate"]["alarm_after"] = 3
    assert concerns(run) == []


def test_overfitting_is_measured_from_the_lowest_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "ppo" / "metrics.jsonl", [])
    for stage, losses in (("sft", [0.9, 0.5, 0.52]), ("reward", [0.7, 0.5, 0.6])):
        rows = [{"iteration": 10 * at, f"{stage}/validation/loss": loss} for at, loss in enumerate(losses)]
        write_lines(run / stage / "metrics.jsonl", rows)
    (found,) = concerns(read_run(run))  # 0.52 is within 5 % of 0.5, 0.6 is not
    assert found.stage == "reward"
    assert "lowest at step 10 (0.500) and ended at 0.600" in found.sentence


@pytest.mark.parametrize(
    ("interval", "longer", "words"),
    [
        ([0.48, 0.61], 0.52, "no better than a coin"),
        ([0.58, 0.73], 0.62, "always picking the longer response: 58–73% beside 62%"),
        ([0.58, 0.73], 0.38, "always picking the shorter response: 58–73% beside 62%"),
    ],
)
def test_a_weak_reward_model_is_named(tmp_path: Path, interval: list[float], longer: float, words: str) -> None:
    changed = SUMMARIES["reward"] | {"accuracy_interval": interval, "longer_wins": longer}
    (sentence,) = sentences(run_with(tmp_path / "run", reward=changed))
    assert words in sentence


def test_levels_that_frequencies_tell_as_well_are_named(tmp_path: Path) -> None:
    rated = {"level_accuracy": 0.55, "level_accuracy_interval": [0.45, 0.64], "commonest_level": 0.47}
    (sentence,) = sentences(run_with(tmp_path / "run", reward=SUMMARIES["reward"] | rated))
    assert sentence == "Not clearly better than always saying the commonest level: 45–64% beside 47%."
    rated["commonest_level"] = 0.44
    assert sentences(run_with(tmp_path / "other", reward=SUMMARIES["reward"] | rated)) == []


def test_an_early_end_lost_abilities_and_other_versions_are_named(tmp_path: Path) -> None:
    changed = evaluation()
    changed["frontier"] |= {"reliable": False, "reliable_up_to_kl": math.log(128)}
    changed["demonstrations"]["policy_nll"] = 1.5
    run = run_with(tmp_path / "run", ppo=SUMMARIES["ppo"] | {"stopped": "the KL exploded."}, evaluate=changed)
    run.starts.append(run.starts[0] | {"torch": "2.14.0"})
    early, frontier, lost, versions = sentences(run)
    assert early == "It ended early: the KL exploded."
    assert frontier.endswith("beyond log n = 4.9 nats.")
    assert "(0.31 → 1.50 nats a token)" in lost
    assert versions == "It was resumed under another torch: 2.13.0 → 2.14.0."
