"""Run directories as the stages write them, with made-up numbers that are easy to find again on a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STAGES = ("sft", "collect", "reward", "ppo", "evaluate")
HOSTILE = "<script>alert(1)</script></style>{{ 7 * 7 }}\x1b[31m\x00\ud800<img src=x onerror=alert(2)>"

SUMMARIES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 80, "rows": 500, "validation_rows": 20, "validation_loss": 0.31, "seconds": 75.2},
    "collect": {
        "comparisons": 990,
        "identical_pairs": 10,
        "prompts": 500,
        "annotator": "polite",
        "noise_ceiling": 0.85,
        "seconds": 9.4,
    },
    "reward": {
        "steps": 40,
        "pairs": 900,
        "validation_pairs": 90,
        "score_mean_before": 0.4,
        "score_scale": 1.5,
        "accuracy": 0.811,
        "accuracy_interval": [0.72, 0.88],
        "longer_wins": 0.52,
        "noise_ceiling": 0.853,
        "reliability": [{"predicted": p, "right": p - 0.03, "pairs": 9.0} for p in (0.55, 0.65, 0.75, 0.9)],
        "seconds": 31.0,
    },
    "ppo": {
        "iterations": 70,
        "stopped": None,
        "kl_coef": 0.1,
        "best_iteration": 60,
        "best_objective": 1.2,
        "model_of_iteration": 70,
        "seconds": 130.0,
    },
}


def evaluation() -> dict[str, Any]:
    """The summary of an evaluation that went well."""
    texts = {
        "score_std": 0.9,
        "length": 21.25,
        "ended": 0.97,
        "distinct_1": 0.1,
        "distinct_2": 0.42,
        "repetition": 0.01,
    }
    return {
        "prompts": 200,
        "per_prompt": 4,
        "policy": {"score": 1.678, "utility": 2.345, **texts, "measures": {"on_point": 0.741}},
        "reference": {"score": -0.004, "utility": 1.111, **texts, "measures": {"on_point": 0.733}},
        "kl": 3.456,
        "kl_standard_error": 0.12,
        "kl_per_token": 0.1626,
        "score": {"win_rate": 0.91, "win_rate_interval": [0.89, 0.93]},
        "utility": {"win_rate": 0.874, "win_rate_interval": [0.841, 0.902]},
        "demonstrations": {"rows": 50, "policy_nll": 0.55, "reference_nll": 0.31},
        "frontier": {
            "prompts": 64,
            "samples_a_prompt": 128,
            "kl": 3.4,
            "score": 1.66,
            "reference_score": 0.0,
            "bound": 1.82,
            "bound_from_half_the_samples": 1.79,
            "reached": 0.912,
            "reliable": True,
            "reliable_up_to_kl": math.log(128),
            "curve": [[0.2 * step, math.sqrt(0.2 * step)] for step in range(32)],
            "best_of_n": [[1, 0.0, 0.0], [2, 0.193, 0.55], [4, 0.636, 1.0]],
        },
        "seconds": 24.0,
    }


def make_run(
    path: Path,
    name: str = "polite",
    *,
    stages: Iterable[str] = STAGES,
    finished: Iterable[str] = STAGES,
    policy_text: str = "you are welcome .",
    summaries: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a run with these stages; `summaries` replaces what is in SUMMARIES and `evaluation`."""
    path.mkdir(parents=True)
    start = {"started": "2030-01-02T03:04:05+00:00", "python": "3.11.0", "keel": "0.1.0", "torch": "2.13.0", "cores": 2}
    write_json(path / "run.json", {"name": name, "starts": [start]})
    write_json(path / "recipe.json", recipe(name))
    for stage in stages:
        (path / stage).mkdir()
        write_json(path / stage / "identity.json", {"config": {}, "inputs": {}})
        write_lines(path / stage / "metrics.jsonl", METRICS[stage]())
        write_lines(path / stage / "samples.jsonl", _samples(stage, policy_text))
        if stage in finished:
            write_json(
                path / stage / "done.json", ({"evaluate": evaluation()} | SUMMARIES | dict(summaries or {}))[stage]
            )
    return path


def recipe(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 7,
        "model": {"base": None, "scratch": {"hidden": 192, "layers": 4}},
        "sft": {"epochs": 2},
        "collect": {"per_prompt": 2},
        "reward": {"epochs": 1},
        "ppo": {
            "iterations": 70,
            "kl": {"coef": 0.1, "target": 4.0, "budget": None},
            "evaluate": {"utility": "keel.demo:polite"},
            "reward": [{"model": "reward"}],
        },
        "evaluate": {"reward": None},
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def utility_at(iteration: int) -> float:
    """The true utility of the made-up PPO: it peaks at iteration 40."""
    return 2.0 - ((iteration - 40) / 40) ** 2


def _sft() -> list[dict[str, Any]]:
    return [{"iteration": step, "sft/loss": 3 / step, "sft/grad_norm": 1.0, "sft/lr": 1e-3} for step in range(1, 81)]


def _reward() -> list[dict[str, Any]]:
    return [
        {"iteration": step, "reward/loss": 0.7, "reward/accuracy": 0.5 + step / 200, "reward/margin": None}
        for step in range(1, 41)
    ]


def _ppo() -> list[dict[str, Any]]:
    rows = []
    for iteration in range(71):
        row: dict[str, Any] = {"iteration": iteration}
        if iteration:
            row |= {"objective/scores": iteration / 40, "objective/kl": iteration / 20, "objective/kl_coef": 0.1}
            row |= {"reward/reward": iteration / 40, "reward/<i>rule</i>": 0.5, "reward/reward/missing": 0.0}
            row |= {"reward/reward/std": 1.0, "reward/reward/cut": 0.0}
        if iteration % 10 == 0:
            row |= {"eval/scores": iteration / 40, "eval/kl": iteration / 20, "eval/utility": utility_at(iteration)}
            row |= {"eval/utility/peak": min(iteration, 40), "eval/utility/fall_error": 0.005}
        rows.append(row)
    return rows


METRICS = {
    "sft": _sft,
    "collect": list[dict[str, Any]],
    "reward": _reward,
    "ppo": _ppo,
    "evaluate": list[dict[str, Any]],
}


def _samples(stage: str, policy_text: str) -> list[dict[str, Any]]:
    if stage == "ppo":
        return [
            {"iteration": at, "prompt": f"prompt {p}", "response": f"answer {p} at {at}", "score": 0.1 * at, "kl": 0.5}
            for at in range(0, 71, 10)
            for p in range(5)
        ]
    if stage == "evaluate":
        return [
            {"iteration": 0, "prompt": f"question {p}", "policy": policy_text, "reference": f"plain {p}", "kl": 2.25}
            | {"policy_score": 1.5, "reference_score": -0.5, "policy_utility": 2.0, "reference_utility": None}
            for p in range(6)
        ]
    return []
