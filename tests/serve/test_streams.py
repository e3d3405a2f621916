from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from keel.serve.app import _Events
from keel.serve.kept import Ticket
from keel.serve.streams import settled


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", (), "one two"),
        ("caf\ufffd", (), "caf"),
        ("one\n", ("\n\n",), "one"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("xaab", ("aac", "abd"), "xa"),
        ("the end", ("dust", "END"), "the en"),
        ("STOP", ("STOP",), ""),
    ],
)
def test_what_may_still_become_a_stop_string_waits(text: str, stops: tuple[str, ...], expected: str) -> None:
    assert settled(text, stops) == expected


def test_a_client_that_leaves_before_the_first_event_is_not_waited_for() -> None:
    """Nobody reads the events, so what has not begun is given up; another client's wait keeps it."""

    async def events() -> AsyncIterator[str]:
        raise AssertionError("nobody is there to hear it")
        yield ""

    async def gone(message: Any = None) -> Any:
        raise OSError("the connection is closed")

    def leave(ticket: Ticket) -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
        with pytest.raises(ClientDisconnect):
            asyncio.run(_Events(ticket, events())(scope, gone, gone))

    ticket = Ticket(Future(), dict, size=1)
    leave(ticket)
    assert ticket.future.cancelled()
    shared = Ticket(Future(), dict, size=1, listeners=1)
    leave(shared)
    assert not shared.future.cancelled()
