"""The recipe: a YAML file, the user's whole interface to a run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from keel.config.base import Config, Function, given_keys
from keel.config.collect import CollectConfig
from keel.config.direct import DirectConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.model import ModelConfig
from keel.config.parallel import ParallelConfig
from keel.config.ppo import PPOConfig
from keel.config.reward import RewardConfig
from keel.config.sft import SFTConfig
from keel.errors import UserError
from keel.runs.layout import STAGES

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_INTERNAL = ("function-", "literal[", "[key]", "[source", "tagged-union[", "tuple[")  # what pydantic adds to a path


class Recipe(Config):
    """One run. Stages that are not named are not run."""

    name: str = Field(pattern=NAME_PATTERN)
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto (CUDA, MPS, CPU) or a torch device")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = Field((), description="besides metrics.jsonl")
    callbacks: tuple[Function, ...] = Field((), description="module:function each, returning a keel.Callback")
    parallel: ParallelConfig = ParallelConfig()
    model: ModelConfig
    sft: SFTConfig | None = None
    collect: CollectConfig | None = None
    reward: RewardConfig | None = None
    direct: DirectConfig | None = None
    ppo: PPOConfig | None = None
    evaluate: EvaluateConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _sample_alike(cls, tree: Any) -> Any:
        """What is judged and what the scores are centred on is sampled as ppo samples, but for the keys given there.

        Without ppo, what direct has learnt is given the length that collect gives.
        """
        if not isinstance(tree, Mapping):
            return tree
        stages = {name: given for name, stage in tree.items() if (given := given_keys(stage)) is not None}
        ppo, collect = stages.get("ppo", {}), stages.get("collect", {})
        if "evaluate" in stages:
            prompts = {key: ppo[key] for key in ("max_prompt_tokens", "long_prompts") if key in ppo}
            stages["evaluate"] = prompts | stages["evaluate"]
            _fill(stages["evaluate"], "sampling", ppo.get("sampling", _limits(collect) if "direct" in stages else None))
        if "reward" in stages:
            _fill(stages["reward"], "normalise_sampling", ppo.get("sampling", collect.get("sampling")))
        return {**tree, **stages}

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        if not any(getattr(self, stage) for stage in STAGES):
            raise ValueError(f"the recipe names no stage: add at least one of {', '.join(STAGES)}")
        if self.model.scratch and not self.sft:
            raise ValueError("model.scratch starts from nothing, so the recipe needs an sft stage (or give model.base)")
        for stage, learns in (("reward", self.reward), ("direct", self.direct)):
            if learns and learns.data == "collect" and not self.collect:
                raise ValueError(
                    f"{stage}.data is `collect`, but the recipe has no collect stage: add it, or name a file"
                )
        for stage, config in (("ppo", self.ppo), ("evaluate", self.evaluate)):
            sources = (config.reward or ()) if config else ()
            if any(source.model == "reward" for source in sources) and not self.reward:
                raise ValueError(f"{stage}.reward uses the model `reward`, but the recipe has no reward stage")
        if self.ppo and self.ppo.policy == "direct" and not self.direct:
            raise ValueError("ppo.policy is `direct`, but the recipe has no direct stage: add it, or name a model")
        if self.evaluate and self.direct and not (self.evaluate.reward or self.ppo or self.reward):
            raise ValueError(
                "evaluate.reward is missing: the recipe has no ppo and no reward stage whose rewards could judge"
            )
        self._ensemble_fits()
        return self

    def _ensemble_fits(self) -> None:
        ensemble = self.reward.ensemble if self.reward else None
        if ensemble and ensemble.of == "adapters" and self.model.tune != "lora":
            raise ValueError("reward.ensemble of: adapters needs model.tune: lora; set it, or take of: heads")
        for stage, config in (("ppo", self.ppo), ("evaluate", self.evaluate)):
            own = [source for source in (config.reward or ()) if source.model == "reward"] if config else []
            if self.reward and not ensemble and any(source.combine for source in own):
                raise ValueError(
                    f"{stage}.reward combines the members of `reward`, which is one model; give reward.ensemble, or "
                    "leave combine out"
                )
        if ensemble and self.ppo and self.ppo.critic == "network":
            first = next((source.model for source in self.ppo.reward if source.model), None)
            if (self.ppo.critic_init or first) == "reward":
                raise ValueError(
                    "ppo.critic: network starts from one reward model, and `reward` is an ensemble; give critic_init "
                    "another, or take critic: head"
                )


def _limits(collect: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where collect's responses end, without how they are drawn."""
    sampling = given_keys(collect.get("sampling"))
    return sampling and {key: sampling[key] for key in ("max_new_tokens", "stop", "batch") if key in sampling}


def _fill(stage: dict[str, Any], key: str, source: Any) -> None:
    """Give the stage's record `key` those keys of `source` that it lacks; what is no record is left to validation."""
    inherited, own = given_keys(source), given_keys(stage.get(key, {}))
    if inherited and own is not None:
        stage[key] = inherited | own


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides; relative data paths start at the current directory.

    Raises UserError with one sentence for each thing that is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no recipe {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; give the recipe's YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should be a mapping of keys such as `name:`, `model:`, `sft:`")
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, str(path))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` (the value is read as YAML) inside a nested mapping, making levels as needed."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise UserError(f"--set {override!r} should look like ppo.kl.coef=0.1")
    node = tree
    for parent in parents:
        child = node.get(parent) or {}
        if not isinstance(child, dict):
            raise UserError(f"--set {key}: `{parent}` has no keys in the recipe, it is {child!r}; set all of it")
        node[parent] = dict(child)  # a copy: a YAML alias may share it with another key
        node = node[parent]
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {text!r} is not a YAML value; put it in quotes") from None


def parse_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe's tree; every fault becomes one line of a UserError."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        faults = error.errors()
        # Where a word may stand for a record, a fault inside the record is the one meant.
        meant = [fault for fault in faults if not any(str(part).startswith("literal[") for part in fault["loc"])]
        raise UserError(f"{where}: " + "; ".join(_sentence(fault) for fault in meant or faults)) from None


def _sentence(fault: Any) -> str:
    path = [part for part in map(str, fault["loc"]) if not part.startswith(_INTERNAL)]
    key = ".".join(path) or "the recipe"
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(path)
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
        return f"unknown key `{key}`; {hint}"
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    if fault["type"] == "model_type":
        return f"`{key}` should be a mapping of keys, not {fault['input']!r}"
    if fault["type"] == "value_error":
        return f"`{key}`: {fault['ctx']['error']}" if path else str(fault["ctx"]["error"])
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"`{key}`: {message}, not {fault['input']!r}"


def _keys_beside(path: Sequence[str]) -> list[str]:
    """The keys that are known where `path` ends, found by walking the recipe's types."""
    kinds: list[type[BaseModel]] = [Recipe]
    for part in path[:-1]:
        inner = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        if inner:
            kinds = [found for annotation in inner for found in _models_in(annotation)]
    return sorted({name for kind in kinds for name in kind.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
