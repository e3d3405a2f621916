"""`keel run --smoke`: two steps of every stage on the real models and data, to see memory and time before the wait.

Batches, lengths and models are those of the recipe; only the rows are few, so that it ends in time. Everything is
written into a temporary directory and gone afterwards.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keel.build import load_renderer, run_recipe
from keel.build.forecast import (
    Forecast,
    Measured,
    collect_forecast,
    epochs_forecast,
    evaluate_forecast,
    ppo_forecast,
    shrinkage,
)
from keel.build.objectives import judged_on, learned_from
from keel.config.collect import AnnotatorConfig, CollectConfig
from keel.config.data import DataConfig, limited, sources_of
from keel.config.direct import DirectConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.recipe import Recipe
from keel.config.reward import RewardConfig
from keel.config.sampling import SamplingConfig
from keel.config.training import TrainingConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, KINDS, PROMPTS
from keel.data.held_out import require_held_out
from keel.data.load import Loaded, labels_or_comparisons, load, load_mixed
from keel.data.mix import Mixture
from keel.models.kernels import release_freed_buffers
from keel.models.load import resolve_device
from keel.runs.callbacks import Callback, StageInfo
from keel.runs.console import Console
from keel.seeds import Draws

_STEPS = 2
_ROWS = 2000  # of a data set, more where two batches need more
_SLOW = 15.0  # seconds of a stage after which one step must do


def smoke(recipe: Recipe, console: Console) -> list[Forecast]:
    """Run two steps of each stage and say what the whole will take, a stage each.

    Raises UserError for whatever would stop the recipe itself that early.
    """
    require_held_out(recipe)
    watch = Watch(console, torch.device(resolve_device(recipe.device)))
    small = shrunk(recipe)
    with tempfile.TemporaryDirectory(prefix="keel-smoke-") as folder:
        run_recipe(small, Path(folder) / "run", console=watch, callbacks=[watch])
        prompt, expected, sampled = _lengths(recipe, small, watch.measured, Path(folder) / "run")
    shrink = shrinkage(prompt, expected, sampled)
    if shrink < 1:
        console.say(
            f"Not known: how long responses will be. Taken are {expected:.0f} tokens, as in the demonstrations; after "
            f"two steps the model still wrote {sampled:.0f}."
        )
    elif sampled is not None:
        console.say(f"Not known: how long responses will be. Taken are {sampled:.0f} tokens, as they were now.")
    return _forecasts(recipe, small, watch.measured, shrink)


class Watch(Callback):
    """Takes the time and the peak of memory, passes on what is said, and ends each stage early."""

    def __init__(self, console: Console, device: torch.device) -> None:
        self.measured: dict[str, Measured] = {}
        self._console = console
        self._device = device
        self._begun = 0.0

    def on_begin(self, stage: StageInfo) -> None:
        self.measured[stage.name] = Measured()
        self._begun = time.perf_counter()
        reset_peak(self._device)

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        self.measured[stage.name].lines.append(dict(metrics))
        slow = time.perf_counter() - self._begun > _SLOW
        if slow and step == 1:
            self._console.say(f"{stage.name}: slow, so one step must do.")
        return step >= _STEPS or (slow and step >= 1)

    def on_end(self, stage: StageInfo, summary: Mapping[str, Any]) -> None:
        measured = self.measured[stage.name]
        measured.seconds = time.perf_counter() - self._begun
        measured.peak_bytes = peak(self._device)
        measured.summary = summary

    def say(self, text: str) -> None:
        if "a callback asked for it" not in text:  # it was this one
            self._console.say(text)

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if stage in self.measured:  # not what a stage does before its steps
            self.measured[stage].marks[done] = time.perf_counter()
        self._console.progress(stage, done, total, numbers)

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        """Nothing: a model of two steps has nothing to say."""


def reset_peak(device: torch.device) -> None:
    """Start to look for the peak anew; where the system cannot, the peak is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    release_freed_buffers()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak(device: torch.device) -> int:
    """Bytes at the peak: allocated on a CUDA device, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return high if sys.platform == "darwin" else high * 1024


def nobody(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """To whom all responses are the same; who compares them by it tosses a coin."""
    return [0.0] * len(responses)


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe with few rows, few samples beyond the steps, and nothing that would stop or report it."""
    changes: dict[str, Any] = {"loggers": (), "callbacks": ()}
    if recipe.sft:
        changes["sft"] = _few_rows(recipe.sft, "data").model_copy(update={"validate_every": 1})
    if recipe.collect:
        count = _prompts_of_two_batches(recipe.collect.sampling, recipe.collect.per_prompt)
        collect = recipe.collect.model_copy(update={"prompts": limited(recipe.collect.prompts, count)})
        if collect.annotator.people is not None:  # who are not to be asked for this
            collect = collect.model_copy(update={"annotator": AnnotatorConfig(script=f"{__name__}:nobody")})
        changes["collect"] = collect
    if recipe.reward:
        config = recipe.reward if recipe.reward.data == "collect" else _few_rows(recipe.reward, "data")
        samples = min(config.normalise_samples, config.normalise_sampling.batch)
        # epochs enough for two steps, however few the comparisons are
        more = {"validate_every": 1, "normalise_samples": samples, "epochs": max(config.epochs, _STEPS * config.batch)}
        changes["reward"] = config.model_copy(update=more)
    if recipe.direct:
        config = recipe.direct if recipe.direct.data == "collect" else _few_rows(recipe.direct, "data")
        more = {"validate_every": 1, "epochs": max(config.epochs, _STEPS * config.batch)}
        changes["direct"] = config.model_copy(update=more)
    if recipe.ppo:
        limit = max(_ROWS, 4 * recipe.ppo.rollout_batch)
        changes["ppo"] = recipe.ppo.model_copy(
            update={
                "prompts": limited(recipe.ppo.prompts, limit),
                "max_truncated": 1.0,  # a model of two steps may not know yet how to end
                "final": "last",
            }
        )
    if recipe.evaluate:
        changes["evaluate"] = _small_evaluation(recipe.evaluate)
    return recipe.model_copy(update=changes)


def _few_rows(config: TrainingConfig, key: str) -> Any:
    return config.model_copy(update={key: limited(getattr(config, key), max(_ROWS, 4 * config.batch))})


def _prompts_of_two_batches(sampling: SamplingConfig, per_prompt: int) -> int:
    return max(2, math.ceil(2 * sampling.batch / per_prompt))


def _small_evaluation(config: EvaluateConfig) -> EvaluateConfig:
    count = min(config.count, math.ceil(config.sampling.batch / config.per_prompt))
    samples = min(config.frontier_samples, 2 * config.sampling.batch)
    prompts = min(config.frontier_prompts, count, max(1, 2 * config.sampling.batch // samples))
    return config.model_copy(
        update={"count": count, "frontier_samples": samples, "frontier_prompts": prompts, "bootstrap": 10}
    )


def _lengths(
    recipe: Recipe, small: Recipe, measured: Mapping[str, Measured], run: Path
) -> tuple[float, float | None, float | None]:
    """Mean tokens of a prompt, of a demonstration's response, and of the responses that were sampled."""
    stage = small.ppo or small.collect
    sampled = None
    if "ppo" in measured:
        sampled = measured["ppo"].lines[0]["eval/length"]
    elif "evaluate" in measured:
        sampled = measured["evaluate"].summary["reference"]["length"]
    if recipe.sft is None or stage is None:
        return 0.0, None, sampled
    renderer = load_renderer(str(run / "sft" / "model"), chat_template=recipe.model.chat_template)
    prompts = load_mixed(stage.prompts, PROMPTS).train[:200]
    prompt = sum(renderer.length(row.record) for row in prompts) / len(prompts)
    summary = measured["sft"].summary
    return prompt, min(summary["response_tokens"] / summary["rows"], stage.sampling.max_new_tokens), sampled


def _forecasts(recipe: Recipe, small: Recipe, measured: Mapping[str, Measured], shrink: float) -> list[Forecast]:
    """One a stage, in order; the rows of the whole data are counted here."""
    found: list[Forecast] = []
    if recipe.sft:
        loaded = load_mixed(recipe.sft.data, DEMONSTRATIONS)
        found.append(
            epochs_forecast(
                "sft",
                measured["sft"],
                steps=math.ceil(loaded.mixture.epoch_size * recipe.sft.epochs / recipe.sft.batch),
                validate_every=recipe.sft.validate_every,
                validation_scale=len(loaded.validation) / max(1, measured["sft"].summary["validation_rows"]),
            )
        )
    if recipe.collect:
        assert small.collect is not None
        prompts = _count_prompts(recipe.collect.prompts)
        few = measured["collect"].summary["prompts"]
        found.append(collect_forecast(measured["collect"], measured_prompts=few, prompts=prompts, shrink=shrink))
    if recipe.reward:
        assert small.reward is not None
        found.append(_reward_forecast(recipe, small.reward, measured, shrink))
    if recipe.direct:
        found.append(_direct_forecast(recipe, measured["direct"], shrink))
    if recipe.ppo:
        found.append(ppo_forecast(recipe.ppo, measured["ppo"], shrink))
    if recipe.evaluate:
        assert small.evaluate is not None
        prompts = _count_prompts(recipe.evaluate.prompts)
        found.append(
            evaluate_forecast(recipe.evaluate, small.evaluate, measured["evaluate"], prompts=prompts, shrink=shrink)
        )
    return found


def _reward_forecast(recipe: Recipe, small: RewardConfig, measured: Mapping[str, Measured], shrink: float) -> Forecast:
    config = recipe.reward
    assert config is not None
    sampled = config.data == "collect"
    if config.data != "collect":
        loaded = load_mixed(config.data, KINDS[config.reads])
        draws = Draws(recipe.seed, "reward")
        learned = learned_from(config, loaded.train, draws)
        of_a_prompt = Counter((row.source, repr(row.record.prompt)) for row in learned)
        held_out = len(judged_on(config, loaded.validation, draws))
        sizes = [0] * len(loaded.weights)
        for (source, _), count in of_a_prompt.items():
            sizes[source] += math.ceil(count / config.max_pairs)
        groups = Mixture(tuple(sizes), loaded.weights).epoch_size
    else:
        groups, _, held_out = _collected(recipe.collect, config.max_pairs)
    left_out = config.normalise_samples - small.normalise_samples
    return epochs_forecast(
        "reward",
        measured["reward"],
        steps=math.ceil(groups * config.epochs / config.batch),
        validate_every=config.validate_every,
        validation_scale=held_out / max(1, measured["reward"].summary["validation_judgements"]),
        shrink=shrink if sampled else 1.0,
        more_seconds=left_out * _seconds_a_response(recipe, measured) * shrink,
    )


def _direct_forecast(recipe: Recipe, measured: Measured, shrink: float) -> Forecast:
    config = recipe.direct
    assert config is not None
    found, few = _groups(recipe, config), measured.summary
    shrink = shrink if config.data == "collect" else 1.0
    # the reference looks at every row once, as a validation does at those held out
    a_row = measured.lines[-1].get("time/validation_seconds", 0.0) / max(1, few["validation_rows"])
    left_out = found.rows + found.held_out - few["rows"] - few["validation_rows"]
    return epochs_forecast(
        "direct",
        measured,
        steps=math.ceil(found.groups * config.epochs / config.batch),
        validate_every=config.validate_every,
        validation_scale=found.held_out / max(1, few["validation_rows"]),
        shrink=shrink,
        more_seconds=left_out * a_row * shrink if config.method.reference else 0.0,
    )


@dataclass(frozen=True)
class _Groups:
    """What a stage will learn from: groups an epoch, what they are made of, and what is held out."""

    groups: int
    rows: int
    held_out: int


def _groups(recipe: Recipe, config: RewardConfig | DirectConfig) -> _Groups:
    """Of comparisons; of a method that takes single responses, those of each comparison."""
    single = isinstance(config, DirectConfig) and not config.method.pairs
    if config.data == "collect":
        groups, rows, held_out = _collected(recipe.collect, config.max_pairs)
        return _Groups(groups, 2 * rows, 2 * held_out) if single else _Groups(groups, rows, held_out)
    kinds = [labels_or_comparisons(data) if single else COMPARISONS for data in sources_of(config.data)]
    loaded: list[Loaded[Any]] = [load(data, kind) for data, kind in zip(sources_of(config.data), kinds, strict=True)]
    each = [2 if single and kind is COMPARISONS else 1 for kind in kinds]
    sizes = [
        sum(math.ceil(count * size / config.max_pairs) for count in Counter(repr(r.prompt) for r in one.train).values())
        for one, size in zip(loaded, each, strict=True)
    ]
    weights = tuple(data.weight for data in sources_of(config.data))
    return _Groups(
        Mixture(tuple(sizes), weights).epoch_size,
        sum(len(one.train) * size for one, size in zip(loaded, each, strict=True)),
        sum(len(one.validation) * size for one, size in zip(loaded, each, strict=True)),
    )


def _collected(config: CollectConfig | None, max_pairs: int) -> tuple[int, int, int]:
    """Groups of comparisons to train on, their pairs, and held-out pairs that the collect stage will give."""
    assert config is not None
    prompts, share = _count_prompts(config.prompts), DataConfig.model_fields["validation"].default
    pairs = math.comb(config.per_prompt, 2)
    trained = round(prompts * (1 - share))
    return trained * math.ceil(pairs / max_pairs), trained * pairs, round(prompts * share * pairs)


def _seconds_a_response(recipe: Recipe, measured: Mapping[str, Measured]) -> float:
    """Sampling and scoring, by whichever stage does it."""
    if recipe.collect:
        marks, prompts = measured["collect"].marks, int(measured["collect"].summary["prompts"])
        return (marks[max(marks)] - marks[0]) / (prompts * recipe.collect.per_prompt)
    if recipe.ppo:
        line = measured["ppo"].lines[-1]
        return (line["time/sampling_seconds"] + line["time/scoring_seconds"]) / recipe.ppo.rollout_batch
    return 0.0


def _count_prompts(data: DataConfig | tuple[DataConfig, ...]) -> int:
    return load_mixed(data, PROMPTS).whole().mixture.epoch_size
