"""The figures that judge: reward against KL with its frontier, and the proxy against what it stands for."""

from __future__ import annotations

from collections.abc import Sequence

from keel.instruments.fits import LAWS, Law, fit, path
from keel.report.curves import sources
from keel.report.figures import Curve, Panel, run_colour
from keel.report.numbers import dig, joined, known, number, one_scale, series
from keel.runs.read import RunView, StageView

_ACROSS = "KL to the reference, nats (square-root scale)"
_CURVE_POINTS = 40
_STYLES: tuple[tuple[Law, str], ...] = (("linear", "dotted"), ("log", "dashed"))


def frontier_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The rewards against the square root of the KL, with what a KL can buy."""
    proxy: list[Curve] = []
    for index, run in enumerate(runs):
        evaluate, ppo = run.stages.get("evaluate"), one_scale(run.stages.get("ppo"))
        found, colour = evaluate.summary if evaluate else None, run_colour(index)
        proxy += _bound(dig(found, "frontier"), "ink" if len(runs) == 1 else colour)
        if _same_judge(run):
            way = joined(ppo, "eval/kl", "eval/scores")
            proxy.append(Curve(way.xs, way.ys, colour, marker=".", label="while training"))
        proxy += _point(dig(found, "frontier", "kl"), dig(found, "frontier", "score"), colour)
    return [
        Panel(
            "Score against KL",
            "Healthy: the evaluated policy lies close below the frontier, the most that a KL can buy (dashed: beyond "
            "what the samples can tell). Best-of-n is the yardstick.",
            [curve for curve in proxy if len(curve.xs)],
            x_label=_ACROSS,
            sqrt_x=True,
        ),
    ]


def held_out_panels(runs: Sequence[RunView]) -> list[Panel]:
    """What is not trained on against the square root of the KL: the true utility, and the judge's score."""
    true: list[Curve] = []
    judged: list[Curve] = []
    alone = len(runs) == 1
    for index, run in enumerate(runs):
        evaluate, ppo = run.stages.get("evaluate"), one_scale(run.stages.get("ppo"))
        found, colour = evaluate.summary if evaluate else None, run_colour(index)
        true += _bent(ppo, "eval/utility", colour, alone=alone)
        true += [_best_of(dig(found, "frontier", "best_of_n_utility"), "ink" if alone else colour)]
        true += _point(dig(found, "kl"), dig(found, "policy", "utility"), colour)
        judged += _bent(ppo, "eval/judge", colour, alone=alone)
    return [
        Panel(
            "True utility against KL",
            "What the score stands for, by the known rule, with the laws of over-optimisation (d = √KL). Healthy: it "
            "rises with the KL; bending down while the score rises is over-optimisation. Best of n, by the score.",
            [curve for curve in true if len(curve.xs)],
            x_label=_ACROSS,
            sqrt_x=True,
        ),
        Panel(
            "Judge against KL",
            "The same by a reward that is not trained on. It sees what it was taught to see: a judge from like data "
            "may rise where the truth falls.",
            [curve for curve in judged if len(curve.xs)],
            x_label=_ACROSS,
            sqrt_x=True,
        ),
    ]


def _bent(ppo: StageView | None, key: str, colour: str, *, alone: bool) -> list[Curve]:
    """A held-out score on its way, and the two laws fitted to it; with their numbers where the run is alone."""
    found = joined(ppo, "eval/kl", key)
    curves = [Curve(found.xs, found.ys, colour, marker=".", label="while training")]
    distances, gains = path(ppo.metrics if ppo else [], key)
    for law, style in _STYLES:
        one = fit(law, distances, gains)
        if one is not None:
            words = f"d ({number(one.alpha)} − {number(one.beta)} {'d' if law == 'linear' else 'log d'})"
            low, high = min(distances), max(distances)
            grid = [low + (high - low) * step / _CURVE_POINTS for step in range(_CURVE_POINTS + 1)]
            ys = [found.ys[0] + one.gain(d) - one.gain(distances[0]) for d in grid]
            curves.append(Curve([d * d for d in grid], ys, colour, style, label=words if alone else LAWS[law]))
    return curves


def _bound(frontier: object, colour: str) -> list[Curve]:
    points = [point for point in dig(frontier, "curve") or [] if None not in map(known, point)]
    limit = known(dig(frontier, "reliable_up_to_kl")) or 0.0
    sure = [point for point in points if point[0] <= limit]
    unsure = sure[-1:] + [point for point in points if point[0] > limit]
    return [
        Curve(*_columns(sure), colour, label="frontier"),
        Curve(*_columns(unsure if len(unsure) > 1 else []), colour, "dashed", label="frontier, unreliable"),
        _best_of(dig(frontier, "best_of_n"), colour),
    ]


def _best_of(found: object, colour: str) -> Curve:
    """Points (n, KL, value) of best-of-n."""
    points = [point[1:] for point in found if None not in map(known, point)] if isinstance(found, list) else []
    return Curve(*_columns(points), colour, "", marker="x", label="best of n")


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _point(x: object, y: object, colour: str) -> list[Curve]:
    across, up = known(x), known(y)
    if across is None or up is None:
        return []
    return [Curve([across], [up], colour, sizes=[70], label="evaluated policy")]


def _same_judge(run: RunView) -> bool:
    """PPO's held-out scores are comparable with the evaluation's if the same rewards gave them."""
    other = dig(run.recipe, "evaluate", "reward")
    return other is None or other == dig(run.recipe, "ppo", "reward")


def truth_panels(runs: Sequence[RunView]) -> list[Panel]:
    """The proxy and what it stands for, over the iterations; empty where the true utility is not known."""
    gains: list[Curve] = []
    paths: list[Curve] = []
    for source in sources(runs, "ppo"):
        stage = one_scale(source.stage)
        score, utility = series(stage, "eval/scores"), series(stage, "eval/utility")
        if not utility:
            continue
        gains.append(Curve(score.xs, _share_of_gain(score.ys), source.colour, label="score (proxy)"))
        gains.append(Curve(utility.xs, _share_of_gain(utility.ys), source.colour, "dashed", label="true utility"))
        if judge := series(stage, "eval/judge"):
            gains.append(Curve(judge.xs, _share_of_gain(judge.ys), source.colour, "dotted", label="judge"))
        way = joined(stage, "eval/scores", "eval/utility")
        paths.append(Curve(way.xs, way.ys, source.colour, marker="."))
        paths.append(Curve(way.xs[-1:], way.ys[-1:], source.colour, sizes=[60], label="end of training"))
    return [
        Panel(
            "Proxy and truth",
            "Change since the start (of a fork that changed the scores: since the fork), each as a share of its own "
            "largest. Healthy: they rise together.",
            gains,
            percent=True,
        ),
        Panel(
            "Truth against proxy",
            "Every evaluation, from the start to the large point. Healthy: up and to the right to the end.",
            paths,
            x_label="score (proxy)",
        ),
    ]


def _share_of_gain(values: Sequence[float]) -> list[float]:
    changes = [value - values[0] for value in values]
    largest = max(changes, default=0.0) or max(map(abs, changes), default=0.0)
    return [change / largest if largest else 0.0 for change in changes]
