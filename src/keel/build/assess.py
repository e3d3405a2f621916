"""The assessment of a reward: a run's reward model on what its stage held out, or any reward on data of your own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from keel.adapter_config import members_of
from keel.build.conversation import load_policy, load_reward
from keel.build.rewards import function_scorer, service_scorer
from keel.build.workbench import Fits, left_out, load_renderer
from keel.config.data import DataConfig
from keel.config.recipe import parse_recipe
from keel.config.reward import RewardConfig
from keel.config.rewards import RewardSource
from keel.config.sampling import SamplingConfig
from keel.data.convert import KINDS, Kind
from keel.data.judgements import told_apart
from keel.data.load import Mixed, feedback_kind, load
from keel.data.reasons import Reason
from keel.engines.base import Scorer
from keel.engines.sampler import make_sampler
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.inputs import Inputs, stage_inputs
from keel.models.export import NORMALISATION_FILE
from keel.models.load import context_length, resolve_precision
from keel.models.quiet import quiet_transformers
from keel.pipeline.assess import Judge, Reference, assess, item_of
from keel.runs.console import Console
from keel.runs.read import read_run
from keel.schema import AnyRecord, Comparison, Label, Prompt, Ranking, Rating
from keel.seeds import Draws

Keeps = Callable[[AnyRecord], bool]
_LONGEST = 10**9  # tokens, of a model that states no limit
_ROUNDING = {torch.float32: 1e-3}  # of the scores' sd, that company may make to a score
_COARSE = 5e-2  # the same in a lower precision


@dataclass(frozen=True)
class Asked:
    """What is to be assessed, on what, and beside which model's replies."""

    reward: RewardSource
    data: tuple[DataConfig, ...]
    reference: str | None = None
    prompts: DataConfig | None = None  # those of the data unless given
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # the reference's
    samples: int = 128  # prompts that replies and probes are scored for
    seed: int = 0
    device: str = "auto"
    run: Path | None = None  # whose reward stage it is: then what that held out, unless there are data


def assess_reward(asked: Asked, console: Console) -> dict[str, Any]:
    """The assessment (docs/metrics.md). Raises UserError for whatever the user can mend."""
    draws = Draws(asked.seed, "assess")
    with ExitStack() as closing, quiet_transformers():  # its warning of texts beyond the context: those are left out
        judge = load_judged(asked.reward, asked.device, console.say, closing)
        data = _data(asked, judge.scorer, console)
        pairs, ties = told_apart(data.train, draws)
        if not pairs:
            raise UserError("the data make no pair of which one is better, so there is nothing to be right about")
        if not _is_held_out(asked):  # a tie that was read as no record is on neither side of a split
            ties += sum(loaded.check.counts.get(Reason.TIE, 0) for _, loaded in data.sources)
        prompts = list({pair.record.prompt: Prompt(pair.record.prompt) for pair in pairs}.values())
        if asked.prompts is not None:
            prompts = list(load(asked.prompts, KINDS["prompts"]).train)
        reference = _reference(asked, prompts, console) if asked.reference is not None else None
        names = [config.name for config, _ in data.sources]
        found = assess(judge, pairs, names, reference, samples=asked.samples, draws=draws, console=console)
    return {
        "source": _source(asked),
        "data": names,
        "held_out": _is_held_out(asked),
        "ties_left_out": ties,
        **found,
        "calibration": found["calibration"] if asked.reward.model is not None else None,
    }


def of_run(path: Path, **settings: Any) -> Asked:
    """The reward model of a run, beside its reference. Raises UserError where it is not finished."""
    stage = read_run(path).stages.get("reward")
    if stage is None or not stage.finished:
        raise UserError(f"{path} has no finished reward stage, so there is no reward model to evaluate in it yet")
    config, inputs = _reward_stage(path)
    known: dict[str, Any] = {"reference": inputs.models["reference"], "sampling": config.normalise_sampling}
    return Asked(RewardSource(model=str(path / "reward" / "model")), run=path, **known | settings)


def is_of(found: Mapping[str, Any], asked: Asked) -> bool:
    """Whether an assessment is of the reward that is asked for, and on the same data."""
    same = Path(str(found.get("source"))).resolve() == Path(_source(asked)).resolve()
    on = _is_held_out(asked) or [data.name for data in asked.data] == found.get("data")
    return same and on and found.get("held_out") == _is_held_out(asked)


def _source(asked: Asked) -> str:
    return str(asked.reward.model or asked.reward.function or ", ".join(asked.reward.service or ()))


def _reward_stage(path: Path) -> tuple[RewardConfig, Inputs]:
    """How a run's reward model was made, and from what."""
    recipe = parse_recipe(read_run(path).recipe, str(path / "recipe.json"))
    assert recipe.reward is not None
    return recipe.reward, stage_inputs(recipe, path, "reward")


def load_judged(reward: RewardSource, device: str, say: Callable[[str], None], closing: ExitStack) -> Judge:
    """A reward that reads texts. What has to be ended is ended with `closing`."""
    if reward.function is not None:
        return Judge(function_scorer(reward, say, closing))
    if reward.service is not None:
        return Judge(service_scorer(reward, closing))
    scorer = load_reward(reward, device, say=say)
    dtype = resolve_precision("auto", scorer.model.device)
    whole = partial(scorer.has_room, whole=True)
    return Judge(scorer, normalisation_scale(str(reward.model)), _ROUNDING.get(dtype, _COARSE), whole)


def normalisation_scale(source: str) -> float:
    """What the scores of a model that Keel trained were divided by; 1 for any other."""
    file = Path(members_of(source)[0]) / NORMALISATION_FILE
    return float(json.loads(file.read_text(encoding="utf-8"))["scale"]) if file.is_file() else 1.0


def _is_held_out(asked: Asked) -> bool:
    """Whether it is judged on what its own stage held out."""
    return asked.run is not None and not asked.data


def _data(asked: Asked, scorer: Scorer, console: Console) -> Mixed[Any]:
    """The judgements, all to be judged: those that are given, else what the run's reward stage held out."""
    if _is_held_out(asked):
        return _held_out(Path(str(asked.run)), str(asked.reward.model), console)
    fits = _whole(scorer) if isinstance(scorer, RewardModelScorer) else None
    return Mixed(tuple(_load(data, feedback_kind(data), fits, console) for data in asked.data)).whole()


def _load(data: DataConfig, kind: Kind[Any], fits: Keeps | None, console: Console) -> tuple[DataConfig, Any]:
    loaded = load(data, kind, fits)
    if loaded.check.left_out:
        console.say(left_out(data, loaded.check))
    return data, loaded


def _held_out(path: Path, model: str, console: Console) -> Mixed[Any]:
    config, inputs = _reward_stage(path)
    limit = context_length(inputs.models["init"]) or _LONGEST
    fits = Fits(load_renderer(members_of(model)[0]), min(config.max_tokens, limit), config.long_prompts)
    parts = [_load(data, KINDS[config.reads], fits, console) for data in inputs.sources("reward.data")]
    held_out = Mixed(tuple((data, _swapped(loaded)) for data, loaded in parts))
    if not held_out.train:
        raise UserError(f"the reward stage of {path} held nothing out; give comparisons it has not seen with --data")
    return held_out


def _swapped(loaded: Any) -> Any:
    """What was held out in the place of what was trained on; ties were left out of both."""
    return replace(loaded, train=loaded.validation, validation=())


def _whole(scorer: RewardModelScorer) -> Keeps:
    """Whether a record's responses are read whole; the beginning of a prompt may be cut off."""

    def fits(row: AnyRecord) -> bool:
        if isinstance(row, Comparison):
            responses: Sequence[str] = (row.chosen, row.rejected)
        elif isinstance(row, Ranking):
            responses = row.responses
        else:
            assert isinstance(row, Rating | Label)
            responses = (row.response,)
        return all(scorer.has_room(item_of(row.prompt, {}), response) for response in responses)

    return fits


def _reference(asked: Asked, prompts: Sequence[Prompt], console: Console) -> Reference:
    """The model, with the prompts that leave room for a response."""
    source = str(asked.reference)
    renderer = load_renderer(source)
    room = (context_length(source) or _LONGEST) - asked.sampling.max_new_tokens
    fits = Fits(renderer, room, "drop")
    kept = [prompt for prompt in prompts if fits(prompt)]
    if not kept:
        raise UserError(
            f"no prompt leaves room for {asked.sampling.max_new_tokens} new tokens in the context of {source}; lower "
            "--max-new-tokens"
        )
    if len(kept) < len(prompts):
        console.say(f"{len(prompts) - len(kept)} of {len(prompts)} prompts are too long for {source} to reply to.")
    sampler = make_sampler(load_policy(source, asked.device), renderer, say=console.say)
    return Reference(sampler, [renderer.item(prompt) for prompt in kept], asked.sampling)
