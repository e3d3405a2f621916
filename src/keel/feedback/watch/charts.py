"""Which metrics stand on which chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keel.feedback.watch.formats import format_number
from keel.feedback.watch.runs import LiveRun
from keel.feedback.watch.stage import LiveStage


@dataclass(frozen=True)
class Line:
    """A curve of a chart: where its points are found, and what it is called there; `last` is its last value."""

    run: str
    stage: str
    key: str
    label: str
    last: str
    number: int  # of its colour


@dataclass(frozen=True)
class Chart:
    """`level` is a value to be drawn across (a target), with its name."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None = None


@dataclass(frozen=True)
class _Plan:
    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]  # metric, label


_PPO = (
    _Plan("Score", "", (("objective/scores", "rollouts"), ("eval/scores", "held out"))),
    _Plan("True score", "held out", (("eval/utility", "true utility"), ("eval/judge", "judge"))),
    _Plan("KL to the reference", "nats a response", (("objective/kl", "rollouts"), ("eval/kl", "held out"))),
    _Plan("KL coefficient β", "score a nat", (("objective/kl_coef", "β"),)),
    _Plan("Entropy", "nats a token", (("ppo/policy/entropy", "rollouts"), ("eval/surprise", "held out, estimate"))),
    _Plan("Clip fraction", "share of tokens", (("ppo/policy/clipfrac", "clipped"),)),
    _Plan("Response length", "tokens", (("objective/length", "rollouts"), ("eval/length", "held out"))),
    _Plan("Speed", "tokens a second", (("time/tokens_per_second", "tokens/s"),)),
)
_TRAINED = (("loss", "Loss"), ("accuracy", "Accuracy"), ("margin", "Margin"), ("grad_norm", "Gradient norm"))


def chosen(run: LiveRun, stage: LiveStage) -> list[Chart]:
    """The charts that matter of a stage, of what it has logged."""
    charts = []
    for plan in _plans(stage.name):
        keys = [(key, label) for key, label in plan.keys if key in stage.curves]
        if keys:
            lines = [_line(run, stage, key, label, number) for number, (key, label) in enumerate(keys)]
            level = _target(run) if plan.title == "KL to the reference" else None
            charts.append(Chart(plan.title, plan.unit, tuple(lines), level))
    return charts


def others(run: LiveRun, stage: LiveStage) -> list[Chart]:
    """A chart for every metric that `chosen` leaves out, by name."""
    known = {key for plan in _plans(stage.name) for key, _ in plan.keys}
    return [Chart(key, "", (_line(run, stage, key, key, 0),)) for key in sorted(stage.curves.keys() - known)]


def compared(runs: Sequence[LiveRun], stage: str, keys: Iterable[str]) -> list[Chart]:
    """The same metric of several runs, a chart a metric; a run keeps its colour on all of them."""
    titles = {
        key: (plan.title if len(plan.keys) == 1 else f"{plan.title}, {label}", plan.unit)
        for plan in _plans(stage)
        for key, label in plan.keys
    }
    charts = []
    for key in keys:
        lines = [
            _line(run, run.stages[stage], key, run.label, number)
            for number, run in enumerate(runs)
            if stage in run.stages and key in run.stages[stage].curves
        ]
        if lines:
            title, unit = titles.get(key, (key, ""))
            charts.append(Chart(title, unit, tuple(lines)))
    return charts


def first_choice(stage: str, there: Iterable[str]) -> list[str]:
    """The metrics to compare a stage by unless others are asked for."""
    there = set(there)
    return [key for plan in _plans(stage) for key, _ in plan.keys if key in there]


def _plans(stage: str) -> Sequence[_Plan]:
    if stage == "ppo":
        return _PPO
    return [
        _Plan(title, "", ((f"{stage}/{name}", "training"), (f"{stage}/validation/{name}", "held out")))
        for name, title in _TRAINED
    ]


def _line(run: LiveRun, stage: LiveStage, key: str, label: str, number: int) -> Line:
    last = stage.curves[key].last
    return Line(run.id, stage.name, key, label, format_number(last) if last == last else "not finite", number)


def _target(run: LiveRun) -> tuple[str, float] | None:
    for name in ("target", "budget"):
        value = run.numeric("ppo", "kl", name)
        if value is not None:
            return name, value
    return None
