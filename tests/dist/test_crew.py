"""Calls that all processes make together."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from keel.dist import crew
from keel.dist.launcher import Dismissed
from keel.dist.world import everyone, from_leader, joined, world
from keel.errors import UserError
from tests.dist.crowd import in_processes


def test_alone_nothing_is_different() -> None:
    with joined() as alone:
        assert (alone.rank, alone.size) == (0, 1)
        assert crew.shared(len) is len
        assert crew.lead(lambda: 7) == 7
        assert crew.each_its_own(lambda: 3) == [3]
        assert everyone("a") == ["a"]


def test_items_are_shared_evenly_by_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keel.dist.world._world", world().__class__(rank=1, size=3))
    taken = crew.shares([5, 9, 1, 4, 4, 1])
    assert sorted(item for items in taken for item in items) == [0, 1, 2, 3, 4, 5]
    assert taken == [[1], [0, 2, 5], [3, 4]]  # 9; 5 + 1 + 1; 4 + 4


def test_the_leader_alone_decides_and_all_take_part() -> None:
    def work() -> tuple[int, str, list[int]]:
        with joined(), crew.scope():
            seen: list[int] = []

            def part(number: int) -> list[int]:
                seen.append(number)
                return crew.each_its_own(lambda: 10 * world().rank + number)

            together = crew.shared(part)
            result = crew.lead(lambda: f"{together(1)} {together(2)}")
            return world().rank, result, seen

    said = "[1, 11, 21] [2, 12, 22]"
    assert in_processes(3, work) == [(rank, said, [1, 2]) for rank in range(3)]


def test_a_shared_call_may_call_another_one() -> None:
    def work() -> int:
        with joined(), crew.scope():
            inner = crew.shared(lambda: sum(everyone(world().rank + 1)))
            outer = crew.shared(lambda: inner() + 100)
            return crew.lead(outer)

    assert in_processes(2, work) == [103, 103]


def failing_in(rank: int) -> Callable[[], str]:
    def work() -> str:
        try:
            with joined(), crew.scope():

                def part() -> int:
                    if world().rank == rank:
                        raise UserError(f"process {rank} cannot")
                    return 1

                together = crew.shared(lambda: crew.each_its_own(part))
                crew.lead(together)
        except (UserError, Dismissed) as error:
            return f"{type(error).__name__} {error}".strip()
        return "nothing"

    return work


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_share_ends_all(rank: int) -> None:
    """The leader says it, whoever had it; the others end without a word."""
    assert in_processes(2, failing_in(rank)) == [f"UserError process {rank} cannot", "Dismissed"]


def test_the_leaders_own_error_dismisses_the_others() -> None:
    def work() -> str:
        try:
            with joined():
                crew.lead(lambda: [][0])
        except (IndexError, Dismissed) as error:
            return type(error).__name__
        return "nothing"

    assert in_processes(2, work) == ["IndexError", "Dismissed"]


def test_what_the_leader_gives_all_get() -> None:
    def work() -> object:
        with joined():
            return from_leader(torch.arange(3) if world().rank == 0 else None)

    assert [found.tolist() for found in in_processes(2, work)] == [[0, 1, 2]] * 2


def test_shards_must_divide_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"parallel.shard: 3 does not divide the 4 processes"), joined(shard=3):
        pass


def test_an_error_of_an_inner_lead_is_told_once() -> None:
    """Also where the leader takes its time to clean up, and the others have left."""

    def work() -> str:
        def stage() -> int:
            try:
                return crew.lead(lambda: [][0])
            finally:
                time.sleep(0.3 if world().rank == 0 else 0)

        try:
            with joined(), crew.scope():
                make = crew.shared(stage)
                crew.lead(make)
        except (IndexError, Dismissed) as error:
            return type(error).__name__
        return "nothing"

    assert in_processes(2, work) == ["IndexError", "Dismissed"]


def test_a_problem_of_one_is_that_of_all() -> None:
    def work() -> str:
        with joined():
            try:
                crew.agree("no such file" if world().rank == 1 else None)
            except UserError as error:
                return str(error)
        return "nothing"

    assert in_processes(2, work) == ["no such file"] * 2
