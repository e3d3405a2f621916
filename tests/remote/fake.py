"""A server in the test's own process that counts what it is asked, and fails on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    number: int
    path: str
    body: Any
    id: str | None
    token: str | None


@dataclass(frozen=True)
class Reply:
    """What is sent back, and how it goes wrong."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0  # seconds
    cut: bool = False  # the connection ends in the middle of the body
    die: bool = False  # the server ends: this request and all that follow have no answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no affair of the test."""


class FakeServer:
    """Answers with what `answer` makes of a request; remembers all requests, and how many it had at a time."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self.dead = False
        self.greeted = 0  # times that it was asked for its health, which it says while it is not dead
        self._at_once = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.handle(self, None)

            def do_POST(self) -> None:
                fake.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._listener = _Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def paths(self) -> list[str]:
        return [one.path for one in self.asked]

    def handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        if handler.path == "/health":
            self.greeted += 1
            self._send(handler, Reply(die=self.dead))
            return
        token = handler.headers.get("Authorization")
        with self._lock:
            asked = Asked(len(self.asked), handler.path, body, handler.headers.get("X-Request-Id"), token)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = Reply(die=True) if self.dead else self.answer(asked)
            time.sleep(reply.after)
        finally:
            with self._lock:
                self._at_once -= 1
        self.dead = self.dead or reply.die
        self._send(handler, Reply(die=True) if self.dead else reply)

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.die:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        content = b"" if reply.body is None else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if reply.cut else content)
        if reply.cut:
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
