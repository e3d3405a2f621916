"""The HTTP side: who may ask, and how an answer goes back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from keel.errors import UserError
from keel.serve.desk import Desk, new_id
from keel.serve.kept import Kept, Ticket
from keel.serve.launch import is_loopback
from keel.serve.refusal import Refusal, refusal_of
from keel.serve.requests import read_chat, read_completion, read_scoring, read_update

_BODY_BYTES = 32 << 20
_KEPT_QUEUES = 4  # full queues of answers that are kept for requests that come again
_CLIENT_GONE = 499  # nobody reads it

T = TypeVar("T")


def make_app(desk: Desk, *, token: str | None, updates: bool) -> FastAPI:
    """The server; without a `token` only requests that name this machine are heard, so that no web page can ask."""
    app = FastAPI(openapi_url=None)
    kept = Kept(most=_KEPT_QUEUES * desk.worker.max_queue)
    for kind in (Refusal, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)

    async def answer(request: Request, read: Callable[[object], T], begin: Callable[[T, str], Ticket]) -> Response:
        """The answer to a request, or to the same one that came before."""
        content = await _content(request)
        request_id = request.headers.get("x-request-id")
        digest = hashlib.sha256(request.url.path.encode() + b"\n" + content).hexdigest()
        ticket = kept.find(request_id, digest) if request_id else None
        first = ticket is None
        if ticket is None:
            ticket = begin(read(_parsed(content)), request_id or new_id())
            if request_id:
                kept.keep(request_id, digest, ticket)
        if ticket.stream is not None:
            return _Events(ticket, ticket.stream(first))
        return await _whole(request, ticket)

    guarded = [Depends(_authorised(token))]

    @app.get("/health")
    async def health() -> Response:
        if not desk.worker.alive:
            raise Refusal("the server is ending", status=503)
        version = {"weight_version": desk.policies[0].version} if desk.policies else {}
        return JSONResponse({"status": "ok", **version})

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> Response:
        return JSONResponse(desk.listing())

    @app.post("/v1/completions", dependencies=guarded)
    async def completions(request: Request) -> Response:
        return await answer(request, read_completion, desk.generate)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat_completions(request: Request) -> Response:
        return await answer(request, read_chat, desk.generate)

    @app.post("/v1/score", dependencies=guarded)
    async def score(request: Request) -> Response:
        return await answer(request, read_scoring, desk.score)

    @app.post("/update_weights", dependencies=guarded)
    async def update_weights(request: Request) -> Response:
        if not updates:
            raise Refusal("this server keeps its weights; start it with --allow-updates", status=403)
        return await answer(request, read_update, desk.update)

    return app


def _authorised(token: str | None) -> Callable[[Request], Awaitable[None]]:
    """Refuses who has not the token, or where there is none, who does not name this machine."""

    async def authorised(request: Request) -> None:
        if token is None:
            host = request.url.hostname or ""
            if not is_loopback(host):
                raise Refusal(f"without a token this server answers to localhost, not to {host}", status=403)
        else:
            given = request.headers.get("authorization", "").encode("latin-1")  # the bytes that came
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                raise Refusal("the token is missing or wrong", status=401, code="invalid_api_key")

    return authorised


async def _content(request: Request) -> bytes:
    """The body, which says that it is JSON: a web page could not send that here unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal("the request is no JSON; send Content-Type: application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _BODY_BYTES:
            raise Refusal(f"the request has more than {_BODY_BYTES >> 20} MiB; send several", status=413)
    return bytes(content)


def _parsed(content: bytes) -> object:
    try:
        tree: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the request is no JSON ({error})") from None
    return tree


async def _whole(request: Request, ticket: Ticket) -> Response:
    """The answer, unless the client goes before there is one."""
    gone = asyncio.ensure_future(_disconnected(request))
    done = asyncio.wrap_future(ticket.future)
    ticket.listeners += 1
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(ticket.answer(done.result())) if done.done() else Response(status_code=_CLIENT_GONE)
    finally:
        gone.cancel()
        ticket.left()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Server-sent events to a client that waits; it may be gone before the first."""

    def __init__(self, ticket: Ticket, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        ticket.listeners += 1
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.left()


async def _refuse(request: Request, error: Exception) -> Response:
    """Any error in OpenAI's shape."""
    if isinstance(error, HTTPException):
        error = Refusal(str(error.detail), status=error.status_code)
    refusal = refusal_of(error)
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)
