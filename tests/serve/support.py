"""A server in a thread, a client, and a policy that needs no model."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from keel.errors import UserError
from keel.serve.app import make_app
from keel.serve.desk import Desk, SampledModel, ScoringModel
from keel.serve.launch import listen, url_of
from keel.serve.records import Asked, Drawing, Drawn, Ids, Response, Scored, ScoreItem, Settings, Update
from keel.serve.worker import Worker

PATIENCE = 120.0  # seconds until a test that hangs fails


class Parrot:
    """Says the seed and number of each response, a character a token; while the gate is shut it does not begin."""

    name = "parrot"
    context = 40

    def __init__(self) -> None:
        self.version = "0"
        self.reader = self
        self.gate = threading.Event()
        self.gate.set()
        self.rounds: list[int] = []  # responses in each

    def read(self, prompt: Asked) -> tuple[tuple[int, ...], str]:
        if isinstance(prompt, Ids):
            return prompt.tokens, ""
        if not isinstance(prompt, str):
            prompt = "|".join(f"{message.role}:{message.content}" for message in prompt)
        if "bad" in prompt:
            raise UserError("the prompt is bad")
        return tuple(map(ord, prompt)), ""

    def said(self, space: str, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def draw(self, settings: Settings, drawings: Sequence[Drawing]) -> list[Drawn]:
        self.rounds.append(sum(len(drawing.rows) for drawing in drawings))
        assert self.gate.wait(PATIENCE)
        return [self._answer(settings, drawing) for drawing in drawings]

    def _answer(self, settings: Settings, drawing: Drawing) -> Drawn:
        responses = []
        for number, row in enumerate(drawing.rows):
            text = f"{row.seed}/{row.index}"[: settings.sampling.max_new_tokens]
            ids = tuple(map(ord, text))
            for token in ids:
                if drawing.hear is not None:
                    drawing.hear([(number, token)])
                    time.sleep(0.002)  # as if it took some thought
            tokens = tuple((chr(token), -1.0) for token in ids) if settings.logprobs else None
            responses.append(Response(ids, text, "stop", tokens))
        return Drawn(tuple(responses), self.version)

    def update(self, updates: Sequence[Update]) -> list[str]:
        if updates[0].path == "nowhere":
            raise UserError("path: there is no directory nowhere")
        self.version = updates[0].version
        return [self.version]


class Lengths:
    """A reward model that likes long responses."""

    def __init__(self, name: str = "lengths") -> None:
        self.name = name

    def score(self, requests: Sequence[Sequence[ScoreItem]]) -> list[Scored]:
        return [Scored(tuple(float(len(i.response)) for i in one), (False,) * len(one)) for one in requests]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def tree(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[Any]:
        """A stream's, whose last one says that it is done."""
        lines = self.content.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def ask(url: str, path: str, body: Any = None, *, method: str = "POST", **headers: str) -> Answer:
    """One request in a connection of its own; a body that is no bytes goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, content if method == "POST" else None, sent)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def in_threads(count: int, task: Callable[[int], Any]) -> Callable[[], list[Any]]:
    """Begin `count` tasks at once; what is returned waits for them all and gives their results."""
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        results[number] = task(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()

    def wait() -> list[Any]:
        for thread in threads:
            thread.join(PATIENCE)
        return results

    return wait


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@contextmanager
def serving(
    policy: SampledModel | None,
    rewards: Sequence[ScoringModel] = (),
    *,
    max_queue: int = 1000,
    round_size: int = 500,
    token: str | None = None,
    updates: bool = False,
    seed: int | None = 0,
) -> Iterator[tuple[str, Worker]]:
    """A real server on a free port: its URL, and its worker."""
    worker = Worker(max_queue=max_queue, round_size=round_size)
    app = make_app(Desk(worker, policy, rewards, seed=seed), token=token, updates=updates)
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening), worker
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            worker.close()
