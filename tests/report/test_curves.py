"""The panels hold the numbers that the stages logged."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from keel.report.against_kl import frontier_panels, held_out_panels, truth_panels
from keel.report.curves import ppo_panels, reward_panels, sft_panels, sources
from keel.report.figures import Panel
from keel.report.sections import stages
from keel.runs.layout import FORKED
from keel.runs.read import RunView, read_run
from tests.report.support import evaluation, make_run, utility_at, write_json, write_lines


@pytest.fixture
def run(tmp_path: Path) -> RunView:
    return read_run(make_run(tmp_path / "run"))


def titled(panels: list[Panel], title: str) -> Panel:
    return next(panel for panel in panels if panel.title == title)


def test_a_stage_that_runs_share_is_drawn_once(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    shutil.rmtree(second / "sft")
    os.symlink(first / "sft", second / "sft")
    runs = [read_run(first), read_run(second)]
    assert [(source.colour, source.runs) for source in sources(runs, "sft")] == [("ink", (0, 1))]
    assert [(source.colour, source.runs) for source in sources(runs, "ppo")] == [("run0", (0,)), ("run1", (1,))]
    assert len(titled(sft_panels(runs), "Loss").curves) == 1
    assert [curve.colour for curve in titled(ppo_panels(runs), "Score").curves] == ["run0", "run0", "run1", "run1"]


def test_score_shows_rollouts_and_held_out(run: RunView) -> None:
    rollouts, held_out = titled(ppo_panels([run]), "Score").curves
    assert (rollouts.label, list(rollouts.xs)) == ("rollouts", list(range(1, 71)))
    assert (held_out.style, list(held_out.xs), list(held_out.ys)) == (
        "dashed",
        list(range(0, 71, 10)),
        [at / 40 for at in range(0, 71, 10)],
    )


def test_kl_shows_its_target_and_the_reward_model_its_ceiling(run: RunView) -> None:
    assert [(level.y, level.label) for level in titled(ppo_panels([run]), "KL to the reference").levels] == [
        (4.0, "target 4")
    ]
    assert [(level.y, level.label) for level in titled(reward_panels([run]), "Accuracy").levels] == [
        (0.853, "noise allows 85%"),
        (0.52, "longer wins 52%"),
    ]


def test_a_coins_loss_is_that_of_pairs_alone(run: RunView) -> None:
    assert [level.label for level in titled(reward_panels([run]), "Loss").levels] == ["a coin’s"]
    run.recipe["reward"]["objective"] = "plackett_luce"
    assert titled(reward_panels([run]), "Loss").levels == []


def test_reliability_has_a_bar_of_the_binomial(run: RunView) -> None:
    (curve,) = titled(reward_panels([run]), "Reliability").curves
    assert list(curve.xs) == [0.55, 0.65, 0.75, 0.9]
    assert curve.errors is not None
    assert curve.errors[0] == pytest.approx(1.96 * math.sqrt(0.52 * 0.48 / 9))


def with_ppo(folder: Path, rows: list[dict[str, float]], frontier: dict[str, object] | None = None) -> RunView:
    changed = evaluation()
    changed["frontier"] |= frontier or {}
    made = make_run(folder / "made", summaries={"evaluate": changed})
    write_lines(made / "ppo" / "metrics.jsonl", rows)
    return read_run(made)


def test_what_is_not_trained_on_is_drawn_with_the_laws_and_best_of_n(tmp_path: Path) -> None:
    distances = [0.0, 0.5, 1.0, 2.0, 3.0]
    rows = [
        {"iteration": at, "eval/kl": d * d, "eval/scores": d, "eval/utility": 1 + d * (2 - 0.5 * d), "eval/judge": -d}
        for at, d in enumerate(distances)
    ]
    run = with_ppo(tmp_path, rows, {"best_of_n_utility": [[1, 0.0, 1.0], [2, 0.19, 1.4], [4, 0.6, None]]})
    curves = {curve.label: curve for curve in titled(held_out_panels([run]), "True utility against KL").curves}
    assert list(curves["while training"].xs) == [d * d for d in distances]
    linear = curves["d (2.00 − 0.50 d)"]
    assert [linear.ys[0], linear.ys[-1]] == pytest.approx([1.0, 2.5])  # from the start, by the planted law
    assert max(linear.ys) == pytest.approx(3.0, abs=1e-2)  # at d = 2
    assert sum(label.endswith("log d)") for label in curves) == 1
    assert (list(curves["best of n"].xs), list(curves["best of n"].ys)) == ([0.0, 0.19], [1.0, 1.4])
    judged = titled(held_out_panels([run]), "Judge against KL").curves
    assert list(judged[0].ys) == [-d for d in distances]
    assert [curve.label for curve in titled(truth_panels([run]), "Proxy and truth").curves] == [
        "score (proxy)",
        "true utility",
        "judge",
    ]


def test_a_fork_that_is_measured_otherwise_is_drawn_from_the_fork_on(tmp_path: Path) -> None:
    """At iteration 1 the truth became ten times as large, and 100 more: by it the law d (20 − 5 d) from there on."""
    distances = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0]
    rows = [
        {
            "iteration": at,
            "eval/kl": d * d,
            "eval/scores": d,
            "eval/utility": d if at < 2 else 100 + 10 * d * (2 - 0.5 * d),
        }
        for at, d in enumerate(distances)
    ]
    run = with_ppo(tmp_path, rows)
    fork: dict[str, Any] = {"source": "old/ppo", "step": 1, "sha256": "", "changed": [], "measured_since": 1}
    write_json(run.stages["ppo"].path / FORKED, fork)
    curves = {curve.label: curve for curve in titled(held_out_panels([run]), "True utility against KL").curves}
    assert list(curves["while training"].xs) == [1.0, 4.0, 9.0, 16.0]
    linear = curves["d (20.00 − 5.00 d)"]
    assert (linear.xs[0], linear.xs[-1]) == (1.0, 16.0)
    assert [linear.ys[0], linear.ys[-1]] == pytest.approx([115.0, 100.0])
    truth = {curve.label: curve for curve in titled(truth_panels([run]), "Proxy and truth").curves}["true utility"]
    assert list(truth.xs) == [2, 3, 4, 5]
    section = next(part for part in stages([run]) if part.anchor == "ppo")
    assert {row.label: row.values for row in section.rows}["held-out true utility"] == ("115.00 → 100.00",)
    assert any("was forked at iteration 1 and measured otherwise from there" in note for note in section.notes)


def test_the_members_of_an_ensemble_have_a_figure_and_are_no_reward_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"iteration": 0, "eval/reward/few/disagreement": 0.2}]
    rows += [{"iteration": at, "reward/few": 1.0, "reward/few/disagreement": 0.2 + at} for at in (1, 2)]
    panels = [panel for panel in ppo_panels([with_ppo(tmp_path, rows)]) if "few" in panel.title]
    assert [panel.title for panel in panels] == ["Disagreement of “few”"]
    rollouts, held_out = panels[0].curves
    assert (list(rollouts.ys), list(held_out.ys)) == ([1.2, 2.2], [0.2])
    assert [level.y for level in panels[0].levels] == [0.2]


def test_several_rewards_are_drawn_apart(run: RunView) -> None:
    titles = [panel.title for panel in ppo_panels([run])]
    assert [title for title in titles if title.startswith("Reward")] == ["Reward “reward”", "Reward “<i>rule</i>”"]


def test_the_frontier_is_dashed_beyond_log_n(run: RunView) -> None:
    curves = {curve.label: curve for curve in titled(frontier_panels([run]), "Score against KL").curves}
    assert list(curves) == ["frontier", "frontier, unreliable", "best of n", "while training", "evaluated policy"]
    limit = math.log(128)  # 4.85, between the points 4.8 and 5.0 of the curve
    assert max(curves["frontier"].xs) == pytest.approx(4.8)
    assert min(x for x in curves["frontier, unreliable"].xs if x > limit) == pytest.approx(5.0)
    assert curves["frontier, unreliable"].style == "dashed"
    assert list(curves["best of n"].xs) == [0.0, 0.193, 0.636]
    assert list(curves["best of n"].ys) == [0.0, 0.55, 1.0]
    assert (curves["evaluated policy"].xs, curves["evaluated policy"].ys) == ([3.4], [1.66])
    assert list(curves["while training"].xs) == [at / 20 for at in range(0, 71, 10)]


def test_training_is_not_drawn_beside_a_frontier_of_other_rewards(run: RunView) -> None:
    run.recipe["evaluate"]["reward"] = [{"model": "another"}]
    panel = titled(frontier_panels([run]), "Score against KL")
    assert "while training" not in [curve.label for curve in panel.curves]


def test_proxy_and_truth_are_shares_of_their_own_gain(run: RunView) -> None:
    proxy, truth = titled(truth_panels([run]), "Proxy and truth").curves
    assert proxy.ys[-1] == 1.0
    assert truth.ys[4] == 1.0
    assert truth.ys[-1] == pytest.approx((utility_at(70) - utility_at(0)) / (utility_at(40) - utility_at(0)))


def test_panels_of_nothing_are_empty(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=()))
    for panels in (sft_panels, reward_panels, ppo_panels, frontier_panels, held_out_panels, truth_panels):
        assert all(panel.empty for panel in panels([run]))
