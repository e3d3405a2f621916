"""Server-sent events through a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn

from keel.feedback.watch import api
from keel.feedback.watch.app import make_watch_app
from keel.serve.launch import is_loopback, listen, url_of
from tests.feedback.watch.support import begin_run, begin_stage, log

PATIENCE = 60.0


@contextmanager
def serving(*named: Path) -> Iterator[tuple[str, asyncio.Event]]:
    ending = asyncio.Event()
    app = make_watch_app(named, is_local=is_loopback, ending=ending)
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening), ending
        finally:
            ending.set()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Stream:
    """A stream of events, read a line at a time."""

    def __init__(self, url: str, query: str = "", **headers: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        self.connection.request("GET", f"/api/watch/events{query}", headers=headers)
        self.answer = self.connection.getresponse()

    def next(self) -> tuple[str, list[str]]:
        """The id of the next event, and the runs that it names; comments are passed over."""
        fields: dict[str, str] = {}
        while "data" not in fields:
            line = self.answer.readline().decode()
            assert line, "the stream has ended"
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value
        assert self.answer.readline() == b"\n"
        return fields["id"], json.loads(fields["data"])["runs"]

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def stages(tmp_path: Path) -> list[Path]:
    return [begin_stage(begin_run(tmp_path / "r" / name)) for name in ("a", "b")]


def test_news_come_as_they_are_made_and_go_on_from_the_last_event(stages: list[Path], tmp_path: Path) -> None:
    with serving(tmp_path / "r") as (url, _):
        with closing(Stream(url)) as stream:
            assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
            assert "default-src 'none'" in stream.answer.headers["Content-Security-Policy"]
            assert stream.next()[1] == ["r-a", "r-b"]
            log(stages[1], [1])
            cursor, changed = stream.next()
            assert changed == ["r-b"]
        log(stages[0], [1])
        with closing(Stream(url, **{"Last-Event-ID": cursor})) as again:
            assert again.next()[1] == ["r-a"]
        with closing(Stream(url, f"?run=r-b&cursor={cursor}")) as narrow:
            log(stages[0], [2])
            log(stages[1], [2])
            assert narrow.next()[1] == ["r-b"]
        with closing(Stream(url, **{"Last-Event-ID": "of-another-server-9"})) as stranger:
            assert stranger.next()[1] == ["r-a", "r-b"]


def test_an_alarm_is_news_while_a_run_is_watched(stages: list[Path], tmp_path: Path) -> None:
    """The score goes on rising and the true utility falls: it is said beside the evaluation that shows it."""

    def state(url: str) -> str:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        with closing(connection):
            connection.request("GET", "/runs/r-b/parts/state")
            return connection.getresponse().read().decode()

    def evaluate(iteration: int, utility: float) -> None:
        known = {"eval/scores": iteration, "eval/utility": utility, "eval/utility/peak": min(iteration, 3)}
        log(stages[1], [iteration], **known, **{"eval/utility/fall_error": 0.01})

    with serving(tmp_path / "r") as (url, _), closing(Stream(url)) as stream:
        stream.next()
        for iteration in range(1, 4):
            evaluate(iteration, iteration)
            assert stream.next()[1] == ["r-b"]
        assert "Over-optimisation" not in state(url)
        alarmed = []
        for iteration in range(4, 8):
            evaluate(iteration, 3 - iteration / 4)
            assert stream.next()[1] == ["r-b"]
            alarmed.append("Over-optimisation" in state(url))
        assert alarmed[-1]
        assert alarmed == sorted(alarmed)


def test_a_silent_stream_says_that_it_lives(
    stages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_EVERY", 0.02)
    monkeypatch.setattr(api, "_HEARTBEAT", 0.1)
    with serving(tmp_path / "r") as (url, _), closing(Stream(url)) as stream:
        stream.next()
        assert [stream.answer.readline() for _ in range(4)] == [b": nothing new\n", b"\n"] * 2


def test_a_stream_ends_with_the_server(stages: list[Path], tmp_path: Path) -> None:
    with serving(tmp_path / "r") as (url, ending), closing(Stream(url)) as stream:
        stream.next()
        ending.set()
        assert stream.answer.read() == b""  # in a test's patience


def test_a_stream_whose_client_has_gone_ends(
    stages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    seen = api._news

    def counted(*arguments: object) -> object:
        looks.append(time.monotonic())
        return seen(*arguments)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(api, "_news", counted)
    monkeypatch.setattr(api, "_EVERY", 0.02)
    with serving(tmp_path / "r") as (url, _):
        with closing(Stream(url)) as stream:
            stream.next()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            before = len(looks)
            time.sleep(0.5)  # which are 25 looks
            if len(looks) == before:
                break
        assert len(looks) == before
