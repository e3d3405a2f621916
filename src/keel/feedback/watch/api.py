"""What scripts ask of the runs: where they stand, points of curves, and to be told of news."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from keel.feedback.refused import Refused
from keel.feedback.watch import status
from keel.feedback.watch.downsample import Floats
from keel.feedback.watch.runs import LiveRun, Runs
from keel.feedback.watch.stage import LiveStage
from keel.feedback.web.shell import REFUSED

_EVERY = 1.0  # seconds between two looks of a stream
_SOON = 0.05  # while files that are there have not been read to their end
_HEARTBEAT = 15.0  # seconds of silence after which a stream says that it lives
_MOST_KEYS = 200
_DIGITS = 6  # of a value: more than a screen shows


class StageNow(BaseModel):
    """A stage: its state, how far it is (in the `unit` named), and counts that change when there is more to read."""

    state: str
    steps: int | None
    planned: int | None
    unit: str
    eta_seconds: float | None
    generation: int
    lines: int
    samples: int


class EndingNow(BaseModel):
    """What ended a run early: whether it `failed` at the stage or was `left` there, and why."""

    stage: str
    how: str
    sentence: str


class RunNow(BaseModel):
    """A run, as it is now."""

    run: str
    label: str
    state: str
    ending: EndingNow | None
    stages: dict[str, StageNow]


class Asked(BaseModel):
    """At most `points` points of each metric in `key`: of the whole curve, of a window of it, or the new ones.

    A window reaches from `low` to `high`, with the next point beyond each end, so that lines reach its edges. New
    points are those after the iteration `after`, if that was read in this `generation`; where there are more than
    `points` of them, the answer is the whole curve.
    """

    key: list[str] = Field(max_length=_MOST_KEYS)
    points: int = Field(600, ge=5, le=5000)
    low: float = -math.inf
    high: float = math.inf
    after: float | None = None
    generation: int | None = None


class Points(BaseModel):
    """A curve: iterations, and values that are null where they were not finite."""

    key: str
    x: list[float]
    y: list[float | None]


class Series(BaseModel):
    """Curves of a stage up to its iteration `until`; `whole` unless they are only what is new."""

    generation: int
    until: float | None
    whole: bool
    series: list[Points]


def api(runs: Runs, ending: asyncio.Event, guard: Callable[..., Any]) -> APIRouter:
    """The routes under `/api/watch`; streams end when `ending` is set."""
    router = APIRouter(prefix="/api/watch", tags=["watch"], dependencies=[Depends(guard)], responses=REFUSED)

    @router.get("/runs")
    def list_runs() -> list[RunNow]:
        """Every run that is watched."""
        with runs.seen() as found:
            return [now(run) for run in found.values()]

    @router.get("/runs/{run_id}")
    def show_run(run_id: str) -> RunNow:
        """One run."""
        with runs.one(run_id) as run:
            return now(run)

    @router.get("/runs/{run_id}/stages/{stage}/series")
    def show_series(run_id: str, stage: str, asked: Annotated[Asked, Query()]) -> Series:
        """Points of curves."""
        with runs.one(run_id) as run:
            if stage not in run.stages:
                raise Refused("not_found", f"This run has no stage of the name {stage[:40]}.")
            return _series(run.stages[stage], asked)

    @router.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
    async def events(
        run: Annotated[list[str] | None, Query(max_length=_MOST_KEYS)] = None,
        cursor: str = "",
        last_event_id: Annotated[str, Header()] = "",
    ) -> StreamingResponse:
        """Server-sent events: each the runs that have changed (of those named, else of all) since the one before.

        The id of an event is a cursor; a stream that starts with one tells what has changed since.
        """
        stream = _stream(runs, ending, set(run or ()), last_event_id or cursor)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return router


def now(run: LiveRun) -> RunNow:
    """The run as the API says it."""
    found = status.of_run(run)
    stages = {one.name: _stage_now(one, run.stages.get(one.name)) for one in found.stages}
    ending = EndingNow(**asdict(found.ending)) if found.ending else None
    return RunNow(run=run.id, label=run.label, state=found.state, ending=ending, stages=stages)


def _stage_now(one: status.StageStatus, stage: LiveStage | None) -> StageNow:
    return StageNow(
        state=one.state,
        steps=one.steps,
        planned=one.planned,
        unit=one.unit,
        eta_seconds=one.eta,
        generation=stage.generation if stage else 0,
        lines=stage.num_rows if stage else 0,
        samples=stage.num_samples if stage else 0,
    )


def _series(stage: LiveStage, asked: Asked) -> Series:
    curves = {key: stage.curves[key] for key in dict.fromkeys(asked.key) if key in stage.curves}
    after = asked.after if asked.generation == stage.generation else None
    new = after is not None and all(curve.count_after(after) <= asked.points for curve in curves.values())
    found = []
    for key, curve in curves.items():
        low, high = curve.around(asked.low, asked.high)
        if after is not None and new:
            low, high = math.nextafter(after, math.inf), math.inf
        found.append(_points(key, *curve.points(asked.points, low, high)))
    until = stage.iteration if math.isfinite(stage.iteration) else None
    return Series(generation=stage.generation, until=until, whole=not new, series=found)


def _points(key: str, xs: Floats, ys: Floats) -> Points:
    values = [float(f"{y:.{_DIGITS}g}") if math.isfinite(y) else None for y in ys.tolist()]
    return Points(key=key, x=xs.tolist(), y=values)


async def _stream(runs: Runs, ending: asyncio.Event, wanted: set[str], cursor: str) -> AsyncIterator[str]:
    """An event when something has changed, at most one a second; a comment where nothing does for long."""
    seen = runs.version_at(cursor)
    quiet = _HEARTBEAT  # so that something comes at once
    while not ending.is_set():
        version, changed = await run_in_threadpool(_news, runs, wanted, seen)
        if changed is not None:
            yield f"id: {runs.cursor_of(version)}\ndata: {json.dumps({'runs': changed})}\n\n"
        elif quiet >= _HEARTBEAT:
            yield ": nothing new\n\n"
        quiet = 0.0 if changed is not None or quiet >= _HEARTBEAT else quiet + _EVERY
        seen = version
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), _SOON if runs.behind else _EVERY)


def _news(runs: Runs, wanted: set[str], seen: int) -> tuple[int, list[str] | None]:
    """The version now, and which runs have changed since `seen`; None if none has, come or gone."""
    with runs.seen() as found:
        changed = [run.id for run in found.values() if run.version > seen and (not wanted or run.id in wanted)]
        return runs.version, changed if changed or runs.searched > seen else None
