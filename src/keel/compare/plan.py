"""From one recipe to the recipes of all runs: a base that makes what they share, and one an algorithm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.compare.algorithms import Algorithm, algorithm
from keel.config.recipe import Recipe, parse_recipe
from keel.config.rewards import RewardSource
from keel.errors import UserError
from keel.inputs import COMPARISONS, COMPARISONS_FILE
from keel.runs import files
from keel.runs.layout import DONE

BASE = "base"
_SHARED = ("sft", "collect", "reward")


@dataclass(frozen=True)
class Planned:
    """One run of the comparison."""

    name: str  # of its directory
    algorithm: str
    seed: int
    leash: float  # factor of the leash's price; 1 but for what traces the curve of a method without a course
    recipe: dict[str, Any]


def base_recipe(recipe: Recipe) -> dict[str, Any] | None:
    """The stages that all runs share; None where the recipe starts from models that are there."""
    tree = _tree(recipe)
    shared = {stage: tree[stage] for stage in _SHARED if stage in tree}
    if not shared:
        return None
    return {key: tree[key] for key in ("seed", "device", "model") if key in tree} | {"name": BASE} | shared


def plan(recipe: Recipe, names: Sequence[str], seeds: Sequence[int], out: Path) -> list[Planned]:
    """Every run; `out/base` must be finished, for its scale of the scores is read.

    Methods that have no course of their own are run at half and twice the leash too, with the first seed.
    Raises UserError where the recipe lacks what an algorithm needs.
    """
    if recipe.ppo is None or recipe.evaluate is None:
        raise UserError("keel compare needs a recipe with ppo and evaluate: the settings that the algorithms share")
    runs = []
    for name in names:
        chosen = algorithm(name)
        for seed in seeds:
            factors = (1.0, 0.5, 2.0) if chosen.stage != "ppo" and seed == seeds[0] else (1.0,)
            for factor in factors if _leashed(chosen) else (1.0,):
                suffix = "" if factor == 1 else f"-leash{factor:g}"
                tree = _run_tree(recipe, chosen, seed, factor, out / BASE) | {"name": f"{name}-{seed}{suffix}"}
                parse_recipe(tree, f"the recipe of {name}")
                runs.append(Planned(tree["name"], name, seed, factor, tree))
    return runs


def _leashed(chosen: Algorithm) -> bool:
    return chosen.stage == "evaluate" or chosen.beta is not None


def _tree(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in tree.items() if value is not None}


def _run_tree(recipe: Recipe, chosen: Algorithm, seed: int, factor: float, base: Path) -> dict[str, Any]:
    tree = _tree(recipe)
    model = {key: value for key, value in tree["model"].items() if key not in ("scratch", "base")}
    start = str(base / "sft" / "model") if recipe.sft else str(recipe.model.base)
    made: dict[str, Any] = {"seed": seed, "model": model | {"base": start}}
    made |= {key: tree[key] for key in ("device",) if key in tree}
    assert recipe.ppo is not None
    assert recipe.evaluate is not None
    judges = recipe.evaluate.reward or recipe.ppo.reward
    made["evaluate"] = tree["evaluate"] | {"reward": _rewards(judges, base)}
    if chosen.stage == "ppo":
        made["ppo"] = laid_over(tree["ppo"] | {"reward": _rewards(recipe.ppo.reward, base)}, chosen)
    elif chosen.stage == "direct":
        made["direct"] = _direct(recipe, tree, chosen, factor, base)
    else:
        count = max(2, round(chosen.keys["best_of"] ** {0.5: 1.5, 1.0: 1.0, 2.0: 0.5}[factor]))
        made["evaluate"] |= {"policy": start, "reference": start, "best_of": count}
    return made


def laid_over(settings: Mapping[str, Any], chosen: Algorithm) -> dict[str, Any]:
    """A stage's settings with those of an algorithm over them, and without what it has no use for."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for path in chosen.without:
        parent, _, key = path.rpartition(".")
        (result.get(parent, {}) if parent else result).pop(key, None)
    for key, value in chosen.keys.items():
        result[key] = {**result.get(key, {}), **value} if isinstance(value, Mapping) and key == "update" else value
    return result


def _direct(recipe: Recipe, tree: Mapping[str, Any], chosen: Algorithm, factor: float, base: Path) -> dict[str, Any]:
    """The direct stage on the reward model's own comparisons, with a leash that has the optimum of ppo's."""
    assert recipe.ppo is not None
    if recipe.reward is None:
        raise UserError(
            "keel compare: a direct method needs the recipe's reward stage, whose comparisons it learns from"
        )
    shared = ("epochs", "batch", "token_budget", "max_tokens", "long_prompts", "max_pairs")
    settings = {key: value for key, value in tree["reward"].items() if key in shared}
    settings |= {"lr": recipe.ppo.update.lr, "data": tree["reward"].get("data", "collect")}
    if settings["data"] == "collect":
        settings["data"] = str(base / "collect" / COMPARISONS / COMPARISONS_FILE)
    settings |= tree.get("direct", {})
    settings |= chosen.keys
    if chosen.beta is not None:
        summary = files.read_json(base / "reward" / DONE) or {}
        settings["beta"] = factor * chosen.beta * recipe.ppo.kl.coef * float(summary.get("score_scale", 1.0))
    return settings


def _rewards(sources: Sequence[RewardSource], base: Path) -> list[dict[str, Any]]:
    """The rewards with the reward stage's model where the base run has put it."""
    made = []
    for source in sources:
        given = source.model_dump(mode="json", exclude_unset=True)
        path = {"model": str(base / "reward" / "model")} if source.model == "reward" else {}
        made.append(given | path | {"name": source.logged_as})
    return made
