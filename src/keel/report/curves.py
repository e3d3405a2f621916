"""Which figures each stage gets, and what a healthy one shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from keel.report.figures import Curve, Level, Panel, run_colour
from keel.report.numbers import dig, joined, known, percent, series
from keel.runs.read import RunView, StageView


@dataclass(frozen=True)
class Source:
    """A stage to draw: its colour, and the runs that share it (a reused stage is drawn once)."""

    stage: StageView
    run: RunView
    colour: str
    index: int
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
            index=group[0],
            runs=tuple(group),
        )
        for group in shared.values()
    ]


@dataclass(frozen=True)
class _Line:
    """A metric as a line of a panel."""

    metric: str
    label: str = ""
    style: str = "solid"
    smooth: bool = True


def _panel(
    found: Sequence[Source],
    title: str,
    note: str,
    *lines: _Line,
    levels: Sequence[Level] = (),
    percent: bool = False,
    x_label: str = "iteration",
) -> Panel:
    curves = []
    for source in found:
        for line in lines:
            values = series(source.stage, line.metric)
            curves.append(Curve(values.xs, values.ys, source.colour, line.style, label=line.label, smooth=line.smooth))
    curves = [curve for curve in curves if curve.xs]
    return Panel(title, note, curves, levels if curves else (), x_label, percent)


def sft_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The supervised stage."""
    found = sources(runs, "sft")
    return [
        _panel(found, "Loss", "Nats a response token. Healthy: both fall and flatten; validation turning up is overfitting.",
               _Line("sft/loss", "training"), _Line("sft/validation/loss", "validation", "dashed", smooth=False), x_label="step"),
        _panel(found, "Gradient norm", "Before clipping. Healthy: settles within the first tenth.", _Line("sft/grad_norm"), x_label="step"),
        _panel(found, "Learning rate", "Warm-up, then the schedule.", _Line("sft/lr"), x_label="step"),
    ]


def reward_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The reward model's stage, with its reliability diagram."""
    found = sources(runs, "reward")
    return [
        _panel(found, "Accuracy", "Share of pairs in which the chosen response scores higher. Healthy: near what the annotator's noise "
               "allows, well above always picking the longer response.",
               _Line("reward/accuracy", "training"), _Line("reward/validation/accuracy", "validation", "dashed", smooth=False),
               levels=_accuracy_levels(found), percent=True, x_label="step"),
        _panel(found, "Loss", "Bradley–Terry; log 2 = 0.693 is a coin's.",
               _Line("reward/loss", "training"), _Line("reward/validation/loss", "validation", "dashed", smooth=False), x_label="step"),
        _reliability(found),
        _panel(found, "Margin", "Score of the chosen minus that of the rejected response, before scaling.",
               _Line("reward/margin", "training"), _Line("reward/validation/margin", "validation", "dashed", smooth=False), x_label="step"),
        _panel(found, "Gradient norm", "Before clipping.", _Line("reward/grad_norm"), x_label="step"),
    ]


def _accuracy_levels(found: Sequence[Source]) -> list[Level]:
    levels = []
    for key, meaning in (("noise_ceiling", "noise allows"), ("longer_wins", "longer wins")):
        for source in found:
            value = known(dig(source.stage.summary, key))
            if value is not None:
                levels.append(Level(value, f"{meaning} {percent(value)}", "muted" if len(found) == 1 else source.colour))
    return levels


def _reliability(found: Sequence[Source]) -> Panel:
    curves = []
    for source in found:
        bins = [part for part in dig(source.stage.summary, "reliability") or [] if known(part.get("right")) is not None]
        if not bins:
            continue
        most = max(part["pairs"] for part in bins)
        spread = [1.96 * math.sqrt(part["right"] * (1 - part["right"]) / part["pairs"]) for part in bins]
        predicted, right = [part["predicted"] for part in bins], [part["right"] for part in bins]
        curves.append(Curve(predicted, right, source.colour, sizes=[10 + 30 * part["pairs"] / most for part in bins], errors=spread))
    return Panel(
        "Reliability",
        "How sure the reward model is (across) against how often it is right (up), on held-out pairs with 95% bars. "
        "Healthy: on the diagonal; below it, it is surer than it should be.",
        curves, x_label="predicted probability", percent=True, diagonal=True,
    )


def ppo_panels(runs: Sequence[RunView]) -> list[Panel]:
    """PPO's own curves; the true utility stands with the frontier and the proxy."""
    found = sources(runs, "ppo")
    panels = [
        _panel(found, "Score", "The reward model's. Healthy: rises and flattens, held-out close to training.",
               _Line("objective/scores", "rollouts"), _Line("eval/scores", "held-out", "dashed", smooth=False)),
        _panel(found, "KL to the reference", "Nats a response. Healthy: rises to its target, or flattens where β holds it.",
               _Line("objective/kl", "rollouts"), _Line("eval/kl", "held-out", "dashed", smooth=False), levels=_kl_levels(found)),
        _panel(found, "Objective", "Score minus β·KL, on held-out prompts: what picks the best checkpoint.",
               _Line("eval/objective", "held-out", "dashed", smooth=False)),
        _panel(found, "KL coefficient β", "Fixed, or steered so that the KL meets its target.", _Line("objective/kl_coef", smooth=False)),
        _panel(found, "Shaped return", "Sum of the token rewards: score minus the leash's price. Healthy: rises.", _Line("objective/rewards")),
        _panel(found, "Spread of the scores", "Standard deviation in a rollout. Healthy: above 0; at 0 only the leash teaches.",
               _Line("objective/scores_std")),
        _panel(found, "Entropy", "Nats a token, over the whole vocabulary. Healthy: falls slowly; a collapse to 0 ends exploration.",
               _Line("ppo/policy/entropy", "entropy"), _Line("objective/surprise", "−log π of what was drawn", "dotted")),
        _panel(found, "Length", "Tokens a response. Healthy: moves little, unless length is what is preferred.",
               _Line("objective/length", "rollouts"), _Line("eval/length", "held-out", "dashed", smooth=False)),
        _panel(found, "Ended by itself", "Share of responses with an end token within the limit. Healthy: near 100%.",
               _Line("objective/ended", "rollouts"), _Line("eval/ended", "held-out", "dashed", smooth=False), percent=True),
        _panel(found, "Variety", "Distinct pairs of tokens, and the share of four-grams said before. Healthy: neither jumps.",
               _Line("text/distinct_2", "distinct-2"), _Line("text/repetition", "repetition", "dotted"), percent=True),
        _panel(found, "Score–length correlation", "Healthy: moderate; near 1 the score has become a ruler.",
               _Line("objective/score_length_correlation")),
        _panel(found, "Clip fraction", "Share of tokens whose ratio was clipped. Healthy: below about 20%.",
               _Line("ppo/policy/clipfrac"), percent=True),
        _panel(found, "KL to the old policy", "Approximate, nats a token, within one update. Healthy: small and steady.",
               _Line("ppo/policy/approxkl")),
        _panel(found, "Ratio's largest gap from 1", "Over all minibatches. Healthy: bounded; jumps mean too large a step.",
               _Line("ppo/policy/ratio_gap")),
        _panel(found, "Explained variance", "Of the returns, by the critic. Healthy: above 0, towards 1.",
               _Line("ppo/val/explained_variance")),
        _panel(found, "Policy loss", "Clipped; its level means little, its drift does.", _Line("ppo/loss/policy")),
        _panel(found, "Value loss", "Healthy: falls, then follows the spread of the returns.", _Line("ppo/loss/value")),
        _panel(found, "Gradient norm", "Before clipping.", _Line("ppo/grad_norm")),
        _panel(found, "Speed", "Response tokens a second, rollout and update together.", _Line("time/tokens_per_second")),
    ]
    return panels + list(_reward_parts(found))


def _kl_levels(found: Sequence[Source]) -> list[Level]:
    levels = {}
    for source in found:
        for key in ("target", "budget"):
            value = known(dig(source.run.recipe, "ppo", "kl", key))
            if value is not None:
                levels[key, value] = Level(value, f"{key} {value:g}")
    return list(levels.values())


def _reward_parts(found: Sequence[Source]) -> Iterator[Panel]:
    """One panel a reward, where a run has more than one."""
    names = dict.fromkeys(
        key for source in found for row in source.stage.metrics[-1:] for key in row
        if key.startswith("reward/") and not key.endswith("/missing")
    )
    if len(names) > 1:
        for name in names:
            yield _panel(found, f"Reward “{name.removeprefix('reward/')}”", "Its own mean, unweighted.", _Line(name))


def frontier_panels(runs: Sequence[RunView]) -> list[Panel]:
    """Reward, and the true utility, against the square root of the KL."""
    proxy: list[Curve] = []
    true: list[Curve] = []
    for index, run in enumerate(runs):
        evaluate, ppo = run.stages.get("evaluate"), run.stages.get("ppo")
        found, colour = evaluate.summary if evaluate else None, run_colour(index)
        proxy += _bound(dig(found, "frontier"), colour)
        if _same_judge(run):
            path = joined(ppo, "eval/kl", "eval/scores")
            proxy.append(Curve(path.xs, path.ys, colour, marker=".", label="while training"))
        path = joined(ppo, "eval/kl", "eval/utility")
        true.append(Curve(path.xs, path.ys, colour, marker=".", label="while training"))
        proxy.append(_point(dig(found, "frontier", "kl"), dig(found, "frontier", "score"), colour))
        true.append(_point(dig(found, "kl"), dig(found, "policy", "utility"), colour))
    across = "KL to the reference, nats a response (square-root scale)"
    return [
        Panel(
            "Score against KL",
            "No policy can lie above the frontier, the most that a KL can buy on these prompts. It is drawn dashed beyond log n, "
            "where n samples a prompt can no longer tell. Best-of-n is the yardstick: simple, costly, close to the frontier.",
            [curve for curve in proxy if len(curve.xs)], x_label=across, sqrt_x=True, size="large",
        ),
        Panel(
            "True utility against KL",
            "What the reward model stands for, judged by the known rule. Where it bends down while the score rises, the policy "
            "exploits the reward model: over-optimisation.",
            [curve for curve in true if len(curve.xs)], x_label=across, sqrt_x=True, size="large",
        ),
    ]


def _bound(frontier: object, colour: str) -> list[Curve]:
    points = [point for point in dig(frontier, "curve") or [] if None not in map(known, point)]
    limit = known(dig(frontier, "reliable_up_to_kl")) or 0.0
    sure = [point for point in points if point[0] <= limit]
    unsure = sure[-1:] + [point for point in points if point[0] > limit]
    best = [point[1:] for point in dig(frontier, "best_of_n") or [] if None not in map(known, point)]
    return [
        Curve(*_columns(sure), colour, label="frontier"),
        Curve(*_columns(unsure if len(unsure) > 1 else []), colour, "dashed", label="frontier, unreliable"),
        Curve(*_columns(best), colour, "", marker="x", label="best of n"),
    ]


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _point(x: object, y: object, colour: str) -> Curve:
    there = known(x) is not None and known(y) is not None
    return Curve([known(x) or 0.0] if there else [], [known(y) or 0.0] if there else [], colour, sizes=[70], label="evaluated policy")


def _same_judge(run: RunView) -> bool:
    """PPO's held-out scores are comparable with the evaluation's if the same rewards gave them."""
    other = dig(run.recipe, "evaluate", "reward")
    return other is None or other == dig(run.recipe, "ppo", "reward")


def truth_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The proxy and what it stands for, over the iterations; empty where the true utility is not known."""
    found = [source for source in sources(runs, "ppo") if series(source.stage, "eval/utility")]
    gains: list[Curve] = []
    paths: list[Curve] = []
    for source in found:
        score, utility = series(source.stage, "eval/scores"), series(source.stage, "eval/utility")
        gains.append(Curve(score.xs, _share_of_gain(score.ys), source.colour, label="score (proxy)"))
        gains.append(Curve(utility.xs, _share_of_gain(utility.ys), source.colour, "dashed", label="true utility"))
        path = joined(source.stage, "eval/scores", "eval/utility")
        paths.append(Curve(path.xs, path.ys, source.colour, marker="."))
        paths.append(Curve(path.xs[-1:], path.ys[-1:], source.colour, sizes=[60], label="end of training"))
    return [
        _panel(found, "True utility", "On held-out prompts, by the known rule.", _Line("eval/utility", smooth=False)),
        Panel("Proxy and truth", "Change since the start, each as a share of its own largest. Healthy: they rise together.", gains, percent=True),
        Panel("Truth against proxy", "Every evaluation, from the start to the large point. Healthy: up and to the right to the end.",
              paths, x_label="score (proxy)", size="small"),
    ]


def _share_of_gain(values: Sequence[float]) -> list[float]:
    changes = [value - values[0] for value in values]
    largest = max(changes) if max(changes) > 0 else max(map(abs, changes))
    return [change / largest if largest else 0.0 for change in changes]


STAGE_PANELS: dict[str, Callable[[Sequence[RunView]], list[Panel]]] = {
    "sft": sft_panels,
    "reward": reward_panels,
    "ppo": ppo_panels,
}
