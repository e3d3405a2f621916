"""Which server answers what, what is tried again and when to give up; the servers' own counts are the oracle."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from keel.errors import UserError
from keel.remote.pool import ServerPool
from keel.remote.server import Call, Failed, Refused, Server
from tests.remote.fake import Asked, FakeServer, Reply

Answer = Callable[[Asked], Reply]
PATIENCE = 60.0  # seconds until a test that hangs fails


def echo(asked: Asked) -> Reply:
    return Reply({"said": asked.body["say"]})


def said(server: Server, number: int, answer: Any) -> int:
    return int(answer["said"])


def calls(count: int) -> list[Call]:
    return [Call("/echo", {"say": number}) for number in range(count)]


@contextmanager
def pool_of(
    *answers: Answer,
    max_in_flight: int = 4,
    retries: int = 2,
    timeout: float = PATIENCE,
    bring: Callable[[Server, str], None] | None = None,
) -> Iterator[tuple[ServerPool, list[FakeServer]]]:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer(answer)) for answer in answers]
        servers = [Server(fake.url, timeout=timeout, connections=32) for fake in fakes]
        pool = ServerPool(servers, max_in_flight=max_in_flight, retries=retries, bring=bring, first_rest=0.02)
        stack.callback(pool.close)
        yield pool, fakes


def first_times(fault: Reply, count: int) -> Answer:
    """The fault on the first requests, an answer to the others."""
    return lambda asked: fault if asked.number < count else echo(asked)


def together(count: int, answer: Answer = echo) -> Answer:
    """Answers when `count` requests are there, at all servers that it is given to."""
    all_there = threading.Barrier(count)

    def meeting(asked: Asked) -> Reply:
        all_there.wait(PATIENCE)
        return answer(asked)

    return meeting


def test_answers_come_in_order_from_all_servers_and_no_server_has_more_than_its_share() -> None:
    by_sixes = together(6)
    with pool_of(by_sixes, by_sixes, max_in_flight=3) as (pool, (one, other)):
        assert pool.map(calls(30), said) == list(range(30))
        assert (one.most_at_once, other.most_at_once) == (3, 3)
        assert (len(one.asked), len(other.asked)) == (15, 15)


def test_the_server_with_the_fewest_in_flight_is_asked() -> None:
    release = threading.Event()

    def stuck(asked: Asked) -> Reply:
        release.wait(PATIENCE)
        return echo(asked)

    def freeing(asked: Asked) -> Reply:
        if asked.number == 8:
            release.set()
        return echo(asked)

    with pool_of(stuck, freeing, max_in_flight=2) as (pool, (slow, fast)):
        assert pool.map(calls(11), said) == list(range(11))
        assert slow.most_at_once <= 2
        assert len(fast.asked) >= 9  # the slow one took its two and no more until it answered


def test_what_is_in_flight_is_spread_evenly() -> None:
    by_fours = together(4)
    with pool_of(by_fours, by_fours) as (pool, (one, other)):
        pool.map(calls(4), said)
        assert (len(one.asked), len(other.asked)) == (2, 2)


def test_after_a_failure_one_request_goes_ahead_of_the_others() -> None:
    arrived: list[int] = []
    fail = together(4, lambda asked: Reply(status=500))

    def recovering(asked: Asked) -> Reply:
        if asked.number < 4:
            return fail(asked)  # those that are in flight together
        if asked.number == 4:
            time.sleep(0.1)
            arrived.append(len(fake.asked))
        return echo(asked)

    with pool_of(recovering) as (pool, (fake,)):
        assert pool.map(calls(8), said) == list(range(8))
        assert arrived == [5]


@pytest.mark.parametrize(
    "fault",
    [Reply(status=500), Reply({"said": 0}, cut=True), Reply(after=3.0), Reply(status=503)],
    ids=["500", "cut", "timeout", "503"],
)
def test_what_may_pass_is_sent_again_under_the_same_id(fault: Reply) -> None:
    timeout = 1.0 if fault.after else PATIENCE
    with pool_of(first_times(fault, 2), timeout=timeout, max_in_flight=1) as (pool, (fake,)):
        assert pool.map(calls(5), said) == list(range(5))
        sent = Counter((asked.id, asked.body["say"]) for asked in fake.asked)
        assert sorted(sent.values()) == [1, 1, 1, 2, 2]
        assert len({identity for identity, _ in sent}) == 5


def test_a_server_that_asks_for_peace_gets_it() -> None:
    times: list[float] = []

    def busy(asked: Asked) -> Reply:
        times.append(time.monotonic())
        return Reply(status=429, headers={"Retry-After": "1"}) if asked.number == 0 else echo(asked)

    with pool_of(busy, max_in_flight=1) as (pool, _):
        assert pool.map(calls(3), said) == [0, 1, 2]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] < 1  # once


def test_a_server_that_is_busy_for_ever_counts_as_gone() -> None:
    def busy(asked: Asked) -> Reply:
        return Reply(status=429, headers={"Retry-After": "0.01"})

    with pool_of(busy, retries=1, timeout=1.0) as (pool, _), pytest.raises(UserError, match="busy"):
        pool.map(calls(2), said)


def test_a_server_that_dies_leaves_its_requests_to_the_others() -> None:
    lost = threading.Event()

    def dying(asked: Asked) -> Reply:
        if asked.number == 5:
            lost.set()
            return Reply(die=True)
        while asked.number > 5 and not dead.dead:
            time.sleep(0.005)
        return Reply(echo(asked).body, after=0.02)

    def slowly(asked: Asked) -> Reply:
        lost.wait(PATIENCE)
        return Reply(echo(asked).body, after=0.02)

    with pool_of(dying, slowly, retries=1) as (pool, (dead, alive)):
        assert pool.map(calls(40), said) == list(range(40))
        again = {asked.id for asked in dead.asked} & {asked.id for asked in alive.asked}
        assert again  # what it had in flight
        assert alive.most_at_once <= 4  # which is no more than it had before
        asked = len(dead.asked)
        time.sleep(0.2)  # its rest is over
        assert pool.map(calls(3), said) == [0, 1, 2]  # and the next batch does without it
        assert len(dead.asked) == asked  # it is greeted first
        assert dead.greeted > 0
        assert len({asked.id for asked in alive.asked}) >= 38  # all but the first five


def test_a_server_that_comes_back_is_used_again() -> None:
    back = threading.Event()

    def failing(asked: Asked) -> Reply:
        if asked.number == 10:
            back.set()
        return Reply(status=500) if asked.number < 3 else echo(asked)

    def standing_in(asked: Asked) -> Reply:
        if asked.number > 20:
            back.wait(PATIENCE)
        return echo(asked)

    with pool_of(failing, standing_in, retries=1) as (pool, (fake, _)):
        assert pool.map(calls(100), said) == list(range(100))
        assert len(fake.asked) > 10


def test_when_no_server_is_left_their_names_and_last_errors_are_said() -> None:
    def dead(asked: Asked) -> Reply:
        return Reply(die=True)

    def broken(asked: Asked) -> Reply:
        return Reply({"error": {"message": "out of\nmemory"}}, status=500)

    with pool_of(dead, broken, retries=1) as (pool, (one, other)):
        with pytest.raises(UserError) as raised:
            pool.map(calls(4), said)
        assert str(raised.value) == (
            f"no server is left that answers: {one.url} (RemoteProtocolError: Server disconnected without sending a "
            f"response.); {other.url} (HTTP 500: out of memory); start one, and go on"
        )


def test_a_request_that_fails_everywhere_ends_the_batch_after_all_others_are_answered() -> None:
    def chokes(asked: Asked) -> Reply:
        return Reply(status=500) if asked.body["say"] == 7 else echo(asked)

    with (
        pool_of(chokes, chokes, max_in_flight=1, retries=1) as (pool, fakes),
        pytest.raises(UserError, match="no server is left that answers"),
    ):
        pool.map(calls(30), said)
    asked = Counter(one.body["say"] for fake in fakes for one in fake.asked)
    assert 4 <= asked[7] <= 6
    assert {asked[number] for number in range(30) if number != 7} == {1}


def test_what_a_server_refuses_is_not_sent_again() -> None:
    def refuses(asked: Asked) -> Reply:
        return Reply({"error": {"message": "no such model"}}, status=404)

    with pool_of(refuses, max_in_flight=1) as (pool, (fake,)):
        with pytest.raises(Refused, match=r"refuses POST /echo \(HTTP 404: no such model\)"):
            pool.map(calls(3), said)
        assert len(fake.asked) == 1


def test_a_server_is_made_fit_before_it_is_asked_and_again_after_a_failure() -> None:
    log: dict[str, list[str]] = {}
    changed = threading.Condition()

    def until(true: Callable[[], bool]) -> None:
        with changed:
            assert changed.wait_for(true, PATIENCE)

    def bring(server: Server, version: str) -> None:
        server.post(Call("/bring", {"say": 0}))
        with changed:
            log.setdefault(server.url, []).append(version)
            changed.notify_all()
        until(lambda: sum(version in brought for brought in log.values()) == 2)  # neither does all without the other

    def fails_once(asked: Asked) -> Reply:
        return Reply(status=500) if asked.number == 3 else echo(asked)

    def leaves_it_some(asked: Asked) -> Reply:
        if asked.path == "/echo":
            until(lambda: len(log[one.url]) > 1)
        return echo(asked)

    with pool_of(fails_once, leaves_it_some, bring=bring) as (pool, (one, other)):
        pool.version = "a"
        pool.map(calls(20), said)
        pool.version = "b"
        pool.map(calls(20), said)
        pool.map(calls(20), said)
        assert log == {one.url: ["a", "a", "b"], other.url: ["a", "b"]}
        for fake in (one, other):
            assert fake.paths()[0] == "/bring"


def test_a_server_that_cannot_be_made_fit_is_not_asked() -> None:
    def bring(server: Server, version: str) -> None:
        if server.url == lame:
            raise Failed("the disk is not there")

    with pool_of(echo, echo, bring=bring, retries=1) as (pool, (one, other)):
        lame = one.url
        pool.version = "a"
        assert pool.map(calls(20), said) == list(range(20))
        assert one.asked == []
        assert len(other.asked) == 20


def test_a_reader_that_refuses_ends_all() -> None:
    def reads(server: Server, number: int, answer: Any) -> int:
        if answer["said"] == 3:
            raise UserError("three is wrong")
        return 0

    with pool_of(echo) as (pool, _), pytest.raises(UserError, match="three is wrong"):
        pool.map(calls(50), reads)


def test_closing_gives_up_what_another_thread_maps() -> None:
    errors: list[BaseException] = []

    def resting(asked: Asked) -> Reply:
        return Reply(status=429, headers={"Retry-After": "600"})

    with pool_of(resting, max_in_flight=2, timeout=600.0) as (pool, (fake,)):

        def mapping() -> None:
            with pytest.raises(UserError, match="were given up") as raised:
                pool.map(calls(5), said)
            errors.append(raised.value)

        thread = threading.Thread(target=mapping)
        thread.start()
        while not fake.asked:
            time.sleep(0.005)
        pool.close()
        thread.join(PATIENCE)
        assert errors
        assert not any(one.is_alive() for one in pool._threads)


def test_the_token_is_sent() -> None:
    with FakeServer(echo) as fake:
        server = Server(fake.url, token="secret")
        server.post(Call("/echo", {"say": 1}))
        server.close()
        assert fake.asked[0].token == "Bearer secret"
