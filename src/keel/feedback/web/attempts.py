"""A limit on guessing: some attempts are free, then each failure doubles the wait."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

from keel.feedback.refused import Refused

_FORGOTTEN_AFTER = 3600.0
_KEPT = 10_000  # keys; more than these push out the oldest


class Attempts:
    """Counts attempts by key. Each is a failure until it is known to be none, so that many at once gain nothing."""

    def __init__(self, *, free: int, longest: float) -> None:
        """After `free` failures in a row the wait is 1 s, 2 s, 4 s, … up to `longest`."""
        self._free = free
        self._longest = longest
        self._failures: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        """key → how many, when the last, when the one before it"""
        self._turn = threading.Lock()

    def begin(self, key: str, now: float) -> None:
        """Raises Refused where the last failure is too fresh."""
        with self._turn:
            count, last, _ = self._failures.get(key, (0, now, now))
            if now - last > _FORGOTTEN_AFTER:
                count = 0
            wait = last + self._pause(count) - now
            if wait > 0:
                seconds = math.ceil(wait)
                raise Refused("too_many", f"too many attempts; try again in {seconds} s", retry_after=seconds)
            self._failures[key] = (count + 1, now, last)
            self._failures.move_to_end(key)
            if len(self._failures) > _KEPT:
                self._failures.popitem(last=False)

    def take_back(self, key: str) -> None:
        """The last attempt was no failure; those before it stay, as old as they were."""
        with self._turn:
            count, _, before = self._failures.pop(key, (0, 0.0, 0.0))
            if count > 1:
                self._failures[key] = (count - 1, before, before)

    def forget(self, key: str) -> None:
        with self._turn:
            self._failures.pop(key, None)

    def _pause(self, count: int) -> float:
        return 0.0 if count < self._free else min(self._longest, 2.0 ** min(count - self._free, 60))
