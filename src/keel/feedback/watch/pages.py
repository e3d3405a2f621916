"""The pages of runs. A part of a page is a page's own template, asked for again when there is news."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from keel.feedback.refused import Refused
from keel.feedback.watch import charts, samples, status
from keel.feedback.watch.formats import format_duration, format_number
from keel.feedback.watch.runs import LiveRun, Runs
from keel.feedback.watch.stage import LiveStage
from keel.feedback.web.shell import Pages
from keel.runs.layout import STAGES

_MOST_COMPARED = 12
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a run's report needs: its own styles and nothing else. It may have been written by anybody."""


def pages_router(runs: Runs, pages: Pages, prefix: str, guard: Callable[..., Any]) -> APIRouter:
    """The pages, below `prefix`, which is empty or starts with a slash."""
    router = APIRouter(prefix=prefix, include_in_schema=False, dependencies=[Depends(guard)])
    pages.environment.filters |= {"data": asdict, "duration": format_duration, "number": format_number}

    def show(request: Request, template: str, **context: Any) -> HTMLResponse:
        return pages(request, template, home=prefix, **context)

    @router.get("/")
    def overview(request: Request) -> Response:
        with runs.seen() as found:
            return show(request, "watch_runs.html.j2", rows=_rows(found), cursor=runs.cursor)

    @router.get("/parts/runs")
    def overview_part(request: Request) -> Response:
        with runs.seen() as found:
            return show(request, "watch_runs_part.html.j2", rows=_rows(found))

    @router.get("/compare")
    def compare(
        request: Request,
        run: Annotated[list[str] | None, Query()] = None,
        stage: str = "",
        metric: Annotated[list[str] | None, Query()] = None,
    ) -> Response:
        with runs.seen() as found:
            side_by_side = _compared(found, run or (), stage, metric or ())
            return show(request, "watch_compare.html.j2", **side_by_side, cursor=runs.cursor)

    @router.get("/runs/{run_id}")
    def one_run(request: Request, run_id: str, stage: str = "", iteration: int | None = None) -> Response:
        with runs.one(run_id) as run:
            return show(request, "watch_run.html.j2", **_of_run(run, stage, iteration), cursor=runs.cursor)

    @router.get("/runs/{run_id}/parts/{part}")
    def run_part(
        request: Request,
        run_id: str,
        part: Literal["state", "charts", "samples"],
        stage: str = "",
        iteration: int | None = None,
    ) -> Response:
        with runs.one(run_id) as run:
            return show(request, f"watch_{part}.html.j2", **_of_run(run, stage, iteration))

    @router.get("/runs/{run_id}/report")
    def report(run_id: str) -> Response:
        with runs.one(run_id) as run:
            content = run.report()
        if content is None:
            raise Refused("not_found", "This run has no report yet; keel report RUN writes one.")
        return Response(
            content, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY}
        )

    return router


def _rows(found: Mapping[str, LiveRun]) -> list[status.RunStatus]:
    """The overview's lines: what runs first, then by when something was last written."""
    rows = [status.of_run(run) for run in found.values()]
    return sorted(rows, key=lambda row: (row.state != "running", -row.run.changed_at, row.run.label))


def _compared(found: Mapping[str, LiveRun], runs: Sequence[str], stage: str, metrics: Sequence[str]) -> dict[str, Any]:
    """What the comparison shows: of the runs, the stage and the metrics that were asked for, those that there are."""
    chosen = [found[name] for name in dict.fromkeys(runs) if name in found][:_MOST_COMPARED]
    there = [name for name in STAGES if any(name in one.stages and one.stages[name].curves for one in chosen)]
    named = stage if stage in there else next((name for name in ("ppo", *there) if name in there), "")
    keys = sorted({key for one in chosen if named in one.stages for key in one.stages[named].curves})
    wanted = [key for key in metrics if key in keys] or charts.first_choice(named, keys)
    return {
        "found": list(found.values()),
        "chosen": chosen,
        "stages": there,
        "stage": named,
        "keys": keys,
        "wanted": wanted,
        "charts": charts.compared(chosen, named, wanted),
    }


def _of_run(run: LiveRun, asked: str, iteration: int | None) -> dict[str, Any]:
    """What the page of one run and its parts show: the stage that was asked for, else the one to look at."""
    found = status.of_run(run)
    if asked and asked not in STAGES:
        raise Refused("not_found", f"There is no stage of the name {asked[:40]}.")
    shown = next((one for one in found.stages if one.name == asked), None) if asked else found.current
    stage = run.stages.get(shown.name) if shown else None
    drawn = samples.iterations(stage) if stage else []
    at = iteration if iteration in drawn else (drawn[-1] if drawn else None)
    views = samples.of_iteration(stage, at) if stage and at is not None else []
    return {
        "run": run,
        "now": found,
        "shown": shown,
        "asked": asked,
        "charts": charts.chosen(run, stage) if stage else [],
        "others": charts.others(run, stage) if stage else [],
        "counts": _counts(stage),
        "iterations": drawn,
        "iteration": at,
        "pinned": iteration is not None and iteration == at,
        "samples": views,
        "painted": any(text.pieces for view in views for text in view.texts),
    }


def _counts(stage: LiveStage | None) -> dict[str, str]:
    """What differs where the page's charts are others, or there are other samples."""
    if stage is None:
        return {"charts": "", "samples": ""}
    return {
        "charts": f"{stage.name} {len(stage.curves)}",
        "samples": f"{stage.name} {stage.generation} {stage.num_samples}",
    }
