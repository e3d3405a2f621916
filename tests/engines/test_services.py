"""A reward over HTTP: its scores are the server's own, in order, and nothing else passes for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from keel.engines.services import ServiceScorer
from keel.errors import UserError
from keel.records import PromptItem, Samples
from keel.remote.pool import ServerPool
from keel.remote.server import Server
from keel.schema import Message
from tests.remote.fake import Asked, FakeServer, Reply

CHAT = (Message("system", "Be brief."), Message("user", "Hello?"))


def samples(count: int) -> Samples:
    """Responses of one word each; every third prompt is a chat, and every other response was cut off."""
    sequences: Any = None
    return Samples(
        sequences=sequences,
        logprobs=None,
        ended=torch.arange(count) % 2 == 0,
        prompts=tuple(PromptItem((1,), "", {}, CHAT if n % 3 == 0 else f"prompt {n}") for n in range(count)),
        texts=tuple(f"word {n}" for n in range(count)),
    )


def by_number(asked: Asked) -> Reply:
    """Scores each response with its number, less a half where it was cut off."""
    items = asked.body["items"]
    return Reply({"scores": [int(one["response"].split()[1]) - 0.5 * (not one["ended"]) for one in items]})


@contextmanager
def scorer_of(*answers: Any) -> Iterator[tuple[ServiceScorer, list[FakeServer]]]:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer(answer)) for answer in answers]
        servers = [Server(fake.url, timeout=5.0, connections=2) for fake in fakes]
        pool = ServerPool(servers, max_in_flight=2, retries=1, first_rest=0.02)
        stack.callback(pool.close)
        yield ServiceScorer("judge", pool), fakes


def test_scores_are_the_servers_own_in_order() -> None:
    def flaky(asked: Asked) -> Reply:
        return Reply(status=500) if asked.number == 1 else by_number(asked)

    with scorer_of(flaky, by_number) as (scorer, fakes):
        scores = scorer.score(samples(100))
    expected = [n - 0.5 * (n % 2) for n in range(100)]
    assert scores.total.tolist() == expected
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"judge": expected}
    sent = {asked.id: asked.body["items"] for fake in fakes for asked in fake.asked}
    assert sorted(len(items) for items in sent.values()) == [4, 32, 32, 32]
    first = next(items for items in sent.values() if items[0]["response"] == "word 0")
    assert first[0] == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "response": "word 0",
        "ended": True,
    }
    assert first[1] == {"prompt": "prompt 1", "response": "word 1", "ended": False}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"scores": [1.0]}, "answered with 1 scores for 2 responses"),
        ({"score": 1.0}, "answered with no list of scores for 2 responses"),
        ({"scores": [1.0, float("nan")]}, "answered nan, which is no finite number"),
        ({"scores": [1.0, None]}, "answered None, which is no finite number"),
        ({"scores": [1.0, True]}, "answered True, which is no finite number"),
    ],
)
def test_what_is_no_score_ends_the_run(body: Any, what: str) -> None:
    with (
        scorer_of(lambda asked: Reply(body)) as (scorer, (fake,)),
        pytest.raises(UserError, match=f"the reward judge: {fake.url} {what}"),
    ):
        scorer.score(samples(2))
