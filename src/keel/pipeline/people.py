"""Waiting for people: what they are asked is published once, and the stage goes on when enough of it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from keel.annotate.people import Away, Opinion, Panel, Standing
from keel.config.collect import PeopleConfig
from keel.errors import UserError
from keel.runs.console import Console
from keel.runs.progress import MINUTES_LEFT
from keel.runs.stage import StageRun
from keel.schema import Sampled

T = TypeVar("T")
Pause = Callable[[float], None]

_POLL_SECONDS = 2.0
_NAMED = 4  # people on the line of progress
_ROUNDING = 1e-9  # of a share of the pairs


def ask_people(
    config: PeopleConfig,
    panel: Panel,
    questions: Sequence[Sampled],
    *,
    stage: StageRun,
    step: int,
    console: Console,
    pause: Pause,
) -> list[Opinion]:
    """Publish the questions and wait for the answers; `pause` sleeps for some seconds between two looks.

    Told to end meanwhile, or not to wait, it leaves the run at `step`, where it goes on without asking again.
    """

    def rest() -> None:
        if stage.leaving:
            stage.leave(step)
        if not config.wait:
            stage.leave(step, "and does not wait while people judge")
        pause(_POLL_SECONDS)

    def patiently(ask: Callable[[], T]) -> T:
        told = False
        while True:
            try:
                return ask()
            except Away as error:
                if not told:
                    console.say(f"{stage.name}: {error}; it is asked again and again.")
                told = True
            rest()

    new = patiently(lambda: panel.publish(questions))
    asked = f"{len(questions)} pairs wait for people" if new else f"{len(questions)} pairs are with people already"
    console.say(f"{stage.name}: {asked}. {panel.where}")
    began: tuple[float, int] | None = None  # when, and with how many votes
    shown: Standing | None = None
    while True:
        standing = patiently(panel.standing)
        now = time.monotonic()
        began = began or (now, standing.votes)
        if standing != shown:  # where nothing is redrawn each is a line
            console.progress("people", standing.complete, standing.questions, _numbers(standing, began, now))
            shown = standing
        if standing.questions and standing.complete >= config.enough * standing.questions - _ROUNDING:
            opinions = patiently(panel.opinions)
            if opinions:  # else they were withdrawn since
                return opinions
        else:
            _require_open(config, stage.name, standing)
        rest()


def _require_open(config: PeopleConfig, stage: str, standing: Standing) -> None:
    """Raises UserError where no more judgements can come: all pairs were withdrawn, or the project was closed."""
    if not standing.questions:
        raise UserError(
            f"{stage}: all of its pairs were withdrawn from the project {config.project}; put them back there, or ask "
            f"anew with another {stage}.annotator.people.round"
        )
    if not standing.open:
        lower = f", or lower {stage}.annotator.people.enough to go on with those" if standing.complete else ""
        raise UserError(
            f"{stage}: the project {config.project} was closed with {standing.complete} of {standing.questions} pairs "
            f"judged; open it again{lower}"
        )


def _numbers(standing: Standing, began: tuple[float, int], now: float) -> dict[str, float]:
    """Who gave how many votes, and how long the rest takes at the pace seen so far."""
    numbers: dict[str, float] = dict(list(standing.by.items())[:_NAMED])
    given = standing.votes - began[1]
    if given > 0:
        numbers[MINUTES_LEFT] = (standing.wanted - standing.votes) * (now - began[0]) / given / 60
    return numbers
