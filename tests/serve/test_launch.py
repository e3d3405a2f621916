from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

import pytest
import uvicorn

from keel.serve.launch import listen, run_until_told
from tests.serve.support import PATIENCE


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_before_it_serves_it_ends(how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the words that say that it is ready and the moment at which it is."""

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    run = uvicorn.Server.run

    def told(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        signal.raise_signal(how)
        run(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", told)
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    again = threading.Timer(PATIENCE, os.kill, (os.getpid(), signal.SIGTERM))
    again.start()
    with listen("127.0.0.1", 0) as listening:
        run_until_told(nothing, listening)
    assert not again.finished.is_set(), "it had to be told twice"
    again.cancel()
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
