"""The demo's recipe, for either taste and for the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from keel.config.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent / "demo.yaml"
_TASTE_KEYS = ("collect.annotator.script", "ppo.evaluate.utility", "evaluate.utility")

# What some 40 judgements allow (docs/lab.md): few steps of a small rate, and a shorter leash than for a reward model
# that has seen thousands.
_FOR_FEW_PAIRS = (
    "reward.epochs=5",
    "reward.batch=8",
    "reward.lr=3.0e-4",
    "ppo.iterations=30",
    "ppo.kl.coef=0.3",
    "evaluate.frontier_samples=64",
    "evaluate.frontier_prompts=32",
)


def demo_recipe(taste: str, overrides: Sequence[str] = ()) -> Recipe:
    """`demo.yaml` with the annotator and the true utility of one taste (`polite` or `terse`), then the overrides."""
    chosen = [f"{key}=keel.demo:{taste}" for key in _TASTE_KEYS]
    return load_recipe(RECIPE, [f"name={taste}", f"collect.annotator.name={taste}", *chosen, *overrides])


def my_recipe(comparisons: Path, overrides: Sequence[str] = ()) -> Recipe:
    """`demo.yaml` with a person's comparisons from a file instead of a scripted annotator, then the overrides.

    All of them train: with so few, a part held out by its hash would say little. Nobody knows the true utility.
    """
    data = json.dumps({"path": str(comparisons), "validation": 0})
    unknown = [f"{key}=null" for key in ("collect", "ppo.evaluate.utility", "evaluate.utility")]
    return load_recipe(RECIPE, ["name=me", f"reward.data={data}", *unknown, *_FOR_FEW_PAIRS, *overrides])
