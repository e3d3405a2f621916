"""Requests by their id, so that one that comes again gets the answer it had, or is waiting for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from keel.serve.refusal import Refusal


@dataclass(eq=False)
class Ticket:
    """A request that is being answered, or was."""

    future: Future[Any]
    answer: Callable[[Any], dict[str, Any]]  # what the future's result says, the same each time
    size: int  # responses
    stream: Callable[[bool], AsyncIterator[str]] | None = None  # the answer as events, if so asked; True: a first time
    body: str = ""  # a digest of what was asked
    born: float = 0.0
    listeners: int = 0  # clients that wait for it

    def left(self) -> None:
        """A client has gone, or has its answer: what nobody waits for does not begin."""
        self.listeners -= 1
        if not self.listeners:
            self.future.cancel()

    @property
    def failed(self) -> bool:
        return self.future.cancelled() or (self.future.done() and self.future.exception() is not None)


class Kept:
    """The tickets of requests that came with an id, for `seconds` and while they have at most `most` responses."""

    def __init__(self, *, most: int, seconds: float = 600.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._tickets: dict[str, Ticket] = {}  # the oldest first

    def find(self, request_id: str, body: str) -> Ticket | None:
        """The ticket of that id, unless it failed. Raises Refusal where the id was used for another body."""
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.failed or self._old(ticket):
            return None
        if ticket.body != body:
            raise Refusal(f"the X-Request-Id {request_id:.80} was used for another request; give each its own")
        return ticket

    def keep(self, request_id: str, body: str, ticket: Ticket) -> None:
        """Keep it, and let go of those that are too old, or too many."""
        ticket.body, ticket.born = body, self._clock()
        self._tickets.pop(request_id, None)
        self._tickets[request_id] = ticket
        size = sum(one.size for one in self._tickets.values())
        for old, one in list(self._tickets.items()):
            if one.future.done() and (self._old(one) or size > self._most):
                del self._tickets[old]
                size -= one.size

    def _old(self, ticket: Ticket) -> bool:
        return ticket.future.done() and ticket.born + self._seconds < self._clock()
