from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError

import pytest

from keel.errors import UserError
from keel.serve.refusal import Refusal
from keel.serve.worker import Worker
from tests.serve.support import PATIENCE, until


class Rounds:
    """Remembers what was run together; the first round waits until it is let go."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.gate = threading.Event()

    def run(self, contents: Sequence[str]) -> list[str]:
        self.seen.append(list(contents))
        assert self.gate.wait(PATIENCE)
        if "mistake" in contents:
            raise UserError("a mistake")
        if "bug" in contents:
            raise RuntimeError("a bug")
        return [content.upper() for content in contents]


def busy(rounds: Rounds, *, max_queue: int = 100, round_size: int = 100) -> Worker:
    """A worker in a round that does not end by itself."""
    worker = Worker(max_queue=max_queue, round_size=round_size)
    worker.submit(rounds.run, "first", size=1, together="x")
    until(lambda: rounds.seen)
    return worker


def test_what_waits_and_belongs_together_is_one_round() -> None:
    rounds = Rounds()
    worker = busy(rounds)
    futures = [worker.submit(rounds.run, f"{n}", size=1, together="ab"[n % 2]) for n in range(64)]
    rounds.gate.set()
    assert [future.result(PATIENCE) for future in futures] == [f"{n}" for n in range(64)]
    worker.close()
    assert rounds.seen[1:] == [[f"{n}" for n in range(64) if n % 2 == odd] for odd in (0, 1)]


def test_a_round_has_an_end_and_a_large_job_a_round_of_its_own() -> None:
    rounds = Rounds()
    worker = busy(rounds, round_size=10)
    for name, size in (("a", 4), ("b", 20), ("c", 6), ("d", 1)):
        worker.submit(rounds.run, name, size=size, together="x")
    rounds.gate.set()
    worker.close()
    assert rounds.seen[1:] == [["a", "c"], ["b"], ["d"]]


def test_nothing_passes_a_job_that_runs_alone() -> None:
    rounds = Rounds()
    worker = busy(rounds)
    for name, together in (("a", "x"), ("alone", None), ("b", "x"), ("also", None)):
        worker.submit(rounds.run, name, size=1, together=together)
    rounds.gate.set()
    worker.close()
    assert rounds.seen[1:] == [["a"], ["alone"], ["b"], ["also"]]


def test_what_is_cancelled_before_it_begins_never_runs_and_leaves_its_place() -> None:
    rounds = Rounds()
    worker = busy(rounds, max_queue=2)
    lost = worker.submit(rounds.run, "lost", size=2, together="x")
    assert lost.cancel()
    kept = worker.submit(rounds.run, "kept", size=2, together="x")
    rounds.gate.set()
    worker.close()
    assert rounds.seen[1:] == [["kept"]]
    assert kept.result() == "KEPT"
    with pytest.raises(CancelledError):
        lost.result()


def test_a_full_queue_sends_away_and_says_when_to_come_back() -> None:
    rounds = Rounds()
    worker = busy(rounds, max_queue=5)
    worker.submit(rounds.run, "a", size=4, together="x")
    with pytest.raises(Refusal, match="4 responses are waiting, and 2 more pass the limit of 5") as caught:
        worker.submit(rounds.run, "b", size=2, together="x")
    assert caught.value.status == 429
    assert caught.value.retry_after == 1
    rounds.gate.set()
    worker.close()
    with pytest.raises(Refusal, match="the server is ending"):
        worker.submit(rounds.run, "d", size=1, together="x")


def test_one_jobs_mistake_is_its_own() -> None:
    rounds = Rounds()
    worker = busy(rounds)
    futures = {name: worker.submit(rounds.run, name, size=1, together="x") for name in ("a", "mistake", "b")}
    rounds.gate.set()
    worker.close()
    assert (futures["a"].result(), futures["b"].result()) == ("A", "B")
    with pytest.raises(UserError, match="a mistake"):
        futures["mistake"].result()


def test_a_failure_does_not_end_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = Rounds()
    worker = busy(rounds)
    failed = worker.submit(rounds.run, "bug", size=1, together="x")
    later = worker.submit(rounds.run, "later", size=1, together="y")
    rounds.gate.set()
    worker.close()
    with pytest.raises(RuntimeError, match="a bug"):
        failed.result()
    assert later.result() == "LATER"
    assert "RuntimeError: a bug" in capsys.readouterr().err
