"""Which curves each stage gets, and what a healthy one shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keel.report.assessment import reliability
from keel.report.charts import ACCURACY, JUDGE, KL, PPO, PREFERENCES, REWARD, REWARD_LOSS, SCORE, SFT, UTILITY, Chart
from keel.report.figures import Curve, Level, Panel, run_colour
from keel.report.numbers import dig, known, percent, series
from keel.runs.read import RunView, StageView

_DISAGREEMENT = "/disagreement"


@dataclass(frozen=True)
class Source:
    """A stage to draw: its colour, and the runs that share it (a reused stage is drawn once)."""

    stage: StageView
    run: RunView
    colour: str
    runs: tuple[int, ...]


def sources(runs: Sequence[RunView], name: str) -> list[Source]:
    """The stage `name` of every run that has it, once for all runs that link to the same directory."""
    shared: dict[object, list[int]] = {}
    for index, run in enumerate(runs):
        if name in run.stages:
            shared.setdefault(run.stages[name].path.resolve(), []).append(index)
    return [
        Source(
            stage=runs[group[0]].stages[name],
            run=runs[group[0]],
            colour="ink" if len(group) > 1 else run_colour(group[0]),
            runs=tuple(group),
        )
        for group in shared.values()
    ]


def _panel(found: Sequence[Source], chart: Chart, x_label: str, levels: Sequence[Level] = ()) -> Panel:
    lines = [(chart.solid, "solid"), (chart.dashed, "dashed"), (chart.dotted, "dotted")]
    lines = [(metric, style) for metric, style in lines if metric]
    names = chart.names if len(lines) > 1 else ("",)
    curves = []
    for source in found:
        for (metric, style), name in zip(lines, names, strict=True):
            values = series(source.stage, metric)
            smooth = chart.smooth and style != "dashed"
            curves.append(Curve(values.xs, values.ys, source.colour, style, label=name, smooth=smooth))
    drawn = [curve for curve in curves if curve.xs]
    start = min(drawn, key=lambda curve: curve.xs[0], default=None) if chart.from_start else None
    return Panel(
        chart.title,
        chart.note,
        drawn,
        [*levels, *([Level(start.ys[0], "at the start")] if start else [])],
        x_label=x_label,
        percent=chart.percent,
        healthy=chart.healthy,
        minor=chart.minor,
    )


def sft_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The supervised stage."""
    found = sources(runs, "sft")
    return [_panel(found, chart, "step") for chart in SFT]


def reward_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The reward model's stage, with its reliability diagram."""
    found = sources(runs, "reward")
    return [
        _panel(found, ACCURACY, "step", _accuracy_levels(found)),
        reliability(
            [(dig(source.stage.summary, "reliability"), source.colour) for source in found],
            "On held-out pairs, with 95% bars.",
        ),
        _panel(found, REWARD_LOSS, "step", _loss_levels(found)),
        *(_panel(found, chart, "step") for chart in REWARD),
    ]


def direct_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The direct stage."""
    found = sources(runs, "direct")
    return [_panel(found, chart, "step") for chart in PREFERENCES]


def ppo_panels(runs: Sequence[RunView]) -> list[Panel]:
    """PPO's own curves."""
    found = sources(runs, "ppo")
    return [
        _panel(found, SCORE, "iteration"),
        _panel(found, UTILITY, "iteration"),
        _panel(found, JUDGE, "iteration"),
        _panel(found, KL, "iteration", _kl_levels(found)),
        *(_panel(found, chart, "iteration") for chart in (*_reward_parts(found), *_ensembles(found), *PPO)),
    ]


def _accuracy_levels(found: Sequence[Source]) -> list[Level]:
    levels = []
    for key, meaning in (("noise_ceiling", "noise allows"), ("longer_wins", "longer wins")):
        for source in found:
            value = known(dig(source.stage.summary, key))
            if value is not None:
                levels.append(
                    Level(value, f"{meaning} {percent(value)}", "muted" if len(found) == 1 else source.colour)
                )
    return levels


def _loss_levels(found: Sequence[Source]) -> list[Level]:
    """Where pairs alone are trained on, what a coin would lose."""
    objectives = {dig(source.run.recipe, "reward", "objective") or "bradley_terry" for source in found}
    return [Level(math.log(2), "a coin’s")] if objectives == {"bradley_terry"} else []


def _kl_levels(found: Sequence[Source]) -> list[Level]:
    levels = {}
    for source in found:
        for key in ("target", "budget"):
            value = known(dig(source.run.recipe, "ppo", "kl", key))
            if value is not None:
                levels[key, value] = Level(value, f"{key} {value:g}")
    return list(levels.values())


def _reward_parts(found: Sequence[Source]) -> Iterator[Chart]:
    """One chart a reward, where a run has more than one."""
    names = [name for name in _reward_metrics(found) if not name.endswith(("/std", "/missing", "/cut", _DISAGREEMENT))]
    if len(names) > 1:
        for name in names:
            yield Chart(
                f"Reward “{name}”", "Its own mean, unweighted. Healthy: those with weight rise.", f"reward/{name}"
            )


def _ensembles(found: Sequence[Source]) -> Iterator[Chart]:
    """How far the members of each ensemble are apart."""
    for metric in _reward_metrics(found):
        if metric.endswith(_DISAGREEMENT):
            name = metric.removesuffix(_DISAGREEMENT)
            yield Chart(
                f"Disagreement of “{name}”",
                "Standard deviation of the members’ scores of a response. Healthy: about as at the start; growing, the "
                "policy leaves what the comparisons show.",
                f"reward/{name}/disagreement",
                dashed=f"eval/reward/{name}/disagreement",
                from_start=True,
            )


def _reward_metrics(found: Sequence[Source]) -> list[str]:
    """What was logged of each reward in the last rollout, by what stands behind `reward/`."""
    rows = [row for source in found for row in source.stage.metrics[-1:]]
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("reward/"))
    return [key.removeprefix("reward/") for key in keys]
