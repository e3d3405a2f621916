"""A user's reward function in worker processes: one response a call, with a time limit, whatever it does to itself.

The processes are spawned, so nothing of torch is shared with them, and this module imports none: a worker starts in a
fraction of a second. Each imports the function's module itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from threading import Thread
from typing import Any, Literal

from keel.errors import UserError
from keel.references import resolve
from keel.user_functions import FunctionRaised, Rows, ask_one, place

_GRACE = 2.0  # seconds in which an idle worker may end by itself


@dataclass(frozen=True)
class _Task:
    """One response of a batch."""

    row: int
    prompt: str
    response: str
    columns: dict[str, Any]

    @property
    def place(self) -> str:
        return place(self.row, self.prompt, self.response)


class _Worker:
    """One process, and the task that it has; `task` is None where it is idle."""

    def __init__(self, reference: str) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, reference), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.task: _Task | None = None
        self.started = 0.0

    def give(self, task: _Task) -> None:
        self.task, self.started = task, time.monotonic()
        self.connection.send(task)

    def end(self, grace: float = 0.0) -> int | None:
        """End the process and all that it started, by force after `grace` seconds; returns its exit code."""
        self.connection.close()
        wait([self.process.sentinel], grace)
        with suppress(ProcessLookupError, PermissionError):  # before it is reaped: till then the number is its own
            os.killpg(self.process.ident or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


class WorkerFunction:
    """The function that `reference` names, held to the contract of `keel.user_functions`, in `workers` processes.

    The result does not depend on their number. A response that takes longer than `timeout` seconds, raises, or ends
    its worker ends the run with a sentence; with on_error "none" it has no opinion instead, which `say` is told once,
    unless the whole batch failed. A wrong number or length always ends the run. `close` ends the processes.
    """

    def __init__(
        self,
        reference: str,
        *,
        workers: int,
        timeout: float | None = None,
        on_error: Literal["stop", "none"] = "stop",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.reference = reference
        self.timeout = timeout
        self.on_error = on_error
        self._say = say
        self._said = False
        self._size = workers
        self._workers: list[_Worker] = []

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], rows: Rows) -> list[float | None]:
        """One value a response, in their order. Raises UserError as the class says."""
        tasks = [
            _Task(row, prompt, response, dict(columns))
            for row, (prompt, response, columns) in enumerate(zip(prompts, responses, rows, strict=True))
        ]
        try:
            return self._answers(tasks)
        except BaseException:  # a worker may still be at work for this batch, and must not answer in the next
            self.close()
            raise

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        for worker in self._workers:
            worker.end(_GRACE if worker.task is None else 0.0)
        self._workers.clear()

    def _answers(self, tasks: Sequence[_Task]) -> list[float | None]:
        answers: list[float | None] = [None] * len(tasks)
        failures: list[str] = []
        waiting = deque(tasks)
        while waiting or any(worker.task for worker in self._workers):
            self._hand_out(waiting)
            for worker in self._next():
                task = worker.task
                try:
                    answer = self._answer(worker)
                except FunctionRaised as failure:
                    if self.on_error == "stop":
                        raise
                    failures.append(str(failure))
                else:
                    if task is not None:
                        answers[task.row] = answer
        if failures:
            self._accept(failures, len(tasks))
        return answers

    def _hand_out(self, waiting: deque[_Task]) -> None:
        busy = sum(worker.task is not None for worker in self._workers)
        for _ in range(min(self._size, busy + len(waiting)) - len(self._workers)):
            self._workers.append(_Worker(self.reference))
        for worker in self._workers:
            if waiting and worker.ready and worker.task is None:
                task = waiting.popleft()
                try:
                    worker.give(task)
                except BrokenPipeError:
                    pass  # it has ended: reading from it will say so
                except (TypeError, AttributeError, PicklingError) as error:
                    raise UserError(
                        f"{task.place}: its columns cannot be sent to a worker ({error}); leave `workers` out"
                    ) from error

    def _next(self) -> list[_Worker]:
        """The workers that have something to say, have ended, or have run out of time; waits for the first."""
        connections: dict[Any, _Worker] = {
            worker.connection: worker for worker in self._workers if worker.task or not worker.ready
        }
        busy = [worker for worker in self._workers if worker.task]
        if self.timeout is None or not busy:
            return [connections[one] for one in wait(list(connections))]
        left = min(worker.started for worker in busy) + self.timeout - time.monotonic()
        ready = [connections[one] for one in wait(list(connections), max(0.0, left))]
        return ready or [w for w in busy if time.monotonic() - w.started >= self.timeout]

    def _answer(self, worker: _Worker) -> float | None:
        """What the worker says of its task, after which it is idle. Raises FunctionRaised where the task failed."""
        task = worker.task
        if not worker.connection.poll():
            self._workers.remove(worker)
            worker.end()
            assert task is not None
            raise FunctionRaised(
                f"the function {self.reference} took more than {self.timeout:g} s ({task.place}); make it faster "
                "or raise `timeout`"
            )
        try:
            kind, content = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._workers.remove(worker)
            raise self._died(worker.end(_GRACE), task) from None
        worker.ready, worker.task = True, None
        if kind == "raised":
            raise FunctionRaised(content)
        if kind == "refused":
            raise UserError(content)
        value: float | None = content
        return value

    def _died(self, code: int | None, task: _Task | None) -> UserError:
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if task is None:
            return UserError(
                f"a worker of the function {self.reference} ended with {how} before its first response; a worker "
                "imports the function's module and the script that runs, which must guard what it does with "
                '`if __name__ == "__main__":`'
            )
        return FunctionRaised(
            f"the function {self.reference} ended its worker process with {how} ({task.place}); mend the function"
        )

    def _accept(self, failures: Sequence[str], count: int) -> None:
        if len(failures) == count:
            raise UserError(f"{failures[0]}; all {count} responses failed, so none of them can be left out")
        if not self._said:
            self._say(f"warning: {failures[0]}; it counts as no opinion, as will others without another word.")
            self._said = True


def _serve(connection: Connection, reference: str) -> None:
    """A worker's life: import the function, then answer one task after the other until the connection ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent finishes its step first, and ends this one itself
    os.setpgrp()  # Ctrl-C in the terminal is the parent's affair; what the function starts ends with the worker
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):  # the parent has ended the conversation
        try:
            function = resolve(reference)
        except UserError as error:
            connection.send(("refused", str(error)))
            return
        connection.send(("ready", None))
        while True:
            connection.send(_answer(reference, function, connection.recv()))


def _answer(reference: str, function: Callable[..., Any], task: _Task) -> tuple[str, float | str | None]:
    try:
        return "answer", ask_one(reference, function, task.row, task.prompt, task.response, task.columns)
    except FunctionRaised as error:
        return "raised", str(error)
    except UserError as error:
        return "refused", str(error)


def _end_with_parent() -> None:
    """A parent that was killed ends no child; one that is busy would not see its connection end."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
