"""What in a stage is out of its healthy range (docs/metrics.md), from what it has logged and reported, a sentence each.

The report and the pages of runs say the same: both go by these rules. A stage may still be at work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from keel.instruments.alarms import Row, alarms
from keel.instruments.words import known, number, percent, sentence

Floats = npt.NDArray[np.float64]

_OVERFIT = 1.05  # validation loss at the end, as a multiple of its lowest
_MOST_OVER_TARGET = 1.5
_LATE = 0.25  # share of the iterations that "at the end" is a mean over
_EARLY = 0.25  # share of the planned iterations before which a mean, or what a policy has lost, says little
_KL_ERRORS, _LEAST_KL = 5, 1e-3  # as ppo itself warns of
_MISSING = re.compile(r"reward/(.+)/missing")
_RANGES: tuple[tuple[str, float, float, Callable[[float], str], str], ...] = (  # metric, least, most, words
    ("objective/ended", 0.9, 1.0, percent, "Only {} of the responses end by themselves: raise max_new_tokens."),
    ("ppo/policy/clipfrac", 0.0, 0.2, percent, "{} of the tokens are clipped: the steps are too large."),
    (
        "objective/groups_alike",
        0.0,
        0.5,
        percent,
        "In {} of the groups all responses score alike: only the KL teaches.",
    ),
    ("ppo/val/explained_variance", 0.0, 1.0, number, "The critic explains nothing: its explained variance is {}."),
)


@dataclass(frozen=True)
class Concern:
    """Something to look into; a `grave` one qualifies the verdict."""

    stage: str
    sentence: str
    grave: bool = False


class Curve(Protocol):
    """A metric: the iterations that logged it, ascending, and its values; NaN where one was not finite."""

    @property
    def xs(self) -> Sequence[float]: ...

    @property
    def ys(self) -> Sequence[float]: ...


Curves = Mapping[str, Curve]


def of_training(stage: str, curves: Curves) -> Iterator[Concern]:
    """Of sft, reward or direct, once it is finished: overfitting."""
    steps, losses = _finite(curves.get(f"{stage}/validation/loss"))
    if not losses.size or losses[-1] <= _OVERFIT * losses.min():
        return
    yield Concern(
        stage,
        f"The validation loss was lowest at step {steps[losses.argmin()]:.0f} ({number(losses.min(), 3)}) and ended at "
        f"{number(losses[-1], 3)}: overfitting; fewer epochs.",
    )


def of_reward(found: Mapping[str, Any]) -> Iterator[Concern]:
    """Of what the reward stage reported at its end: accuracies that simple rules reach as well."""
    common, level = known(found.get("commonest_level")), _interval(found.get("level_accuracy_interval"))
    if common is not None and (level is None or level[0] <= common):
        yield Concern(
            "reward",
            "Not clearly better than always saying the commonest level: "
            f"{_range(level) if level else ''} beside {percent(common)}.",
        )
    interval, longer = _interval(found.get("accuracy_interval")), known(found.get("longer_wins"))
    if interval is None:
        return
    if interval[0] <= 0.5:
        said = f"It may be no better than a coin: right in {_range(interval)} of held-out pairs."
        yield Concern("reward", said, grave=True)
    elif longer is not None and interval[0] <= max(longer, 1 - longer):
        rule, rate = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
        said = f"Not clearly better than always picking the {rule} response: {_range(interval)} beside {percent(rate)}."
        yield Concern("reward", said)


def of_ppo(
    curves: Curves, *, progress: float, spent: float | None, limits: Mapping[str, float | None], since: int | None
) -> Iterator[Concern]:
    """Of ppo's curves. What the start of a run shows anyway is told from a quarter of it on.

    `progress` is the share of the planned iterations that is done, 1 once the stage has ended; `spent` are nats a
    response, and `limits` the recipe's `ppo.kl`; objectives up to the iteration `since` (`Fork.measured_since`) are of
    another scale.
    """
    late = progress >= _EARLY
    if late:
        yield from _fallen_objective(curves.get("eval/objective"), since)
    for key, most in (("budget", 1.0), ("target", _MOST_OVER_TARGET)):
        limit = known(limits.get(key))
        if spent is not None and limit is not None and spent > most * limit:
            said = f"The KL is {number(spent)} nats a response, past its {key} of {limit:g}."
            yield Concern("ppo", said, grave=True)
            break
    yield from _negative_kl(curves.get("objective/kl"), curves.get("objective/kl_standard_error"))
    for key, low, high, form, words in _RANGES if late else ():
        value = _late(curves.get(key))
        if value is not None and not low <= value <= high:
            yield Concern("ppo", words.format(form(value)))
    yield from _without_opinion(curves)


def of_evaluations(
    rows: Sequence[Row], *, after: int, since: int | None, taken: float | None = None
) -> Iterator[Concern]:
    """The alarms of over-optimisation that ppo's last evaluations still raise.

    `taken` is the iteration whose policy was handed on, where the stage has ended: an alarm of a later one is no matter
    of that policy.
    """
    for alarm in alarms(rows, after, since):
        if alarm.standing and (taken is None or taken >= alarm.iteration):
            yield Concern("ppo", sentence(alarm.latest), alarm.grave)
        elif alarm.standing:
            past = f"; the policy of iteration {taken:.0f}, before that, was handed on"
            yield Concern("ppo", sentence(alarm.latest + past))


def ended_early(stage: str, found: Mapping[str, Any]) -> Iterator[Concern]:
    """What a stage's report says of having stopped before its time."""
    stopped = found.get("stopped")
    if isinstance(stopped, str) and stopped:
        yield Concern(stage, sentence(f"it ended early: {stopped}"))


def _fallen_objective(curve: Curve | None, since: int | None) -> Iterator[Concern]:
    xs, ys = _finite(curve)
    ys = ys if since is None else ys[xs > since]
    if len(ys) >= 2 and ys[-1] < ys[0]:
        said = f"The objective, score − β·KL, lies below its start: {number(ys[0])} → {number(ys[-1])}."
        yield Concern("ppo", said, grave=True)


def _negative_kl(kl: Curve | None, error: Curve | None) -> Iterator[Concern]:
    """An error that was not logged, or is not finite, counts as none."""
    xs, ys = _finite(kl)
    at, errors = _finite(error)
    known_errors = np.zeros_like(ys)
    _, here, there = np.intersect1d(xs, at, return_indices=True)
    known_errors[here] = errors[there]
    count = int((ys < -np.maximum(_KL_ERRORS * known_errors, _LEAST_KL)).sum())
    if count:
        iterations = "iteration" if count == 1 else "iterations"
        said = f"The KL estimate was impossibly negative in {count:,} {iterations}: an error."
        yield Concern("ppo", said, grave=True)


def _without_opinion(curves: Curves) -> Iterator[Concern]:
    for key in sorted(curves):
        found = _MISSING.fullmatch(key)
        share = _late(curves[key]) if found else None
        if found and share:
            yield Concern("ppo", f"The reward “{found[1]}” had no opinion on {percent(share, 1)} of the responses.")


def _late(curve: Curve | None) -> float | None:
    """The mean of a metric over the last quarter of what was logged."""
    _, ys = _finite(curve)
    return float(ys[-max(1, round(_LATE * len(ys))) :].mean()) if ys.size else None


def _finite(curve: Curve | None) -> tuple[Floats, Floats]:
    """Copies: what logs the curve may go on."""
    xs, ys = (np.array(part, dtype=np.float64) for part in ((curve.xs, curve.ys) if curve is not None else ((), ())))
    there = np.isfinite(ys)
    return xs[there], ys[there]


def _interval(bounds: Any) -> tuple[float, float] | None:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None
    least, most = map(known, bounds)
    return None if least is None or most is None else (least, most)


def _range(bounds: tuple[float, float]) -> str:
    """(0.84, 0.9) → 84–90%."""
    least, most = (number(100 * bound, 0) for bound in bounds)
    return f"{least}–{most}%"
