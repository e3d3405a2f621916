"""Which curves each stage gets, and what a healthy one shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keel.report.figures import Curve, Level, Panel, run_colour
from keel.report.numbers import dig, known, percent, series
from keel.runs.read import RunView, StageView


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


@dataclass(frozen=True)
class _Chart:
    """One to three metrics in one figure; `names` are those of the lines, where there is more than one."""

    title: str
    note: str
    solid: str
    dashed: str = ""
    dotted: str = ""
    names: tuple[str, str] = ("rollouts", "held-out")
    percent: bool = False
    smooth: bool = True


_TRAINING = ("training", "validation")

_SFT = (
    _Chart(
        "Loss",
        "Nats a response token. Healthy: both fall and flatten; validation turning up is overfitting.",
        "sft/loss",
        dashed="sft/validation/loss",
        names=_TRAINING,
    ),
    _Chart("Gradient norm", "Before clipping. Healthy: settles within the first tenth.", "sft/grad_norm"),
    _Chart("Learning rate", "Warm-up, then the schedule.", "sft/lr", smooth=False),
)

_ACCURACY = _Chart(
    "Accuracy",
    "Share of pairs in which the chosen response scores higher. Healthy: near what the annotator's noise allows, well "
    "above always picking the longer response.",
    "reward/accuracy",
    dashed="reward/validation/accuracy",
    names=_TRAINING,
    percent=True,
)
_REWARD = (
    _Chart(
        "Loss",
        "Bradley–Terry; a coin's is log 2 = 0.693.",
        "reward/loss",
        dashed="reward/validation/loss",
        names=_TRAINING,
    ),
    _Chart(
        "Margin",
        "Score of the chosen minus that of the rejected response, before scaling.",
        "reward/margin",
        dashed="reward/validation/margin",
        names=_TRAINING,
    ),
    _Chart("Gradient norm", "Before clipping. Healthy: no growth towards the end.", "reward/grad_norm"),
)

_KL = _Chart(
    "KL to the reference",
    "Nats a response. Healthy: rises to its target, or flattens where β holds it.",
    "objective/kl",
    dashed="eval/kl",
)
_PPO = (
    _Chart(
        "Objective",
        "Score minus β·KL on held-out prompts: what picks the best checkpoint.",
        "eval/objective",
        smooth=False,
    ),
    _Chart("KL coefficient β", "Fixed, or steered so that the KL meets its target.", "objective/kl_coef", smooth=False),
    _Chart(
        "Shaped return", "Sum of the token rewards: score minus the leash's price. Healthy: rises.", "objective/rewards"
    ),
    _Chart(
        "Spread of the scores", "Standard deviation in a rollout. At 0 only the leash teaches.", "objective/scores_std"
    ),
    _Chart(
        "Entropy",
        "Nats a token, over the whole vocabulary. Healthy: falls slowly; a collapse to 0 ends exploration.",
        "ppo/policy/entropy",
        dotted="objective/surprise",
        names=("entropy", "−log π of what was drawn"),
    ),
    _Chart(
        "Length",
        "Tokens a response. Healthy: moves little, unless length is what is preferred.",
        "objective/length",
        dashed="eval/length",
    ),
    _Chart(
        "Ended by itself",
        "Share of responses with an end token within the limit. Healthy: near 100%.",
        "objective/ended",
        dashed="eval/ended",
        percent=True,
    ),
    _Chart(
        "Variety",
        "Distinct pairs of tokens, and four-grams that were said before. Healthy: neither jumps.",
        "text/distinct_2",
        dotted="text/repetition",
        names=("distinct-2", "repetition"),
        percent=True,
    ),
    _Chart(
        "Score–length correlation",
        "Healthy: moderate; near 1 the score has become a ruler.",
        "objective/score_length_correlation",
    ),
    _Chart(
        "Clip fraction",
        "Share of tokens whose ratio was clipped. Healthy: below about 20%.",
        "ppo/policy/clipfrac",
        percent=True,
    ),
    _Chart(
        "KL to the old policy", "Approximate, nats a token, within one update. Healthy: small.", "ppo/policy/approxkl"
    ),
    _Chart(
        "Ratio's largest gap from 1",
        "Over all minibatches. Healthy: bounded; jumps mean too large a step.",
        "ppo/policy/ratio_gap",
    ),
    _Chart(
        "Explained variance",
        "Of the returns, by the critic. Healthy: above 0, towards 1.",
        "ppo/val/explained_variance",
    ),
    _Chart("Policy loss", "Clipped. Its level means little, its drift does.", "ppo/loss/policy"),
    _Chart("Value loss", "Healthy: falls, then follows the spread of the returns.", "ppo/loss/value"),
    _Chart("Gradient norm", "Before clipping.", "ppo/grad_norm"),
    _Chart("Speed", "Tokens of responses a second, rollout and update together.", "time/tokens_per_second"),
)
_SCORE = _Chart(
    "Score",
    "The reward's. Healthy: rises and flattens, held-out close to the rollouts.",
    "objective/scores",
    dashed="eval/scores",
)
_UTILITY = _Chart("True utility", "On held-out prompts, by the known rule.", "eval/utility", smooth=False)


def _panel(found: Sequence[Source], chart: _Chart, x_label: str, levels: Sequence[Level] = ()) -> Panel:
    lines = [(chart.solid, "solid"), (chart.dashed, "dashed"), (chart.dotted, "dotted")]
    lines = [(metric, style) for metric, style in lines if metric]
    names = chart.names if len(lines) > 1 else ("",)
    curves = []
    for source in found:
        for (metric, style), name in zip(lines, names, strict=True):
            values = series(source.stage, metric)
            smooth = chart.smooth and style != "dashed"
            curves.append(Curve(values.xs, values.ys, source.colour, style, label=name, smooth=smooth))
    return Panel(
        chart.title, chart.note, [curve for curve in curves if curve.xs], levels, x_label=x_label, percent=chart.percent
    )


def sft_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The supervised stage."""
    found = sources(runs, "sft")
    return [_panel(found, chart, "step") for chart in _SFT]


def reward_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The reward model's stage, with its reliability diagram."""
    found = sources(runs, "reward")
    return [
        _panel(found, _ACCURACY, "step", _accuracy_levels(found)),
        _reliability(found),
        *(_panel(found, chart, "step") for chart in _REWARD),
    ]


def ppo_panels(runs: Sequence[RunView]) -> list[Panel]:
    """PPO's own curves."""
    found = sources(runs, "ppo")
    return [
        _panel(found, _SCORE, "iteration"),
        _panel(found, _UTILITY, "iteration"),
        _panel(found, _KL, "iteration", _kl_levels(found)),
        *(_panel(found, chart, "iteration") for chart in (*_PPO, *_reward_parts(found))),
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


def _reliability(found: Sequence[Source]) -> Panel:
    curves = []
    for source in found:
        bins = [
            part for part in dig(source.stage.summary, "reliability") or [] if None not in map(known, part.values())
        ]
        most = max((part["pairs"] for part in bins), default=1.0)
        spread = [1.96 * math.sqrt(part["right"] * (1 - part["right"]) / part["pairs"]) for part in bins]
        sizes = [10 + 30 * part["pairs"] / most for part in bins]
        predicted, right = [part["predicted"] for part in bins], [part["right"] for part in bins]
        curves.append(Curve(predicted, right, source.colour, sizes=sizes, errors=spread))
    return Panel(
        "Reliability",
        "How sure the reward model is (across) against how often it is right (up), on held-out pairs with 95% bars. "
        "Healthy: on the diagonal; below it, it is surer than it should be.",
        curves,
        x_label="predicted probability",
        percent=True,
        diagonal=True,
    )


def _kl_levels(found: Sequence[Source]) -> list[Level]:
    levels = {}
    for source in found:
        for key in ("target", "budget"):
            value = known(dig(source.run.recipe, "ppo", "kl", key))
            if value is not None:
                levels[key, value] = Level(value, f"{key} {value:g}")
    return list(levels.values())


def _reward_parts(found: Sequence[Source]) -> Iterator[_Chart]:
    """One chart a reward, where a run has more than one."""
    rows = [row for source in found for row in source.stage.metrics[-1:]]
    names = dict.fromkeys(key.removeprefix("reward/") for row in rows for key in row if key.startswith("reward/"))
    names = {name: None for name in names if not name.endswith("/missing")}
    if len(names) > 1:
        for name in names:
            yield _Chart(f"Reward “{name}”", "Its own mean in a rollout, unweighted.", f"reward/{name}")
