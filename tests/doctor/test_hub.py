"""Against servers of our own: one that answers, one that refuses, one that never says a word, and none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from keel.doctor import hub
from keel.doctor.finding import Mark
from keel.doctor.hub import check_hub


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)


@pytest.fixture(params=[200, 403])
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_any_answer_is_one(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", answering)
    assert check_hub(timeout=60).mark is Mark.GOOD


def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert check_hub(timeout=0.2).mark is Mark.NOTE  # and comes back at all


def test_a_name_that_never_resolves_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking a name up has no timeout of its own."""
    hold = threading.Event()
    monkeypatch.setattr(hub, "_ask", lambda *_: hold.wait(60))
    found = check_hub(timeout=0.1)
    hold.set()
    assert (found.mark, found.said.split(":")[0]) == (Mark.NOTE, "no answer within 0.1 seconds")


def test_nobody_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    found = check_hub(timeout=60)
    assert found.mark is Mark.NOTE
    assert "cannot be reached" in found.said


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked"))
    assert "HF_HUB_OFFLINE" in check_hub().said
