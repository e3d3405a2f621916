"""One process leads and the others help: what is shared is called by all when the leader calls it.

The leader alone walks through a stage: it reads, decides, asks people and services, writes. The engines that it calls
hold a part of the work in every process. They are made everywhere alike, in the same order; from then on the helpers
wait for the leader's calls, and take part in each with what they hold. So nothing above the engines knows of processes,
and a number that is computed from a whole rollout is computed once.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, ref

from keel.dist.launcher import LEFT, USER_ERROR, Dismissed, Fallen
from keel.dist.world import everyone, from_leader, world
from keel.errors import UserError

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

_enrolled: list[Callable[[], Any]] = []  # whose calls helpers take part in, by number
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_TOLD = "_keel_told"  # on an error of which the helpers have heard
_leading = False  # whether this process leads others that wait


@dataclass
class Clock:
    """Seconds of shared looking (sampling, scoring), of all processes together."""

    busy: float = 0.0
    idle: float = 0.0  # waited for whoever had most to do

    @property
    def idle_share(self) -> float:
        return self.idle / (self.busy + self.idle) if self.busy else 0.0


clock = Clock()


def enrol(engine: object) -> None:
    """Make the methods of an engine that are marked `together` calls of all processes.

    It is made in every process, at the same point, and lives as long in all.
    """
    if world().size > 1:
        _enrol(engine, ref(engine))


def together(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that all processes call when the leader calls it, each on its own engine; see `enrol`.

    Arguments must be picklable.
    """

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not _leading:  # all are here by themselves, or there is but one
            return method(self, *args, **kwargs)
        with _at_work():
            from_leader(("call", _numbers[self], method.__name__, args, kwargs))
            return method(self, *args, **kwargs)

    return call


class _Shared(Generic[P, T]):
    def __init__(self, function: Callable[P, T]) -> None:
        self._function = function

    @together
    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._function(*args, **kwargs)


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """As `together`, for a function; it lives as long as the `scope`."""
    if world().size == 1:
        return function
    one = _Shared(function)
    _enrol(one, lambda: one)
    return one.call


def _enrol(engine: object, find: Callable[[], Any]) -> None:
    assert not _leading, "made while the others wait: they would not know of it"
    _numbers[engine] = len(_enrolled)
    _enrolled.append(find)


def lead(main: Callable[[], T]) -> T:
    """`main` in the leader alone; its result in all. Helpers meanwhile do what it shares with them.

    Raises Dismissed in the helpers where `main` raises.
    """
    global _leading
    if world().size == 1:
        return main()
    if world().rank > 0:
        return _help()  # type: ignore[no-any-return]  # what comes from another process is untyped
    _leading = True
    try:
        result = main()
    except BaseException as error:
        # by a lead inside this one, or because they wait for what this process cannot give: nobody listens any more
        if not getattr(error, _TOLD, False) and not isinstance(error, Fallen):
            with suppress(AttributeError):
                setattr(error, _TOLD, True)
            with suppress(RuntimeError):  # they are gone, which the error may well be about
                from_leader(("dismissed", LEFT if getattr(error, "code", None) == LEFT else USER_ERROR))
        raise
    finally:
        _leading = False
    from_leader(("done", result))
    return result


def each_its_own(work: Callable[[], T]) -> list[T]:
    """What each process makes of its share, in their order. An error of one is raised in all, and names it."""
    started = time.perf_counter()
    made: T | None = None
    problem: UserError | None = None
    try:
        made = work()
    except UserError as error:
        problem = error
    results = everyone((made, problem, time.perf_counter() - started))
    times = [seconds for _, _, seconds in results]
    clock.busy += sum(times)
    clock.idle += max(times) * len(times) - sum(times)
    problems = [error for _, error, _ in results if error is not None]
    if problems:
        raise problems[0]
    return [one for one, _, _ in results]  # type: ignore[misc]  # None only beside a problem


def agree(problem: str | None) -> None:
    """All are ready, or all have the first problem that one of them has. Raises UserError with it."""
    problems = [one for one in everyone(problem) if one is not None]
    if problems:
        raise UserError(problems[0])


def shares(costs: Sequence[float]) -> list[list[int]]:
    """Which items each process takes, so that all have about the same to do: dearest first, to whoever has least."""
    taken: list[list[int]] = [[] for _ in range(world().size)]
    loads = [(0.0, number) for number in range(world().size)]
    for item in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + costs[item], number))
        taken[number].append(item)
    return [sorted(items) for items in taken]


@contextmanager
def scope() -> Iterator[None]:
    """Who is enrolled inside is forgotten at the end."""
    before = len(_enrolled)
    try:
        yield
    finally:
        del _enrolled[before:]


@contextmanager
def _at_work() -> Iterator[None]:
    """The leader takes part: what it calls now, all call by themselves."""
    global _leading
    _leading = False
    try:
        yield
    finally:
        _leading = True


def _help() -> Any:
    while True:
        told: tuple[Any, ...] = from_leader(("nothing",))
        word = told[0]
        if word == "done":
            return told[1]
        if word == "dismissed":
            raise Dismissed(told[1])
        number, name, args, kwargs = told[1:]
        engine = _enrolled[number]()
        assert engine is not None, "the leader calls what is gone here"
        with suppress(UserError):  # the leader has the same one, and what follows from it
            getattr(engine, name)(*args, **kwargs)
