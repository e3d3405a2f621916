"""What each stage reads (data, models, the user's functions), and so what makes it the same stage. No torch."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keel
from keel.adapter_config import adapter_base
from keel.config.data import DataConfig, Sources
from keel.config.recipe import Recipe
from keel.config.rewards import RewardSource
from keel.data.files import data_files
from keel.errors import UserError
from keel.references import resolve
from keel.runs.identity import Identity, flatten, hash_directory, hash_file

# settings that leave the result as it is
_NO_EFFECT = {
    *("checkpoint_every", "keep_checkpoints", "gradient_checkpointing", "workers", "timeout", "on_error"),
    *("token_env", "max_in_flight", "retries", "max_logprob_gap", "max_staleness", "skip_faults", "alarm_after"),
    *("database", "wait", "enough"),  # how long people are waited for
}
# rewards have a part of their own, servers may move
_ELSEWHERE: Any = {"reward": True, "servers": {"urls"}, "evaluate": {"judge"}}
COMPARISONS = "comparisons"  # the collect stage's artefact
COMPARISONS_FILE = "comparisons.jsonl"


@dataclass(frozen=True)
class Inputs:
    """Everything a stage reads, by the key it is called in messages."""

    data: Mapping[str, DataConfig] = field(default_factory=dict)  # of several sources of a key: KEY[0], KEY[1], …
    models: Mapping[str, str] = field(default_factory=dict)  # a directory or a hub name
    functions: Mapping[str, str] = field(default_factory=dict)  # module:function
    rewards: tuple[RewardSource, ...] = ()  # named, and with a model that is a directory or a hub name
    judge: RewardSource | None = None  # likewise, and not trained on

    def sources(self, key: str) -> tuple[DataConfig, ...]:
        """The sources of data that a key names: none, one, or several."""
        return tuple(data for name, data in self.data.items() if name.partition("[")[0] == key)


def stage_inputs(recipe: Recipe, run: Path, stage: str) -> Inputs:
    """The inputs of one stage of the recipe, for the run in directory `run`."""
    return _INPUTS[stage](recipe, run)


def stage_identity(recipe: Recipe, stage: str, inputs: Inputs) -> Identity:
    """Settings and hashes of inputs. Raises UserError for a path that is not there."""
    config = getattr(recipe, stage)
    settings: dict[str, Any] = {stage: config.model_dump(mode="json", exclude=_ELSEWHERE), "seed": recipe.seed}
    settings["rewards"] = {source.logged_as: _effects(source) for source in inputs.rewards}  # evaluate may use ppo's
    if inputs.judge is not None:
        settings["judge"] = _effects(inputs.judge)
    template = recipe.model.chat_template
    settings["model"] = _model_settings(recipe, stage)
    kept = {key: value for key, value in flatten(settings).items() if key.rsplit(".", 1)[-1] not in _NO_EFFECT}
    scorers = {f"reward {source.logged_as}": source for source in inputs.rewards}
    scorers |= {"evaluate.judge": inputs.judge} if inputs.judge is not None else {}
    rewards = {key: source.model for key, source in scorers.items() if source.model}
    functions = dict(inputs.functions) | {key: source.function for key, source in scorers.items() if source.function}
    templates = {"chat_template": template}
    templates |= {f"template of {key.removeprefix('reward ')}": source.template for key, source in scorers.items()}
    hashes = {key: _hash_data(data) for key, data in inputs.data.items()}
    hashes |= {key: hash_model(source) for key, source in {**inputs.models, **rewards}.items()}
    hashes |= {key: _hash_function(reference) for key, reference in functions.items()}
    hashes |= {key: hash_file(Path(file)) for key, file in templates.items() if Path(file).is_file()}
    return Identity(config=kept, inputs=hashes)


def _model_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What of `model:` decides a stage's result; where a later stage's model comes from stands in its inputs."""
    without = set() if stage == "sft" else {"base", "scratch"}
    if stage in ("collect", "evaluate") or (stage == "sft" and recipe.model.scratch):
        without |= {"tune", "lora"}
    return recipe.model.model_dump(mode="json", exclude=without)


def _effects(source: RewardSource) -> dict[str, Any]:
    """What a reward is besides its name; where its model lies plays no part."""
    return source.model_dump(mode="json", exclude={"name", "model"}, exclude_none=True)


def start_model(recipe: Recipe, run: Path) -> str:
    """The model before any feedback: the supervised stage's, else the base."""
    return str(run / "sft" / "model") if recipe.sft else str(recipe.model.base)


def _model(recipe: Recipe, run: Path, name: str | None, default: str) -> str:
    """A model's name in a recipe: a stage of it (`sft`, `reward`, `direct`, `ppo`), a path, or a hub name."""
    if name is None:
        return default
    if name in ("sft", "reward", "direct", "ppo") and getattr(recipe, name) is not None:
        return str(run / name / "model")
    return name


def _named(key: str, data: DataConfig | tuple[DataConfig, ...]) -> dict[str, DataConfig]:
    if isinstance(data, DataConfig):
        return {key: data}
    return {f"{key}[{number}]": source for number, source in enumerate(data)}


def _sft(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.sft
    scratch = recipe.model.scratch
    models = {"base": recipe.model.base, "tokenizer": scratch.tokenizer if scratch else None}
    named = {key: name for key, name in models.items() if name}
    return Inputs(data=_named("sft.data", recipe.sft.data), models=named)


def _collect(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.collect
    function = recipe.collect.annotator.script or recipe.collect.annotator.factory
    return Inputs(
        data=_named("collect.prompts", recipe.collect.prompts),
        models={"policy": _model(recipe, run, recipe.collect.policy, start_model(recipe, run))},
        functions={"annotator": function} if function else {},
    )


def _reward(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.reward
    start = start_model(recipe, run)
    models = {"init": _model(recipe, run, recipe.reward.init, start), "reference": start}
    return Inputs(data=_named("reward.data", _or_collected(recipe.reward.data, run)), models=models)


def _or_collected(data: Sources | Literal["collect"], run: Path) -> Sources:
    return DataConfig(path=str(run / "collect" / COMPARISONS / COMPARISONS_FILE)) if data == "collect" else data


def _direct(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.direct
    policy = _model(recipe, run, recipe.direct.policy, start_model(recipe, run))
    reference = {}
    if recipe.direct.method.reference:
        reference = {"reference": _model(recipe, run, recipe.direct.reference, policy)}
    return Inputs(
        data=_named("direct.data", _or_collected(recipe.direct.data, run)), models={"policy": policy} | reference
    )


def _ppo(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.ppo
    held_out = recipe.ppo.evaluate
    policy = _model(recipe, run, recipe.ppo.policy, start_model(recipe, run))
    critic = {}
    if recipe.ppo.critic == "network":
        name = recipe.ppo.critic_init or next(source.model for source in recipe.ppo.reward if source.model)
        critic = {"critic": _model(recipe, run, name, "")}
    return Inputs(
        data=_named("ppo.prompts", recipe.ppo.prompts)
        | (_named("ppo.evaluate.prompts", held_out.prompts) if held_out.prompts else {}),
        models={"policy": policy, "reference": _model(recipe, run, recipe.ppo.reference, policy)} | critic,
        functions={"utility": held_out.utility} if held_out.utility else {},
        rewards=_rewards(recipe, run, recipe.ppo.reward),
        judge=None if held_out.judge is None else _rewards(recipe, run, (held_out.judge,))[0],
    )


def _evaluate(recipe: Recipe, run: Path) -> Inputs:
    assert recipe.evaluate
    config = recipe.evaluate
    judged = config.policy or next((stage for stage in ("ppo", "direct") if getattr(recipe, stage)), None)
    if judged is None:
        raise UserError(
            "evaluate.policy is missing: the recipe has no ppo and no direct stage, so name the model to be judged"
        )
    rewards = config.reward or (recipe.ppo.reward if recipe.ppo else (RewardSource(model="reward"),))
    if any(source.model == "reward" for source in rewards) and not recipe.reward:
        raise UserError("evaluate.reward is missing: the recipe has no reward stage, so name the reward that judges")
    return Inputs(
        data=_named("evaluate.prompts", config.prompts)
        | (_named("evaluate.demonstrations", config.demonstrations) if config.demonstrations else {}),
        models={
            "policy": _model(recipe, run, judged, ""),
            "reference": _model(recipe, run, config.reference, _start_of(recipe, run, judged)),
        },
        functions=({"utility": config.utility} if config.utility else {})
        | {f"measure {name}": function for name, function in config.measures.items()},
        rewards=_rewards(recipe, run, rewards),
    )


def _start_of(recipe: Recipe, run: Path, judged: str) -> str:
    """What a policy is compared with: the reference of the stage that made it, ppo's for one from elsewhere."""
    if recipe.direct and (judged == "direct" or not recipe.ppo):
        models = _direct(recipe, run).models
        return models.get("reference", models["policy"])
    return _ppo(recipe, run).models["reference"] if recipe.ppo else start_model(recipe, run)


def _rewards(recipe: Recipe, run: Path, sources: tuple[RewardSource, ...]) -> tuple[RewardSource, ...]:
    return tuple(
        one.model_copy(update={"name": one.logged_as, "model": one.model and _model(recipe, run, one.model, "")})
        for one in sources
    )


_INPUTS: Mapping[str, Callable[[Recipe, Path], Inputs]] = {
    "sft": _sft,
    "collect": _collect,
    "reward": _reward,
    "direct": _direct,
    "ppo": _ppo,
    "evaluate": _evaluate,
}


def _hash_data(data: DataConfig) -> str:
    source = _hash_function(data.function) if data.function is not None else _hash_path(data)
    return source if data.map is None else f"{source} through {_hash_function(data.map)}"


def _hash_path(data: DataConfig) -> str:
    """Of several files the names count too: they say which rows come first, and `file` is a column."""
    files = data_files(data.name)
    if files is None:
        return f"hub:{data.path}:{data.split}"
    if files == [Path(data.name).expanduser()]:
        return hash_file(files[0])
    listing = "".join(f"{file.name} {hash_file(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _hash_function(reference: str) -> str:
    """The source file of the function's module, or in a notebook its own source; Keel's change with its version."""
    function = resolve(reference)
    module = function.__module__
    if module.split(".")[0] == "keel":
        return f"keel {keel.__version__}"
    file = getattr(sys.modules.get(module), "__file__", None)
    if file:
        return hash_file(Path(file))
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return f"module {module}"


def hash_model(source: str) -> str:
    """A directory's contents, and those of an adapter's base; a hub name stands for itself.

    Raises UserError for a path where nothing is.
    """
    path = Path(source)
    if path.is_dir():
        own, base = hash_directory(path), adapter_base(source)
        return own if base is None else f"{own} on {hash_model(base)}"
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise UserError(f"there is no model directory {source}; give a directory or a hub name such as owner/name")
    return f"hub:{source}"
