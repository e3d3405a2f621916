"""From one recipe to the recipes of all runs: a base that makes what they share, and one an algorithm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.compare.algorithms import Algorithm, algorithm
from keel.config.ppo import PPOConfig, UpdateConfig
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


def plan(
    recipe: Recipe, names: Sequence[str], seeds: Sequence[int], out: Path, *, score_scale: float = 1.0
) -> list[Planned]:
    """Every run. `score_scale` is the reward model's, known once `out/base` is finished.

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
                tree = _run_tree(recipe, chosen, seed, factor * score_scale, factor, out / BASE)
                tree["name"] = f"{name}-{seed}{suffix}"
                parse_recipe(tree, f"the recipe of {name}")
                runs.append(Planned(tree["name"], name, seed, factor, tree))
    return runs


def score_scale(out: Path) -> float:
    """What the base run divided its reward model's scores by; 1 without one."""
    return float((files.read_json(out / BASE / "reward" / DONE) or {}).get("score_scale", 1.0))


def _leashed(chosen: Algorithm) -> bool:
    return chosen.stage == "evaluate" or chosen.beta is not None


def _tree(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in tree.items() if value is not None}


def _run_tree(recipe: Recipe, chosen: Algorithm, seed: int, logits: float, factor: float, base: Path) -> dict[str, Any]:
    """`logits` is what a score of 1 is worth in the comparisons, times the factor of the leash."""
    tree = _in_base(_tree(recipe), base)
    model = {key: value for key, value in tree["model"].items() if key not in ("scratch", "base")}
    start = str(base / "sft" / "model") if recipe.sft else str(recipe.model.base)
    made: dict[str, Any] = {"seed": seed, "model": model | {"base": start}}
    made |= {key: tree[key] for key in ("device",) if key in tree}
    assert recipe.ppo is not None
    assert recipe.evaluate is not None
    judges = recipe.evaluate.reward or recipe.ppo.reward
    made["evaluate"] = {key: value for key, value in tree["evaluate"].items() if key not in ("policy", "reference")}
    made["evaluate"]["reward"] = _rewards(judges, base)
    if chosen.stage == "ppo":
        made["ppo"] = laid_over(tree["ppo"] | {"reward": _rewards(recipe.ppo.reward, base)}, chosen)
    elif chosen.stage == "direct":
        made["direct"] = _direct(recipe, tree, chosen, logits, base)
    else:
        count = round(chosen.keys["best_of"] ** {0.5: 1.5, 1.0: 1.0, 2.0: 0.5}[factor])
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
    if chosen.lr_scale != 1:
        update = result.setdefault("update", {})
        update["lr"] = chosen.lr_scale * update.get("lr", UpdateConfig().lr)
    return result


def _in_base(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    """The recipe's tree with the base run's models for the names of its stages."""
    ppo = tree.get("ppo", {})
    for key in ("policy", "reference", "critic_init"):
        if ppo.get(key) in _SHARED:
            ppo[key] = str(base / ppo[key] / "model")
    return tree


def _direct(recipe: Recipe, tree: Mapping[str, Any], chosen: Algorithm, logits: float, base: Path) -> dict[str, Any]:
    """The direct stage on the reward model's own comparisons, with a leash that has the optimum of ppo's."""
    assert recipe.ppo is not None
    if recipe.reward is None or recipe.reward.reads != "comparisons":
        raise UserError("keel compare: a direct method needs a reward stage, whose comparisons it learns from")
    shared = ("epochs", "batch", "token_budget", "max_tokens", "long_prompts", "max_pairs")
    settings = {key: value for key, value in tree["reward"].items() if key in shared}
    settings |= {"lr": recipe.ppo.update.lr, "data": tree["reward"].get("data", "collect")}
    settings |= tree.get("direct", {})
    if settings["data"] == "collect":
        settings["data"] = str(base / "collect" / COMPARISONS / COMPARISONS_FILE)
    settings |= chosen.keys
    if chosen.beta is not None:
        settings["beta"] = chosen.beta * logits * _price(recipe.ppo)
    return settings


def _price(config: PPOConfig) -> float:
    """What a nat costs ppo in scores of the reward stage's model. UserError where that is no one number."""
    only = config.reward[0] if len(config.reward) == 1 else None
    if only is None or only.model != "reward" or config.kl.kind != "fixed":
        raise UserError(
            "keel compare: a direct method has ppo's optimum where ppo.reward is the reward stage's model alone and "
            "ppo.kl.kind is fixed; leave the direct methods out, or change the recipe"
        )
    return config.kl.coef / only.weight


def _rewards(sources: Sequence[RewardSource], base: Path) -> list[dict[str, Any]]:
    """The rewards with the reward stage's model where the base run has put it."""
    made = []
    for source in sources:
        given = source.model_dump(mode="json", exclude_unset=True)
        path = {"model": str(base / "reward" / "model")} if source.model == "reward" else {}
        made.append(given | path | {"name": source.logged_as})
    return made
