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
    healthy: tuple[float, float] | None = None
    from_start: bool = False  # whether the value at the start is drawn to compare with
    minor: bool = False


_TRAINING = ("training", "validation")

_SFT = (
    _Chart(
        "Loss",
        "Nats a response token. Healthy: both fall and flatten; validation turning up is overfitting.",
        "sft/loss",
        dashed="sft/validation/loss",
        names=_TRAINING,
    ),
    _Chart("Gradient norm", "Before clipping. Healthy: settles within the first tenth.", "sft/grad_norm", minor=True),
    _Chart("Learning rate", "Warm-up, then the schedule.", "sft/lr", smooth=False, minor=True),
)

_ACCURACY = _Chart(
    "Accuracy",
    "Share of pairs in which the chosen response scores higher. Healthy: near what the annotator’s noise allows, well "
    "above always picking the longer response.",
    "reward/accuracy",
    dashed="reward/validation/accuracy",
    names=_TRAINING,
    percent=True,
)
_REWARD_LOSS = _Chart(
    "Loss",
    "Nats a pair, ranking or rating. Healthy: falls, validation close behind.",
    "reward/loss",
    dashed="reward/validation/loss",
    names=_TRAINING,
)
_REWARD = (
    _Chart(
        "Margin",
        "Score of the chosen minus that of the rejected response, before scaling. Healthy: grows, then flattens.",
        "reward/margin",
        dashed="reward/validation/margin",
        names=_TRAINING,
        minor=True,
    ),
    _Chart("Gradient norm", "Before clipping. Healthy: no growth towards the end.", "reward/grad_norm", minor=True),
)

_PREFERENCES = (
    _Chart(
        "Loss",
        "Of the chosen method, a preference. Healthy: falls, validation close behind.",
        "direct/loss",
        dashed="direct/validation/loss",
        names=_TRAINING,
    ),
    _Chart(
        "Accuracy",
        "Share of the preferences on the right side of the policy’s implicit reward. Healthy: rises, validation with "
        "it; it says nothing of what the policy itself writes.",
        "direct/accuracy",
        dashed="direct/validation/accuracy",
        names=_TRAINING,
        percent=True,
    ),
    _Chart(
        "Implicit margin",
        "Implicit reward of the chosen minus that of the rejected response. Healthy: grows, then flattens; without end "
        "the policy leaves its reference behind.",
        "direct/margin",
        dashed="direct/validation/margin",
        names=_TRAINING,
    ),
    _Chart(
        "Implicit rewards",
        "Of held-out preferences. Healthy: the chosen one above the rejected one; both falling together means that "
        "likelihood goes to responses nobody compared.",
        "direct/validation/reward/chosen",
        dotted="direct/validation/reward/rejected",
        names=("chosen", "rejected"),
        smooth=False,
    ),
    _Chart(
        "Log-probability of the responses",
        "Of held-out preferences, nats a response. Healthy: the chosen one does not fall far.",
        "direct/validation/logprobs/chosen",
        dotted="direct/validation/logprobs/rejected",
        names=("chosen", "rejected"),
        smooth=False,
    ),
    _Chart(
        "Reference point",
        "KTO’s z₀: how far the policy is from its reference on responses to other prompts, nats. Healthy: small.",
        "direct/reference_point",
        minor=True,
    ),
    _Chart("Gradient norm", "Before clipping. Healthy: no growth towards the end.", "direct/grad_norm", minor=True),
    _Chart("Learning rate", "Warm-up, then the schedule.", "direct/lr", smooth=False, minor=True),
)

_SCORE = _Chart(
    "Score",
    "The rewards’ weighted sum. Healthy: rises and flattens, held-out close to the rollouts.",
    "objective/scores",
    dashed="eval/scores",
)
_UTILITY = _Chart(
    "True utility",
    "On held-out prompts, by the known rule. Healthy: rises with the score; falling while it rises is "
    "over-optimisation.",
    "eval/utility",
    smooth=False,
)
_KL = _Chart(
    "KL to the reference",
    "Nats a response. Healthy: rises to its target, or flattens where β holds it; never below 0.",
    "objective/kl",
    dashed="eval/kl",
)
_PPO = (
    _Chart(
        "Length",
        "Tokens a response. Healthy: stays near its start, unless length is what is preferred.",
        "objective/length",
        dashed="eval/length",
        from_start=True,
    ),
    _Chart(
        "Entropy",
        "Nats a token, over the whole vocabulary. Healthy: falls slowly; near 0 exploration is over.",
        "ppo/policy/entropy",
        dotted="objective/surprise",
        names=("entropy", "−log π as drawn"),
    ),
    _Chart(
        "Explained variance",
        "Share of the returns’ variance that the critic foresees. Healthy: above 0 soon, towards 1.",
        "ppo/val/explained_variance",
        healthy=(0.0, 1.0),
    ),
    _Chart(
        "Objective",
        "Score minus β·KL on held-out prompts: what picks the best checkpoint. Healthy: rises, then flattens.",
        "eval/objective",
        smooth=False,
        minor=True,
    ),
    _Chart(
        "KL coefficient β",
        "Fixed, or steered so that the KL meets its target. Healthy: constant or settling.",
        "objective/kl_coef",
        smooth=False,
        minor=True,
    ),
    _Chart(
        "Shaped return",
        "Sum of the token rewards: score minus the leash’s price. Healthy: rises.",
        "objective/rewards",
        minor=True,
    ),
    _Chart(
        "Spread of the scores",
        "Standard deviation in a rollout. Healthy: above 0; at 0 only the leash teaches.",
        "objective/scores_std",
        minor=True,
    ),
    _Chart(
        "Ended by itself",
        "Share of responses with an end token within the limit. Healthy: near 100%.",
        "objective/ended",
        dashed="eval/ended",
        percent=True,
        healthy=(0.9, 1.0),
        minor=True,
    ),
    _Chart(
        "Variety",
        "Distinct pairs of tokens, and four-grams that were said before. Healthy: neither jumps.",
        "text/distinct_2",
        dotted="text/repetition",
        names=("distinct-2", "repetition"),
        percent=True,
        minor=True,
    ),
    _Chart(
        "Score–length correlation",
        "Healthy: moderate; near 1 the score has become a ruler.",
        "objective/score_length_correlation",
        healthy=(-0.5, 0.5),
        minor=True,
    ),
    _Chart(
        "Clip fraction",
        "Share of tokens whose ratio was clipped. Healthy: below about 20%.",
        "ppo/policy/clipfrac",
        percent=True,
        healthy=(0.0, 0.2),
        minor=True,
    ),
    _Chart(
        "Groups alike",
        "Share of the prompts whose responses all score alike: only the leash teaches there. Healthy: below a half.",
        "objective/groups_alike",
        percent=True,
        healthy=(0.0, 0.5),
        minor=True,
    ),
    _Chart(
        "Pairs on the right side",
        "Online DPO: share whose preferred response has the higher implicit reward. Healthy: above a half.",
        "ppo/pairs/accuracy",
        percent=True,
        minor=True,
    ),
    _Chart(
        "KL to the old policy",
        "Approximate, nats a token, within one update. Healthy: small and steady.",
        "ppo/policy/approxkl",
        minor=True,
    ),
    _Chart(
        "Ratio’s largest gap from 1",
        "Over all minibatches. Healthy: bounded; jumps mean too large a step.",
        "ppo/policy/ratio_gap",
        minor=True,
    ),
    _Chart(
        "Gap to the sampler",
        "Mean |π_old/π_sampler − 1| a token, where they compute in other precisions. Healthy: below 0.02.",
        "ppo/policy/sampler_gap",
        healthy=(0.0, 0.02),
        minor=True,
    ),
    _Chart("Policy loss", "Clipped. Its level means little, its drift does.", "ppo/loss/policy", minor=True),
    _Chart("Value loss", "Healthy: falls, then follows the spread of the returns.", "ppo/loss/value", minor=True),
    _Chart("Gradient norm", "Before clipping. Healthy: steady.", "ppo/grad_norm", minor=True),
    _Chart("Speed", "Tokens of responses a second, rollout and update together.", "time/tokens_per_second", minor=True),
)


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
    return [_panel(found, chart, "step") for chart in _SFT]


def reward_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The reward model's stage, with its reliability diagram."""
    found = sources(runs, "reward")
    return [
        _panel(found, _ACCURACY, "step", _accuracy_levels(found)),
        _reliability(found),
        _panel(found, _REWARD_LOSS, "step", _loss_levels(found)),
        *(_panel(found, chart, "step") for chart in _REWARD),
    ]


def direct_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The direct stage."""
    found = sources(runs, "direct")
    return [_panel(found, chart, "step") for chart in _PREFERENCES]


def ppo_panels(runs: Sequence[RunView]) -> list[Panel]:
    """PPO's own curves."""
    found = sources(runs, "ppo")
    return [
        _panel(found, _SCORE, "iteration"),
        _panel(found, _UTILITY, "iteration"),
        _panel(found, _KL, "iteration", _kl_levels(found)),
        *(_panel(found, chart, "iteration") for chart in (*_reward_parts(found), *_PPO)),
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
    names = {name: None for name in names if not name.endswith(("/std", "/missing", "/cut"))}
    if len(names) > 1:
        for name in names:
            yield _Chart(
                f"Reward “{name}”", "Its own mean, unweighted. Healthy: those with weight rise.", f"reward/{name}"
            )
