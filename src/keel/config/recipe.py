"""The recipe: a YAML file, the user's whole interface to a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from keel.config.base import TOGETHER, Config, Function, contradictions_in, given_keys
from keel.config.collect import CollectConfig
from keel.config.data import is_reference
from keel.config.direct import DirectConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.faults import sentences_of
from keel.config.model import ModelConfig
from keel.config.parallel import ParallelConfig
from keel.config.ppo import PPOConfig
from keel.config.reward import RewardConfig
from keel.config.rewards import RewardSource
from keel.config.sft import SFTConfig
from keel.config.yaml_text import NoYaml, read_yaml
from keel.errors import UserError
from keel.runs.layout import STAGES

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_LARGEST = 2**20  # bytes of a recipe
_DATA = ("data", "prompts", "demonstrations")  # keys of sources, for which a path may stand


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

    def contradictions(self) -> Iterator[str]:
        if not any(getattr(self, stage) for stage in STAGES):
            yield f"the recipe names no stage: add at least one of {', '.join(STAGES)}"
        if self.model.scratch and not self.sft:
            yield "model.scratch starts from nothing, so the recipe needs an sft stage (or give model.base)"
        for stage, learns in (("reward", self.reward), ("direct", self.direct)):
            if learns and learns.data == "collect" and not self.collect:
                yield f"{stage}.data is `collect`, but the recipe has no collect stage: add it, or name a file"
        for stage, sources in self._judges().items():
            if any(source.model == "reward" for source in sources) and not self.reward:
                yield f"{stage}.reward uses the model `reward`, but the recipe has no reward stage"
        if self.ppo and self.ppo.policy == "direct" and not self.direct:
            yield "ppo.policy is `direct`, but the recipe has no direct stage: add it, or name a model"
        if self.evaluate and self.direct and not (self.evaluate.reward or self.ppo or self.reward):
            yield "evaluate.reward is missing: the recipe has no ppo and no reward stage whose rewards could judge"
        yield from self._ensemble_fits()

    def _judges(self) -> dict[str, tuple[RewardSource, ...]]:
        """What scores responses, by stage."""
        held_out = self.ppo.evaluate.judge if self.ppo else None
        return {
            "ppo": (*(self.ppo.reward if self.ppo else ()), *([held_out] if held_out else ())),
            "evaluate": (self.evaluate.reward or ()) if self.evaluate else (),
        }

    def _ensemble_fits(self) -> Iterator[str]:
        ensemble = self.reward.ensemble if self.reward else None
        if ensemble and ensemble.of == "adapters" and self.model.tune != "lora":
            yield "reward.ensemble of: adapters needs model.tune: lora; set it, or take of: heads"
        for stage, sources in self._judges().items():
            own = [source for source in sources if source.model == "reward"]
            if self.reward and not ensemble and any(source.combine for source in own):
                yield (
                    f"{stage}.reward combines the members of `reward`, which is one model; give reward.ensemble, or "
                    "leave combine out"
                )
        if ensemble and self.ppo and self.ppo.critic == "network":
            first = next((source.model for source in self.ppo.reward if source.model), None)
            if (self.ppo.critic_init or first) == "reward":
                yield (
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
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"there is no recipe {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; give the recipe's YAML file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > _LARGEST:
        raise UserError(f"{path} is larger than 1 MiB, so it is no recipe; name the data in it as files")
    try:
        tree = read_yaml(content.decode("utf-8-sig"))
    except (NoYaml, UnicodeDecodeError) as error:
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
            whole = "set all of it" + _whole(key, child, text)
            raise UserError(f"--set {key}: `{parent}` has no keys in the recipe, it is {child!r}; {whole}")
        node[parent] = dict(child)  # a copy: a YAML alias may share it with another key
        node = node[parent]
    try:
        node[last] = read_yaml(text)
    except NoYaml:
        raise UserError(f"--set {key}: {text!r} is not a YAML value; put it in quotes") from None


def _whole(key: str, child: Any, text: str) -> str:
    """How to set a key of a source of data that is given by its path alone; empty for anything else."""
    source, _, last = key.rpartition(".")
    if not isinstance(child, str) or source.rpartition(".")[2] not in _DATA:
        return ""
    kind = "function" if is_reference(child) else "path"
    return f": --set {shlex.quote(f'{source}={{{kind}: {child}, {last}: {text}}}')}"


def parse_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe's tree; every fault becomes one part of a UserError's line.

    First what is no recipe (unknown keys, wrong types, values out of range), then all contradictions in what is one.
    """
    try:
        recipe = Recipe.model_validate(tree, context=TOGETHER)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(sentences_of(error, Recipe))) from None
    found = [f"`{key}`: {sentence}" if key else sentence for key, sentence in contradictions_in(recipe)]
    if found:
        raise UserError(f"{where}: " + "; ".join(dict.fromkeys(found)))
    return recipe
