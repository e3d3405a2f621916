"""How long a recipe will take, from a few of its steps: arithmetic on what was measured, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keel.config.evaluate import EvaluateConfig
from keel.config.ppo import PPOConfig

_ROLES = {  # of an iteration of ppo, in the order of the work
    "sampling": "time/sampling_seconds",
    "values": "time/values_seconds",
    "reference": "time/reference_seconds",
    "scoring": "time/scoring_seconds",
    "update": "time/update_seconds",
}


@dataclass
class Measured:
    """A stage as it went for a few steps."""

    seconds: float = 0.0  # all of it: loading, steps, what comes after them
    peak_bytes: int = 0
    lines: list[Mapping[str, float]] = field(default_factory=list)  # of metrics.jsonl, in order
    marks: dict[int, float] = field(default_factory=dict)  # when so much was done, on one clock
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """A stage as it will go: `steps` of what the stage does over and over, `unit`, and the time of all of it."""

    stage: str
    unit: str
    seconds_a_step: float
    steps: int
    seconds: float
    peak_bytes: int
    roles: Mapping[str, float] = field(default_factory=dict)  # seconds of a step


def epochs_forecast(
    stage: str,
    measured: Measured,
    *,
    steps: int,
    validate_every: int,
    validation_scale: float,
    shrink: float = 1.0,
    more_seconds: float = 0.0,
) -> Forecast:
    """sft, reward and direct: the last measured step times all steps, each validation, and once what is neither.

    `validation_scale` is the held-out rows of the whole data over those measured; `shrink` corrects for shorter
    texts; `more_seconds` is what the measurement left out.
    """
    step = measured.lines[-1]["time/step_seconds"] * shrink
    validation = measured.lines[-1].get("time/validation_seconds", 0.0)
    spent = sum(line["time/step_seconds"] + line.get("time/validation_seconds", 0.0) for line in measured.lines)
    once = max(0.0, measured.seconds - spent - validation)
    validations = math.ceil(steps / validate_every) + 1  # and one for the summary
    seconds = once + steps * step + validations * validation * validation_scale * shrink + more_seconds
    return Forecast(stage, "step", step, steps, seconds, measured.peak_bytes)


def ppo_forecast(config: PPOConfig, measured: Measured, shrink: float) -> Forecast:
    """The last measured iteration times all, each evaluation, and once what is neither; an iteration by role."""
    start, *lines = measured.lines
    iterations = [line["time/rollout_seconds"] + line["time/update_seconds"] for line in lines]
    evaluation = start["time/evaluation_seconds"]
    evaluations = 1 + math.ceil(config.iterations / config.evaluate.every)
    once = max(0.0, measured.seconds - sum(iterations) - evaluation)
    step = iterations[-1] * shrink
    seconds = once + config.iterations * step + evaluations * evaluation * shrink
    roles = {role: lines[-1][metric] * shrink for role, metric in _ROLES.items()}
    return Forecast("ppo", "iteration", step, config.iterations, seconds, measured.peak_bytes, roles)


def collect_forecast(measured: Measured, *, measured_prompts: int, prompts: int, shrink: float) -> Forecast:
    """The time a prompt takes (responses and comparisons) times the prompts, and once what is neither."""
    working = measured.marks[max(measured.marks)] - measured.marks[0]
    step = working / measured_prompts * shrink
    seconds = measured.seconds - working + prompts * step
    return Forecast("collect", "prompt", step, prompts, seconds, measured.peak_bytes)


def evaluate_forecast(
    config: EvaluateConfig, small: EvaluateConfig, measured: Measured, *, prompts: int, shrink: float
) -> Forecast:
    """Both models' responses and their comparison by the prompts, the frontier by its samples."""
    at = [measured.marks[number] for number in range(4)]
    measured_prompts = min(small.count, prompts)
    judged = (at[2] - at[0]) * shrink / measured_prompts
    frontier = (at[3] - at[2]) * shrink / (min(small.frontier_prompts, measured_prompts) * small.frontier_samples)
    count = min(config.count, prompts)
    samples = min(config.frontier_prompts, count) * config.frontier_samples
    seconds = measured.seconds - (at[3] - at[0]) + count * judged + samples * frontier
    step = (count * judged + samples * frontier) / count
    return Forecast("evaluate", "prompt", step, count, seconds, measured.peak_bytes)


def shrinkage(prompt: float, expected: float | None, sampled: float | None) -> float:
    """What a response of `expected` tokens costs beside one of `sampled`, both after a prompt; never more than 1."""
    if expected is None or sampled is None:
        return 1.0
    return min(1.0, (prompt + expected) / (prompt + sampled))


def clock(seconds: float) -> str:
    """1.2 s, 3 min, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def total(forecasts: Sequence[Forecast]) -> float:
    """Seconds of all stages."""
    return sum(forecast.seconds for forecast in forecasts)
