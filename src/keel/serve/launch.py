"""A socket, and a server on it until it is told to end."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from types import FrameType
from typing import Any

from keel.errors import UserError

_BACKLOG = 2048
_IDLE_SECONDS = 75  # that a connection is kept: people think for longer than the usual five
_THREADS = 100  # in which plain functions answer: those that wait for others must not keep pages and files from them


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on. Raises UserError where there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UserError(f"cannot listen at port {port} of {host}: {reason}; give another --host or --port") from None


def url_of(listening: socket.socket) -> str:
    """Where clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_until_told(app: Any, listening: socket.socket, ending: asyncio.Event | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that are there are answered first.

    `ending` is set before these are waited for: it tells answers that never end by themselves.
    """
    import anyio.to_thread
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
            await super().startup(sockets)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if ending is not None:
                ending.set()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=_IDLE_SECONDS
    )
    server = Server(config)

    def leave(number: int, frame: FrameType | None) -> None:
        """Before uvicorn listens to signals, and when it raises them anew at its end."""
        server.should_exit = True

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, leave) for kind in kinds]
    try:
        server.run(sockets=[listening])
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
