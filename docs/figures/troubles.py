"""Draws the figures of docs/troubleshooting.md: a healthy run of the demo's world beside one with a fault put in.

`python docs/figures/troubles.py RUNS` keeps its runs in RUNS (some minutes on two cores) and writes the pictures here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from keel.build import run_recipe
from keel.demo.recipe import demo_recipe
from keel.engines import scorers
from keel.errors import UserError
from keel.records import Sequences
from keel.runs.console import SilentConsole

HERE = Path(__file__).parent
SMALL = ["sft.epochs=3", "reward.epochs=1", "evaluate=null", "ppo.iterations=24", "ppo.rollout_batch=64"]
SMALL += ["ppo.evaluate.every=100", "ppo.evaluate.count=16", "ppo.max_truncated=1.0", "ppo.update.lr=1e-4"]
WORDS, FEW = "ppo.reward=[{function: 'troubles:words'}]", "ppo.reward=[{function: 'troubles:few_words'}]"


@dataclass(frozen=True)
class Trouble:
    """A fault, and the metrics that show it: `key: label`."""

    name: str
    settings: list[str]
    shown: dict[str, str] = field(default_factory=dict)


TROUBLES = (
    Trouble("healthy", []),
    Trouble(
        "kl-explodes",
        ["ppo.kl.coef=0", "ppo.update.lr=1e-3", "ppo.update.schedule=constant"],
        {
            "objective/kl": "KL to the reference (nats a response)",
            "ppo/policy/approxkl": "approximate KL to the old policy",
        },
    ),
    Trouble("negative-kl", ["ppo.iterations=8"], {"objective/kl": "KL to the reference (nats a response)"}),
    Trouble(
        "length-runs-away",
        [WORDS, "ppo.kl.coef=0.02"],
        {
            "objective/length": "tokens a response",
            "objective/score_length_correlation": "correlation of score and length",
        },
    ),
    Trouble(
        "reward-flat",
        ["ppo.update.lr=1e-7"],
        {"objective/scores": "score", "ppo/policy/approxkl": "approximate KL to the old policy"},
    ),
    Trouble(
        "critic-lost",
        ["ppo.update.critic_lr_scale=5000", "ppo.update.value_clip=null"],
        {"ppo/val/explained_variance": "explained variance", "ppo/loss/value": "value loss"},
    ),
    Trouble(
        "ends-at-once",
        [FEW, "ppo.kl.coef=0.02"],
        {"objective/length": "tokens a response", "objective/scores": "score"},
    ),
    Trouble(
        "nothing-ends",
        ["ppo.sampling.max_new_tokens=10"],
        {"objective/ended": "share that ended", "objective/length": "tokens a response"},
    ),
)


def words(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
    """A reward that likes length."""
    return [0.2 * len(response.split()) for response in responses]


def few_words(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
    """A reward that punishes every word."""
    return [-0.5 * len(response.split()) for response in responses]


def forget_the_end(policy: scorers.PolicyScorer, sequences: Sequences) -> Tensor:
    """The fault of the negative KL: a reference that leaves the end token out of its log-probabilities."""
    logprobs = _sound(policy, sequences)
    if policy.policy.critic is None:
        last = sequences.response_lengths - 1
        logprobs[torch.arange(len(last)), last] = 0.0
    return logprobs


_sound = scorers.PolicyScorer.logprobs


def run(trouble: Trouble, folder: Path) -> list[dict[str, float]]:
    """The metrics of one run, which may have been made before."""
    out = folder / trouble.name
    if not (out / "ppo" / "done.json").exists():
        scorers.PolicyScorer.logprobs = forget_the_end if trouble.name == "negative-kl" else _sound  # type: ignore[method-assign]  # the fault itself
        try:
            healthy = folder / "healthy"
            reuse = healthy if healthy.exists() and out != healthy else None
            run_recipe(demo_recipe("polite", [*SMALL, *trouble.settings]), out, console=SilentConsole(), reuse=reuse)
        except UserError as error:
            print(f"{trouble.name}: {error}")
    lines = (out / "ppo" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "objective/kl" in row]


def draw(trouble: Trouble, rows: list[dict[str, float]], healthy: list[dict[str, float]]) -> None:
    """One panel a metric: the healthy run in grey, the troubled one in red."""
    figure, panels = plt.subplots(1, len(trouble.shown), figsize=(4.2 * len(trouble.shown), 2.6), squeeze=False)
    for panel, (key, label) in zip(panels[0], trouble.shown.items(), strict=True):
        until = max(10, rows[-1]["iteration"])
        for series, colour, name in ((healthy, "#8a8a8a", "healthy"), (rows, "#c0392b", "this trouble")):
            seen = [row for row in series if key in row and row["iteration"] <= until]
            steps, values = [row["iteration"] for row in seen], [row[key] for row in seen]
            panel.plot(steps, values, color=colour, label=name, marker="o" if len(steps) < 5 else None, markersize=4)
        if key == "objective/kl" and trouble.name == "negative-kl":
            low = [row[key] - 5 * row["objective/kl_standard_error"] for row in rows]
            high = [row[key] + 5 * row["objective/kl_standard_error"] for row in rows]
            panel.fill_between([row["iteration"] for row in rows], low, high, color="#c0392b", alpha=0.2)
        panel.axhline(0, color="#bbbbbb", linewidth=0.6)
        panel.set_xlabel("iteration")
        panel.set_title(label, fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / f"{trouble.name}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(HERE))  # where `troubles:words` is found
    plt.rcParams["svg.hashsalt"] = "keel"
    healthy = run(TROUBLES[0], folder)
    for trouble in TROUBLES[1:]:
        rows = run(trouble, folder)
        draw(trouble, rows, healthy)
        shown = {key: [round(rows[index][key], 3) for index in (0, -1)] for key in trouble.shown}
        print(trouble.name, len(rows), shown, {key: round(healthy[-1][key], 3) for key in trouble.shown}, flush=True)


if __name__ == "__main__":
    main()
