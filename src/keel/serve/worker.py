"""The one thread that owns the models: whatever waits and belongs together goes into one round."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keel.errors import UserError
from keel.serve.refusal import Refusal

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Job:
    run: Callable[[Sequence[Any]], Sequence[Any]]
    content: Any
    size: int
    together: Hashable | None
    future: Future[Any] = field(default_factory=Future)

    def may_join(self, first: _Job) -> bool:
        return self.together is not None and self.together == first.together


class Worker:
    """Runs jobs in the order they came in, those of a kind together, in a thread of its own."""

    def __init__(self, *, max_queue: int, round_size: int) -> None:
        """At most `max_queue` responses wait; a round takes further jobs while it has at most `round_size`."""
        self.max_queue = max_queue
        self._round_size = round_size
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._round_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="keel models", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def submit(
        self, run: Callable[[Sequence[T]], Sequence[R]], content: T, *, size: int, together: Hashable | None
    ) -> Future[R]:
        """The future of what `run` makes of this content, alone or with that of other jobs of the same `together`.

        A job without one runs alone, and no later job before it. Cancelled before it begins it never runs. Raises
        Refusal where there is no room now.
        """
        job = _Job(run, content, size, together)
        with self._changed:
            if self._closed:
                raise Refusal("the server is ending", status=503)
            self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
            waiting = sum(one.size for one in self._waiting)
            if waiting + size > self.max_queue:
                raise Refusal(
                    f"{waiting} responses are waiting, and {size} more pass the limit of {self.max_queue}; try again",
                    status=429,
                    code="queue_full",
                    retry_after=max(1, math.ceil(self._round_seconds)),
                )
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Take no more, finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next_round():
            begun = time.monotonic()
            _run([job for job in jobs if job.future.set_running_or_notify_cancel()])
            self._round_seconds = time.monotonic() - begun

    def _next_round(self) -> list[_Job]:
        """The first job that waits and all that may join it; nothing when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            taken: list[_Job] = []
            size = 0
            for job in self._waiting:
                if not taken or (job.may_join(taken[0]) and size + job.size <= self._round_size):
                    taken.append(job)
                    size += job.size
                if job.together is None:
                    break
            self._waiting = deque(job for job in self._waiting if job not in taken)
            return taken


def _run(jobs: Sequence[_Job]) -> None:
    """One round. Where what is wrong with one job fails it, each is run alone."""
    if not jobs:
        return
    try:
        results = jobs[0].run([job.content for job in jobs])
    except UserError as error:
        if len(jobs) == 1:
            jobs[0].future.set_exception(error)
        else:
            for job in jobs:
                _run([job])
    except Exception as error:  # the server outlives it
        traceback.print_exc()
        for job in jobs:
            job.future.set_exception(error)
    else:
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
