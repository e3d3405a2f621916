"""Keel from Python: the whole line, and each stage as a function of a typed config, a model and a directory.

Nothing here needs YAML. Functions may be given as they are where a recipe names them `module:function`. A stage that is
called again with the same arguments and the same `out` is not done again; interrupted, it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.build import run_recipe
from keel.config.collect import CollectConfig
from keel.config.direct import DirectConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.model import ModelConfig
from keel.config.ppo import PPOConfig
from keel.config.recipe import Recipe, load_recipe, parse_recipe
from keel.config.reward import RewardConfig
from keel.config.sft import SFTConfig
from keel.inputs import COMPARISONS, COMPARISONS_FILE
from keel.runs import files
from keel.runs.callbacks import Callback
from keel.runs.console import Console, SilentConsole
from keel.runs.layout import DONE, METRICS, SAMPLES, STAGES
from keel.runs.metrics import read_lines

Model = ModelConfig | str | Path
"""A model to start from: how it is made or tuned, or just where it lies (a directory or a hub name)."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its directory and its summary (docs/metrics.md explains every key)."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The directory of the trained model (sft, reward, direct, ppo)."""
        return self.path / "model"

    @property
    def comparisons(self) -> Path:
        """The file of comparisons (collect)."""
        return self.path / COMPARISONS / COMPARISONS_FILE

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; what was not finite is None."""
        return read_lines(self.path / METRICS)

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl: responses as they came."""
        return read_lines(self.path / SAMPLES)


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    set: Sequence[str] = (),
    reuse: str | Path | None = None,
    fresh_from: str | None = None,
    fork: str | None = None,
    extend: bool = False,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> dict[str, StageResult]:
    """Walk a recipe (a record, a mapping, or a file with `set` overrides) as `keel run` does; the stages by name.

    `out` is runs/NAME unless given. Raises UserError for whatever the user can mend.
    """
    if isinstance(recipe, str | Path):
        recipe = load_recipe(Path(recipe), set)
    elif set:
        raise ValueError(f"set={list(set)} changes a recipe's file; change the record itself")
    elif isinstance(recipe, Mapping):
        recipe = parse_recipe(recipe, "the recipe")
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    run_recipe(
        recipe,
        folder,
        console=console or SilentConsole(),
        reuse=None if reuse is None else Path(reuse),
        fresh_from=fresh_from,
        fork=fork,
        extend=extend,
        callbacks=callbacks,
    )
    return {name: _result(folder / name) for name in STAGES if getattr(recipe, name) is not None}


def sft(config: SFTConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """Supervised fine-tuning of `model`, in `out`/sft.

    Options of every stage: `seed` (0), `device` ("auto"), `callbacks` and `console`.
    """
    return _stage("sft", config, model, out, **options)


def collect(config: CollectConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """Sample responses of `model` and have them compared, in `out`/collect; see `StageResult.comparisons`."""
    return _stage("collect", config, model, out, **options)


def train_reward(config: RewardConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """A reward model that starts from the body of `model`, trained on `config.data`, in `out`/reward."""
    return _stage("reward", config, model, out, **options)


def direct(config: DirectConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """DPO or one of its kin (`config.kind`) on `config.data`: starts from `model`, its reference too; `out`/direct."""
    return _stage("direct", config, model, out, **options)


def ppo(config: PPOConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """PPO that starts from `model`, which is the leash's reference too unless the config names another; `out`/ppo."""
    return _stage("ppo", config, model, out, **options)


def evaluate(config: EvaluateConfig, *, model: Model, out: str | Path, **options: Any) -> StageResult:
    """Judge `config.policy` against `model`, its reference, by `config.reward`, in `out`/evaluate."""
    return _stage("evaluate", config, model, out, **options)


def _stage(
    name: str,
    config: Any,
    model: Model,
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> StageResult:
    start = model if isinstance(model, ModelConfig) else ModelConfig(base=str(model))
    recipe = parse_recipe({"name": name, "seed": seed, "device": device, "model": start, name: config}, f"keel.{name}")
    return run(recipe, out, callbacks=callbacks, console=console)[name]


def _result(path: Path) -> StageResult:
    return StageResult(path, files.read_json(path / DONE) or {})
