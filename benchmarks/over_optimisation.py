"""A policy that over-optimises a small reward model, and what an ensemble and the leash mend (the demo's world).

`python -m benchmarks.over_optimisation --out runs/over-optimisation`: for each seed a supervised model, its replies
compared by the scripted annotator, a reward model and an ensemble from few of the comparisons, a judge from those on
other prompts, and a run of PPO for each arm. A finished stage is skipped, so the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from keel.build import run_recipe
from keel.config.recipe import apply_override, parse_recipe
from keel.demo.recipe import RECIPE
from keel.instruments.alarms import AFTER, alarms
from keel.runs.console import SilentConsole
from keel.runs.metrics import read_lines

SMALL = 120  # prompts whose comparisons the rewards learn from: a sixteenth of all
FEW = ("reward.epochs=4",)
LORA = (*FEW, "model.tune=lora", "reward.lr=5.0e-3")
REWARDS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (  # what learns from what; added to the seed; settings
    ("single", "few", 0, FEW),
    (
        "heads",
        "few",
        0,
        (*FEW, "reward.ensemble={members: 4, of: heads}"),
    ),
    ("adapters", "few", 0, (*LORA, "reward.ensemble={members: 4, of: adapters}")),
    ("judge", "others", 1000, ()),
)
SINGLE: dict[str, Any] = {"model": "single"}
PPO: dict[str, Any] = {
    "iterations": 48,
    "rollout_batch": 64,
    "update": {"lr": 1e-4, "schedule": "constant", "epochs": 4, "minibatches": 4, "token_budget": 2048},
}
EVALUATE = {"every": 4, "count": 128}
ARMS: dict[str, tuple[dict[str, Any], float, dict[str, Any]]] = {  # the reward, what a nat costs, the evaluation
    "single": (SINGLE, 0.0, {}),
    "adapters-min": ({"model": "adapters", "combine": "min"}, 0.0, {}),
    "adapters-uncertainty": ({"model": "adapters", "combine": "uncertainty", "uncertainty_coef": 1.0}, 0.0, {}),
    "leash-0.2": (SINGLE, 0.2, {}),
    "stop-at-peak": (SINGLE, 0.0, {"judge": None, "stop_at_peak": 2}),  # of the true utility
    "leash-0.05": (SINGLE, 0.05, {}),
    "adapters-mean": ({"model": "adapters"}, 0.0, {}),
    "heads-min": ({"model": "heads", "combine": "min"}, 0.0, {}),
}
EVALUATED = "stop-at-peak"  # with best-of-n beside it


class Printing(SilentConsole):
    """Says what stays on the screen, and no more."""

    def say(self, text: str) -> None:
        print(text, flush=True)


def demo(seed: int, *stages: str) -> dict[str, Any]:
    """Those stages of the demo's recipe, for the polite taste."""
    tree: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return {"name": "over-optimisation", "seed": seed, "device": "cpu"} | {stage: tree[stage] for stage in stages}


def walk(tree: dict[str, Any], out: Path, reuse: Path | None = None) -> None:
    """Run the recipe, or what is left of it."""
    run_recipe(parse_recipe(tree, "benchmarks.over_optimisation"), out, console=Printing(), reuse=reuse)


def prepare(seed: int, out: Path, reuse: Path | None) -> None:
    """All that the arms share: the start, the comparisons in two parts, the rewards and the judge."""
    base = out / "base"
    walk(demo(seed, "model", "sft", "collect"), base, reuse)
    split(base / "collect" / "comparisons" / "comparisons.jsonl", out)
    for name, data, own_seed, settings in REWARDS:
        tree = demo(seed + own_seed, "reward")
        tree["model"] = {"base": str(base / "sft" / "model")}
        tree["reward"] |= {"data": {"path": str(out / f"{data}.jsonl"), "validation": 0.2}}
        tree["reward"] |= {"normalise_sampling": {"max_new_tokens": 40}}
        for setting in settings:
            apply_override(tree, setting)
        walk(tree, out / name)


def recipe(seed: int, arm: str, out: Path) -> dict[str, Any]:
    """One run of PPO, from what `prepare` has left in `out`."""
    reward, coef, held_out = ARMS[arm]
    tree = demo(seed, "ppo", *(["evaluate"] if arm == EVALUATED else []))
    tree["model"] = {"base": str(out / "base" / "sft" / "model")}
    tree["ppo"] |= PPO | {"reward": [reward | {"model": model(out, reward["model"]), "name": "reward"}]}
    tree["ppo"]["kl"] = {"coef": coef}
    tree["ppo"]["evaluate"] |= EVALUATE | {"judge": {"model": model(out, "judge"), "name": "judge"}} | held_out
    return tree


def model(out: Path, name: str) -> str:
    """Where the reward stage of that name has left its model."""
    return str(out / name / "reward" / "model")


def split(comparisons: Path, out: Path) -> None:
    """Every other prompt is the judge's; of the rest the first `SMALL` are the rewards'."""
    by_prompt: dict[str, list[str]] = {}
    for line in comparisons.read_text(encoding="utf-8").splitlines():
        by_prompt.setdefault(json.loads(line)["prompt"], []).append(line)
    groups = list(by_prompt.values())
    for name, part in (("few", groups[0::2][:SMALL]), ("others", groups[1::2])):
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for lines in part for line in lines), encoding="utf-8")


def table(out: Path) -> str:
    """Markdown: a row a finished run, from the start to the policy that it handed on, on its held-out prompts."""
    head = "| arm | seed | score | true utility | its peak | KL | judge | entropy | repetition | alarms (iteration) |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for arm in ARMS:
        for done in sorted(out.glob(f"seed-*/ppo-{arm}/ppo/done.json")):
            handed_on = json.loads(done.read_text(encoding="utf-8"))["model_of_iteration"]
            seed = done.parts[-4].removeprefix("seed-")
            lines.append(_row(arm, seed, read_lines(done.parent / "metrics.jsonl"), handed_on))
    return "\n".join(lines)


def _row(arm: str, seed: str, rows: list[dict[str, Any]], handed_on: int) -> str:
    evaluations = [row for row in rows if "eval/scores" in row]
    first, last = evaluations[0], next(row for row in evaluations if row["iteration"] == handed_on)
    peak = max(evaluations, key=lambda row: float(row["eval/utility"]))

    def change(key: str, form: str = ".2f") -> str:
        return f"{first[key]:{form}} → {last[key]:{form}}" if key in first else "–"

    raised = ", ".join(f"{alarm.name} {alarm.iteration}" for alarm in alarms(rows, AFTER))
    cells = [
        arm,
        seed,
        change("eval/scores"),
        change("eval/utility"),
        f"{peak['eval/utility']:.2f} at {peak['iteration']} ({peak['eval/kl']:.1f} nats)",
        f"{last['eval/kl']:.1f}",
        change("eval/judge"),
        change("eval/surprise"),
        change("eval/repetition", ".1%"),
        raised or "none",
    ]
    return f"| {' | '.join(cells)} |".replace("-0.0 ", "0.0 ")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--reuse", type=Path, nargs="*", default=[], help="runs of the demo with these seeds, in order")
    given = parser.parse_args(arguments)
    for number, seed in enumerate(given.seeds):
        out = given.out / f"seed-{seed}"
        prepare(seed, out, given.reuse[number] if given.reuse else None)
    for arm in given.arms:
        for seed in given.seeds:
            out = given.out / f"seed-{seed}"
            walk(recipe(seed, arm, out), out / f"ppo-{arm}")
    print(table(given.out))


if __name__ == "__main__":
    main()
