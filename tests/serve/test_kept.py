from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from keel.serve.kept import Kept, Ticket
from keel.serve.refusal import Refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ticket(size: int = 1, *, done: bool = True) -> Ticket:
    future: Future[Any] = Future()
    if done:
        future.set_result("said")
    return Ticket(future, lambda result: {"answer": result}, size)


def test_an_id_that_comes_again_has_its_ticket_for_some_minutes() -> None:
    clock = Clock()
    kept = Kept(most=10, seconds=60, clock=clock)
    one = ticket()
    kept.keep("a", "body", one)
    assert kept.find("b", "body") is None
    clock.now = 60.0
    assert kept.find("a", "body") is one
    clock.now = 60.1
    assert kept.find("a", "body") is None


def test_an_id_belongs_to_one_request() -> None:
    kept = Kept(most=10)
    kept.keep("a", "body", ticket())
    with pytest.raises(Refusal, match="the X-Request-Id a was used for another request"):
        kept.find("a", "another body")


def test_what_failed_is_tried_again() -> None:
    kept = Kept(most=10)
    cancelled, failed = ticket(done=False), ticket(done=False)
    cancelled.future.cancel()
    failed.future.set_exception(ValueError())
    for name, one in (("a", cancelled), ("b", failed)):
        kept.keep(name, "body", one)
        assert kept.find(name, "body") is None


def test_the_oldest_answers_leave_when_there_are_too_many_and_what_is_under_way_stays() -> None:
    kept = Kept(most=10)
    for name, done in (("under way", False), ("a", True), ("b", True)):
        kept.keep(name, "body", ticket(4, done=done))
    found = [name for name in ("under way", "a", "b") if kept.find(name, "body") is not None]
    assert found == ["under way", "b"]


def test_old_answers_leave_when_a_new_one_comes() -> None:
    clock = Clock()
    kept = Kept(most=10, seconds=60, clock=clock)
    kept.keep("a", "body", ticket())
    clock.now = 61.0
    kept.keep("b", "body", ticket())
    clock.now = 0.0  # as if no time had passed: it is not there
    assert kept.find("a", "body") is None
    assert kept.find("b", "body") is not None


def test_what_nobody_waits_for_does_not_begin() -> None:
    one = ticket(done=False)
    one.listeners = 2
    one.left()
    assert not one.future.cancelled()
    one.left()
    assert one.future.cancelled()
