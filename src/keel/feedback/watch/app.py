"""`keel watch` as an app of its own, and as a router for another app on the same shell."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from keel.feedback.refused import Refused
from keel.feedback.watch.api import api
from keel.feedback.watch.pages import pages_router
from keel.feedback.watch.runs import Runs
from keel.feedback.web.shell import Pages, make_shell

_COOKIE = "keel_watch"


def make_watch_app(
    named: Sequence[Path], *, is_local: Callable[[str], bool], token: str | None = None, ending: asyncio.Event
) -> FastAPI:
    """The pages of the runs at or below the named directories.

    Without a `token` only requests whose Host header `is_local` accepts are answered, so that no other site's page can
    read them by a name of its own (DNS rebinding). With one, only requests that bring it are: as a bearer token, or by
    the cookie of a browser that once opened a page with `?token=…`. Streams end when `ending` is set.

    Raises UserError for what is no directory.
    """
    pages = Pages()
    app = make_shell(pages, title="keel watch")
    app.include_router(watch_router(Runs(named), pages, guard=_guard(is_local, token), ending=ending))
    if token is not None:

        @app.middleware("http")
        async def take_token(request: Request, answer: Callable[[Request], Any]) -> Response:
            given = request.query_params.get("token")
            if given is None or not _same(given, token):
                response: Response = await answer(request)
                return response
            clean = RedirectResponse(str(request.url.remove_query_params("token")), status_code=303)
            clean.set_cookie(_COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
            return clean

    return app


def watch_router(
    runs: Runs, pages: Pages, *, guard: Callable[..., Any], ending: asyncio.Event, prefix: str = ""
) -> APIRouter:
    """Pages below `prefix` (empty, or `/watch`) and their API, below `/api/watch`; `guard` is asked before each."""
    router = APIRouter()
    router.include_router(pages_router(runs, pages, prefix, guard))
    router.include_router(api(runs, ending, guard))
    return router


def _guard(is_local: Callable[[str], bool], token: str | None) -> Callable[[Request], None]:
    def guard(request: Request) -> None:
        if token is None:
            host = request.url.hostname or ""
            if not is_local(host):
                raise Refused("forbidden", f"Without a token this server answers to localhost, not to {host[:80]}.")
            return
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else request.cookies.get(_COOKIE, "")
        if not _same(given, token):
            raise Refused("unauthorised", "Open the address with ?token=… that the terminal has shown.")

    return guard


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())
