"""What every page and answer of the app has in common: headers, errors, templates, static files, a body's limit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keel.errors import UserError, first_line
from keel.feedback.refused import Code, Refused, not_valid
from keel.feedback.web.sites import Sites
from keel.feedback.words import counted

_HERE = Path(__file__).parent.parent
STATUS: dict[Code, int] = {
    "invalid": 422,
    "unauthorised": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "gone": 410,
    "too_large": 413,
    "too_many": 429,
    "failed": 500,
    "busy": 503,
}
_CODES: dict[int, Code] = {status: code for code, status in STATUS.items()}
_NO_ROUTE = {404: "there is nothing at this address", 405: "nothing at this address takes such a request"}
_TITLES: dict[Code, str] = {
    "unauthorised": "Not signed in",
    "forbidden": "Not yours to see",
    "not_found": "Nothing here",
    "gone": "Too late",
    "too_many": "Too many attempts",
    "failed": "The server failed",
    "busy": "Busy for now",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""No script and no style but from the app's own files: none that a response could bring."""
MOST_BYTES = "keel.most_bytes"
"""In a request's scope: the bytes that its body may have, where a route takes more than others."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}

_logger = logging.getLogger(__name__)


class Reason(BaseModel):
    code: Code
    message: str
    field: str | None


class Problem(BaseModel):
    """What the API answers where it refuses."""

    error: Reason


REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem, "description": "Refused, and why"}}
"""An API's `responses`, for its OpenAPI document."""
REFUSED_OR_BUSY = REFUSED | {
    "503": {"model": Problem, "description": "The database is busy; ask again after the seconds of Retry-After"},
}
"""The same where routes need the database."""


class Pages:
    """Templates of `templates/`, escaped; every one is given `request`, `refused` and what `common` holds."""

    def __init__(self, **common: Any) -> None:
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self.environment.globals.update(common)
        self.environment.filters |= {"day": _day, "minute": _minute, "sentence": _sentence, "counted": counted}

    def __call__(
        self, request: Request, template: str, *, refused: Refused | None = None, **context: Any
    ) -> HTMLResponse:
        """The page made of a template; what was `refused` gives it its status, and says when to try again."""
        text = self.environment.get_template(template).render(request=request, refused=refused, **context)
        if refused is None:
            return HTMLResponse(text)
        return HTMLResponse(text, status_code=STATUS[refused.code], headers=_retry_after(refused))


def _retry_after(refused: Refused) -> dict[str, str]:
    return {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _minute(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _sentence(words: object) -> str:
    """With a capital, and one full stop."""
    said = str(words)
    return f"{said[:1].upper()}{said[1:].removesuffix('.')}."


def make_shell(
    pages: Pages,
    *,
    title: str,
    max_body: int = 8 << 20,
    sites: Sites | None = None,
    sign_in: str | None = None,
    refusals: Mapping[type[Exception], Refused] | None = None,
) -> FastAPI:
    """An app without routes, on which `web` and `watch` put theirs. A body of more than `max_body` bytes is refused.

    `sites` checks every request that has a route; `sign_in` is the page where a browser goes that must sign in first;
    `refusals` says what becomes of exceptions that this module does not know.
    """
    guards = [] if sites is None else [Depends(sites.check)]
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", dependencies=guards)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.add_middleware(_Guarded, max_body=max_body)
    refusals = refusals or {}

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error.__cause__, Refused):  # that FastAPI met while it read the body
            error = error.__cause__
        refused = next((one for kind, one in refusals.items() if isinstance(error, kind)), None)
        if refused is None:
            refused = _refused(error)
        else:
            _logger.warning("%s: %s", refused, first_line(error))
        if sign_in and refused.code == "unauthorised" and request.method == "GET" and not _is_api(request):
            return RedirectResponse(f"{sign_in}?{urlencode({'next': _asked(request)})}", status_code=303)
        answer = _refusal(pages, request, refused)
        if isinstance(error, HTTPException):
            answer.status_code = error.status_code
            answer.headers.update(error.headers or {})
        return answer

    for kind in (Refused, UserError, HTTPException, RequestValidationError, *refusals, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def _asked(request: Request) -> str:
    """What was asked for, without the server's name."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, UserError):
        return Refused("invalid", str(error))
    if isinstance(error, RequestValidationError):
        return not_valid(error, "the request", skip=1)  # whether it stands in the body or the query
    if isinstance(error, HTTPException):
        said = _NO_ROUTE.get(error.status_code, str(error.detail))
        return Refused(_CODES.get(error.status_code, "invalid"), said)
    _logger.error("a request failed", exc_info=error)
    return Refused("failed", "the server failed; its terminal says why")


def _refusal(pages: Pages, request: Request, refused: Refused) -> Response:
    """One JSON shape for programs, a page for browsers."""
    status = STATUS[refused.code]
    headers = _HEADERS | _retry_after(refused)  # the guard's too: where the server failed it does not see the answer
    if _is_api(request):
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        problem = Problem(error=Reason(code=refused.code, message=str(refused), field=refused.field))
        return JSONResponse(problem.model_dump(), status_code=status, headers=headers)
    title = _TITLES.get(refused.code, "That did not work")
    page = pages(request, "error.html.j2", refused=refused, heading=title)
    page.headers.update(headers)
    return page


class _Guarded:
    """Adds the security headers to every answer, and ends a body that is too large."""

    def __init__(self, app: ASGIApp, *, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        declared, taken = int(length) if length.isdecimal() else 0, 0

        async def counted() -> Message:
            nonlocal taken
            most = scope.get(MOST_BYTES, self._max_body)
            message: Message = {} if declared > most else await receive()  # too much is not even read
            taken += len(message.get("body", b""))
            if max(declared, taken) > most:
                raise Refused("too_large", f"the request has more than {most >> 20} MiB; send several")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "max-age=3600"
            await send(message)

        await self._app(scope, counted, with_headers)
