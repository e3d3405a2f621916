"""Which instruments of a PPO run are out of their range, from its held-out evaluations alone.

An evaluation is a line of ppo's `metrics.jsonl` with `eval/…` in it; all are of the same prompts with the same random
numbers. The ranges are argued from measured runs in docs/guides/over-optimisation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from keel.instruments.peaks import least_fall
from keel.instruments.words import number

Row = Mapping[str, float | None]
R = TypeVar("R", bound=Row)
Watch = Callable[[Sequence[Row]], str | None]
Instrument = tuple[str, Watch, bool]  # its name, and whether its alarm is grave

LEAST_SURPRISE, MOST_SURPRISE = 0.25, 1.25  # times what it was at the start
LEAST_VARIETY = 1 / 3  # likewise, of distinct pairs of tokens
MOST_REPETITION = 0.05  # above what it was at the start
MOST_CORRELATION = 0.8
MOST_DISAGREEMENT = 1.5  # times what it was at the start
AFTER = 2  # evaluations in a row, unless the recipe says otherwise
_HELD_OUT = (("true utility", "eval/utility"), ("judge's score", "eval/judge"))
_DISAGREEMENT = ("eval/reward/", "/disagreement")


@dataclass(frozen=True)
class Alarm:
    """An instrument that was out of its range at enough evaluations in a row."""

    name: str  # of the instrument
    iteration: int  # of the evaluation at which it was raised
    raised: str  # the sentence of that evaluation
    latest: str  # of the last one so far; empty where the instrument has come back
    grave: bool  # whether the run has gone wrong, or should be looked at

    @property
    def standing(self) -> bool:
        return bool(self.latest)

    def with_note(self, note: str) -> Alarm:
        return replace(self, raised=self.raised + note, latest=self.latest and self.latest + note)


def alarms(rows: Sequence[Row], after: int, since: int | None = None) -> list[Alarm]:
    """All alarms that the lines `rows` of ppo's metrics raise at `after` evaluations in a row, in their order.

    With `since` (`Fork.measured_since`) no score is compared with one of that iteration or an earlier one.
    """
    evaluations = [row for row in rows if _value(row, "eval/scores") is not None]
    scored = comparable(evaluations, since)
    note = "" if since is None else f" (counted from the fork at iteration {since}; before it was measured otherwise)"
    found = [
        *(alarm.with_note(note) for one in _of_scores(scored) for alarm in _raised(scored, one, after)),
        *(alarm for one in _OF_TEXTS for alarm in _raised(evaluations, one, after)),
    ]
    return sorted(found, key=lambda alarm: alarm.iteration)


def comparable(rows: Sequence[R], since: int | None) -> list[R]:
    """The lines whose scores are of one scale: those after `since`, where it is given."""
    return [row for row in rows if since is None or (row["iteration"] or 0) > since]


def _raised(evaluations: Sequence[Row], instrument: Instrument, after: int) -> Iterator[Alarm]:
    name, watch, grave = instrument
    streak: list[tuple[int, str]] = []
    for place in range(1, len(evaluations)):
        sentence = watch(evaluations[: place + 1])
        if sentence is not None:
            streak.append((int(evaluations[place]["iteration"] or 0), sentence))
            continue
        if len(streak) >= after:
            yield Alarm(name, *streak[after - 1], latest="", grave=grave)
        streak = []
    if len(streak) >= after:
        yield Alarm(name, *streak[after - 1], latest=streak[-1][1], grave=grave)


def _of_scores(evaluations: Sequence[Row]) -> Iterator[Instrument]:
    """Those that go by a score of one scale."""
    for name, key in _HELD_OUT:
        yield name, _proxy_against(name, key), True
    yield "length", _correlation, False
    before, behind = _DISAGREEMENT
    for key in evaluations[0] if evaluations else ():
        if key.startswith(before) and key.endswith(behind):
            name = key.removeprefix(before).removesuffix(behind)
            yield f"disagreement of {name}", _apart(key, name), False


def _proxy_against(name: str, key: str) -> Watch:
    """Falls by more than chance from its peak while the score that is trained on lies above what it was there."""

    def watch(history: Sequence[Row]) -> str | None:
        now = history[-1]
        peak = next((row for row in history if row["iteration"] == now.get(f"{key}/peak")), None)
        if peak is None:
            return None
        top, value, error = _value(peak, key), _value(now, key), _value(now, f"{key}/fall_error")
        before, score = _value(peak, "eval/scores"), _value(now, "eval/scores")
        if top is None or value is None or error is None or before is None or score is None:
            return None
        if top - value <= least_fall(len(history) - 1) * error or score <= before:
            return None
        return (
            f"over-optimisation: the {name} peaked at iteration {peak['iteration']:.0f} and fell from "
            f"{number(top)} to {number(value)}, while the score rose on from {number(before)} to "
            f"{number(score)}; end at the peak (stop_at_peak), a larger kl.coef, or fresh comparisons"
        )

    return watch


def _correlation(history: Sequence[Row]) -> str | None:
    now = _value(history[-1], "eval/score_length_correlation")
    if now is None or abs(now) <= MOST_CORRELATION:
        return None
    return f"score and length are correlated by {number(now)}: the score may have become a ruler"


def _surprise(history: Sequence[Row]) -> str | None:
    start, now = _ends(history, "eval/surprise")
    if start is None or now is None or LEAST_SURPRISE * start <= now <= MOST_SURPRISE * start:
        return None
    way = "mode collapse: the entropy fell" if now < start else "the policy leaves the language: its entropy rose"
    return f"{way} from {number(start)} to {number(now)} nats a token"


def _variety(history: Sequence[Row]) -> str | None:
    start, now = _ends(history, "eval/distinct_2")
    if start is None or now is None or now >= LEAST_VARIETY * start:
        return None
    return f"mode collapse: distinct pairs of tokens fell from {start:.0%} to {now:.0%} of all"


def _repetition(history: Sequence[Row]) -> str | None:
    start, now = _ends(history, "eval/repetition")
    if start is None or now is None or now <= start + MOST_REPETITION:
        return None
    return f"the responses repeat themselves: {now:.0%} of their four-grams, where it was {start:.0%}"


_OF_TEXTS: tuple[Instrument, ...] = (
    ("entropy", _surprise, False),
    ("variety", _variety, False),
    ("repetition", _repetition, False),
)


def _apart(key: str, name: str) -> Watch:
    """The members of an ensemble."""

    def watch(history: Sequence[Row]) -> str | None:
        start, now = _ends(history, key)
        if start is None or now is None or now <= MOST_DISAGREEMENT * start:
            return None
        return (
            f"the members of “{name}” disagree by {number(now)} on what the policy writes now, {number(start)} at "
            "the start: it has left what the comparisons show"
        )

    return watch


def _ends(history: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    """At the start and now."""
    return _value(history[0], key), _value(history[-1], key)


def _value(row: Row, key: str) -> float | None:
    """A finite number, else None."""
    value = row.get(key)
    return value if value is not None and math.isfinite(value) else None
