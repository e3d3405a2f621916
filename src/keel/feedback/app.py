"""The feedback app: the shell, who may come in, and every part's pages and API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from keel.feedback.database import Busy, Database
from keel.feedback.passwords import Passwords
from keel.feedback.refused import Refused
from keel.feedback.watch.app import watch_router
from keel.feedback.watch.runs import Runs
from keel.feedback.web import (
    home,
    judge_pages,
    judging,
    people_api,
    people_pages,
    projects_api,
    projects_pages,
    tasks_api,
    tasks_pages,
)
from keel.feedback.web.access import Access, csrf, viewer
from keel.feedback.web.shell import Pages, make_shell
from keel.feedback.web.sites import Sites

ROUTERS = (
    home.router,
    judge_pages.router,
    judging.router,
    people_pages.router,
    people_api.router,
    projects_pages.router,
    projects_api.router,
    tasks_pages.router,
    tasks_api.router,
)
WATCH = "/watch"
HOME: tuple[home.Provider, ...] = (judge_pages.to_judge, judge_pages.judged_before, projects_pages.home_list)
"""The lists of the first page, in their order."""

_BUSY = Refused("busy", "the database is busy, has no room or cannot be reached; try again in a moment", retry_after=2)
_REFUSALS: Mapping[type[Exception], Refused] = {
    OperationalError: _BUSY,  # locked for too long, two that waited for each other, a server that is gone
    NoConnection: _BUSY,
    Busy: _BUSY,
    IntegrityError: Refused("conflict", "somebody else changed that at the same time; load it anew, and try again"),
}


def make_app(
    database: Database,
    *,
    public_url: str | None = None,
    host: str | None = None,
    passwords: Passwords | None = None,
    runs: Sequence[Path] = (),
    ending: asyncio.Event | None = None,
) -> FastAPI:
    """An ASGI app on that database.

    `public_url` is how browsers reach it, where that is not the address it is bound to; `host` the name it is bound to.
    Requests for other names than these and this machine's are refused. Admins and viewers see the `runs`, directories
    as `keel watch` takes them, below /watch; their streams end when `ending` is set.
    """
    pages, sites = Pages(csrf=csrf), Sites(public_url, host)
    app = make_shell(pages, title="Keel feedback", sites=sites, sign_in=people_pages.SIGN_IN, refusals=_REFUSALS)
    app.state.pages = pages
    app.state.database = database
    app.state.access = Access(database, sites=sites, passwords=passwords or Passwords())
    app.state.home = HOME
    app.state.watched = bool(runs)
    app.state.lapses = judging.Lapses(database)
    for router in ROUTERS:
        app.include_router(router)
    if runs:
        ending = ending or asyncio.Event()
        app.include_router(watch_router(Runs(runs), pages, guard=viewer, ending=ending, prefix=WATCH))
    return app
