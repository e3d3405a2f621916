"""Several servers as one: who answers what, what is tried again, and when to give up.

A request goes to the server with the fewest in flight. A server that fails rests, twice as long each time in a row,
and its requests go to the others; after its rest one request tries it. The state is guarded by one condition, and a
worker thread waits on it only where no server is free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from uuid import uuid4

from keel.errors import UserError
from keel.remote.server import Busy, Call, Failed, Server, Stale

T = TypeVar("T")
_LONGEST_REST = 30.0  # seconds
_MOMENT = 5.0  # seconds


@dataclass
class _Standing:
    """What is known of one server."""

    server: Server
    version: str | None = None  # what was brought to it; None: unknown
    in_flight: int = 0
    episode: int = 0  # counts failures; of requests that were in flight together only the first one begins an episode
    failures: int = 0  # episodes since its last answer
    rests_until: float = 0.0
    busy_since: float | None = None
    said: str = ""  # its last failure


@dataclass
class _Batch(Generic[T]):
    """The calls of one `map`."""

    calls: list[Call]
    read: Callable[[Server, int, Any], T]
    waiting: deque[int]
    answers: dict[int, T] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.error is not None or len(self.answers) == len(self.calls)


class ServerPool:
    """Sends calls to several servers, at most `max_in_flight` at a time to each.

    `bring` makes a server fit to be asked under the `version` that is wanted (it loads weights, say); it runs before
    the first request to each, after every failure of it, and while no other request is at that server.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        max_in_flight: int,
        retries: int,
        bring: Callable[[Server, str], None] | None = None,
        first_rest: float = 0.5,
    ) -> None:
        self.servers = tuple(servers)
        self.version: str | None = None
        self._standings = [_Standing(server) for server in servers]
        self._max_in_flight = max_in_flight
        self._retries = retries
        self._bring = bring
        self._first_rest = first_rest
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._batch: _Batch[Any] | None = None

    def map(self, calls: Sequence[Call], read: Callable[[Server, int, Any], T]) -> list[T]:
        """What `read` makes of the answer to each call, given its server and number, in the calls' order.

        `read` may raise Failed, which counts against the server, or UserError, which ends all. Raises UserError where
        a request cannot be answered or no server is left.
        """
        batch = self._batch = _Batch(list(calls), read, deque(range(len(calls))))
        count = min(len(calls), len(self.servers) * self._max_in_flight)
        # daemons: a request that hangs keeps no process from its end
        self._threads = [threading.Thread(target=self._work, args=(batch,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                while not batch.over:
                    self._changed.wait()
        except BaseException:  # Ctrl-C
            self._give_up(batch)
            raise
        if batch.error is not None:
            raise batch.error
        return [batch.answers[number] for number in range(len(calls))]

    def note_fit(self, server: Server) -> None:
        """Take note that `server` has been brought to the version that is wanted."""
        self._standings[self.servers.index(server)].version = self.version

    def close(self) -> None:
        """Give up what another thread maps, and close all connections after a moment for what is still in flight."""
        if self._batch is not None:
            self._give_up(self._batch)
        until = time.monotonic() + _MOMENT
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for server in self.servers:
            server.close()

    def _give_up(self, batch: _Batch[Any]) -> None:
        """The threads take no further call of it."""
        with self._changed:
            if not batch.over:
                batch.error = UserError("the requests to the servers were given up")
                self._changed.notify_all()

    def _work(self, batch: _Batch[T]) -> None:
        """One thread: as long as a call waits, take one to the server that is freest."""
        while (turn := self._turn(batch)) is not None:
            number, standing, episode = turn
            try:
                self._make_fit(standing)
                answer = batch.read(standing.server, number, standing.server.post(batch.calls[number]))
            except Exception as error:
                with self._changed:
                    standing.in_flight -= 1
                    self._failed(batch, number, standing, episode, error)
                    self._changed.notify_all()
            else:
                with self._changed:
                    standing.in_flight -= 1
                    if standing.episode == episode:
                        standing.failures, standing.busy_since = 0, None
                    batch.answers[number] = answer
                    self._changed.notify_all()

    def _turn(self, batch: _Batch[T]) -> tuple[int, _Standing, int] | None:
        """A waiting call, the server that takes it and its episode; waits for a server; None where no call waits."""
        with self._changed:
            while batch.waiting and not batch.over:
                now = time.monotonic()
                free = [one for one in self._standings if one.rests_until <= now and one.in_flight < self._limit(one)]
                if free:
                    standing = min(free, key=lambda one: one.in_flight)
                    standing.in_flight += 1
                    return batch.waiting.popleft(), standing, standing.episode
                rests = [one.rests_until - now for one in self._standings if one.rests_until > now]
                self._changed.wait(min(rests) if rests else None)
        return None

    def _limit(self, standing: _Standing) -> int:
        """A server that has failed, or has to be made fit, gets one request, the others theirs after its answer."""
        return 1 if standing.failures or not self._fits(standing) else self._max_in_flight

    def _fits(self, standing: _Standing) -> bool:
        return self._bring is None or standing.version == self.version

    def _make_fit(self, standing: _Standing) -> None:
        if standing.failures:
            standing.server.require_alive()
        if self._bring is None or self._fits(standing):
            return
        assert self.version is not None, "a pool that brings something to its servers is told what"
        self._bring(standing.server, self.version)
        with self._changed:
            standing.version = self.version
            self._changed.notify_all()

    def _failed(self, batch: _Batch[T], number: int, standing: _Standing, episode: int, error: Exception) -> None:
        """Who rests, who tries again, or what ends the batch."""
        if not isinstance(error, Failed):
            batch.error = batch.error or error
            return
        batch.waiting.append(number)  # behind the others: it may be what no server can do
        if isinstance(error, Stale):
            batch.calls[number] = replace(batch.calls[number], id=uuid4().hex)
        now = time.monotonic()
        if isinstance(error, Busy):
            standing.rests_until = now + error.rest
            standing.busy_since = now if standing.busy_since is None else standing.busy_since
            if now - standing.busy_since < standing.server.timeout:
                return
        if standing.episode == episode:
            self._rest(standing, now, str(error))
        if all(one.failures > self._retries for one in self._standings):
            every = "; ".join(f"{one.server.url} ({one.said})" for one in self._standings)
            batch.error = UserError(f"no server is left that answers: {every}; start one, and go on")

    def _rest(self, standing: _Standing, now: float, said: str) -> None:
        standing.episode += 1
        standing.failures += 1
        standing.version = None  # it may have been started anew
        standing.said = said
        standing.rests_until = now + min(self._first_rest * 2 ** (standing.failures - 1), _LONGEST_REST)
