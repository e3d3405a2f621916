"""The figures that judge: reward against KL with its frontier, and the proxy against what it stands for."""

from __future__ import annotations

from collections.abc import Sequence

from keel.report.curves import sources
from keel.report.figures import Curve, Panel, run_colour
from keel.report.numbers import dig, joined, known, series
from keel.runs.read import RunView


def frontier_panels(runs: Sequence[RunView]) -> list[Panel]:
    """Reward, and the true utility, against the square root of the KL."""
    proxy: list[Curve] = []
    true: list[Curve] = []
    for index, run in enumerate(runs):
        evaluate, ppo = run.stages.get("evaluate"), run.stages.get("ppo")
        found, colour = evaluate.summary if evaluate else None, run_colour(index)
        proxy += _bound(dig(found, "frontier"), "ink" if len(runs) == 1 else colour)
        if _same_judge(run):
            path = joined(ppo, "eval/kl", "eval/scores")
            proxy.append(Curve(path.xs, path.ys, colour, marker=".", label="while training"))
        path = joined(ppo, "eval/kl", "eval/utility")
        true.append(Curve(path.xs, path.ys, colour, marker=".", label="while training"))
        proxy += _point(dig(found, "frontier", "kl"), dig(found, "frontier", "score"), colour)
        true += _point(dig(found, "kl"), dig(found, "policy", "utility"), colour)
    across = "KL to the reference, nats (square-root scale)"
    return [
        Panel(
            "Score against KL",
            "Healthy: the evaluated policy lies close below the frontier, the most that a KL can buy (dashed: beyond "
            "what the samples can tell). Best-of-n is the yardstick.",
            [curve for curve in proxy if len(curve.xs)],
            x_label=across,
            sqrt_x=True,
        ),
        Panel(
            "True utility against KL",
            "What the score stands for, by the known rule. Healthy: it rises with the KL; bending down while the score "
            "rises is over-optimisation.",
            [curve for curve in true if len(curve.xs)],
            x_label=across,
            sqrt_x=True,
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
        Panel(
            "Proxy and truth",
            "Change since the start, each as a share of its own largest. Healthy: they rise together.",
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
