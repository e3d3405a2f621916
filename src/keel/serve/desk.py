"""From what is asked to the worker's jobs: which model, which random numbers, and whether there is room."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from keel.serve.answers import generation_answer, scoring_answer
from keel.serve.kept import Ticket
from keel.serve.records import (
    Asked,
    Drawing,
    Drawn,
    Generation,
    Heading,
    Order,
    Row,
    Scored,
    ScoreItem,
    Scoring,
    Settings,
    Update,
)
from keel.serve.refusal import Refusal
from keel.serve.streams import Ears, grows, stream_of
from keel.serve.worker import Worker

_CHAT_TOKENS = 256  # what a chat gets unless it is told, where the context has room


class Reader(Protocol):
    """The text side of a policy, for the thread that answers."""

    @property
    def context(self) -> int | None: ...

    def read(self, prompt: Asked) -> tuple[tuple[int, ...], str]:
        """Token ids of a prompt, and the space at its end. Raises UserError for one that cannot be read."""
        ...

    def said(self, space: str, ids: Sequence[int]) -> str:
        """What a response says so far."""
        ...


class Named(Protocol):
    """A model by its name, as `/v1/models` lists it."""

    @property
    def name(self) -> str: ...


class SampledModel(Named, Protocol):
    """A policy; drawing and updating is the worker's."""

    @property
    def version(self) -> str: ...

    @property
    def reader(self) -> Reader: ...

    def draw(self, settings: Settings, drawings: Sequence[Drawing]) -> list[Drawn]: ...

    def update(self, updates: Sequence[Update]) -> list[str]: ...


class ScoringModel(Named, Protocol):
    """A reward model; scoring is the worker's."""

    def score(self, requests: Sequence[Sequence[ScoreItem]]) -> list[Scored]: ...


M = TypeVar("M", bound=Named)


class Desk:
    """Takes requests in, each as a ticket. Of one thread, that of the event loop."""

    def __init__(
        self, worker: Worker, policy: SampledModel | None, rewards: Sequence[ScoringModel], *, seed: int | None
    ) -> None:
        """Requests without a seed of their own get one after another from `seed`, or from nowhere."""
        self.worker = worker
        self.policies = [] if policy is None else [policy]
        self.rewards = rewards
        self._seeds = random.Random(seed)

    def generate(self, asked: Generation, request_id: str) -> Ticket:
        """Responses to prompts. Raises Refusal, or UserError, for what cannot be answered."""
        policy = _named(asked.model, self.policies, "policy")
        size = asked.n * len(asked.prompts)
        self._require_ever(size)
        read = [policy.reader.read(prompt) for prompt in asked.prompts]
        max_tokens = min(_max_tokens(asked, len(tokens), policy.reader.context) for tokens, _ in read)
        prefix = "chatcmpl" if asked.chat else "cmpl"
        order = Order(_heading(prefix, request_id, policy), asked, tuple(self._rows(asked, read)))
        settings = Settings(
            asked.sampling.model_copy(update={"max_new_tokens": max_tokens}), asked.stop_token_ids, asked.logprobs
        )
        ears = Ears(asyncio.get_running_loop()) if grows(asked) else None
        drawing = Drawing(order.rows, None if ears is None else ears.hear)
        future = self.worker.submit(partial(policy.draw, settings), drawing, size=size, together=settings)

        def stream(first: bool) -> AsyncIterator[str]:
            return stream_of(order, future, ears if first else None, policy.reader.said)

        return Ticket(future, partial(generation_answer, order), size, stream if asked.stream else None)

    def score(self, asked: Scoring, request_id: str) -> Ticket:
        """Scores of responses."""
        model = _named(asked.model, self.rewards, "reward model")
        size = len(asked.items)
        self._require_ever(size)
        future = self.worker.submit(model.score, asked.items, size=size, together=model.name)
        return Ticket(future, partial(scoring_answer, _heading("score", request_id, model)), size)

    def listing(self) -> dict[str, Any]:
        """What is served, and the context of what is sampled."""
        lengths = {policy.name: policy.reader.context for policy in self.policies}
        names = [*lengths, *(model.name for model in self.rewards)]
        data = [
            {"id": name, "object": "model", "owned_by": "keel", "max_model_len": lengths.get(name)} for name in names
        ]
        return {"object": "list", "data": data}

    def update(self, asked: Update, request_id: str) -> Ticket:
        """Other weights, after the round that is being drawn and before every later one."""
        policy = _named(None, self.policies, "policy")
        future = self.worker.submit(policy.update, asked, size=0, together=None)
        return Ticket(future, lambda version: {"weight_version": version}, size=1)

    def _require_ever(self, size: int) -> None:
        """Refuse what there will never be room for."""
        if size > self.worker.max_queue:
            raise Refusal(f"{size} responses in one request; this server takes {self.worker.max_queue} at most")

    def _rows(self, asked: Generation, read: Sequence[tuple[tuple[int, ...], str]]) -> list[Row]:
        """n of each prompt; a prompt that stands there twice goes on counting its answers."""
        seed = self._seeds.getrandbits(63) if asked.seed is None else asked.seed
        answers: Counter[tuple[int, ...]] = Counter()
        rows = []
        for tokens, space in read:
            first = answers[tokens]
            answers[tokens] += asked.n
            rows += [Row(tokens, space, seed, index) for index in range(first, answers[tokens])]
        return rows


def _named(name: str | None, models: Sequence[M], kind: str) -> M:
    """The model of that name, or the only one."""
    found = [model for model in models if name in (None, model.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(model.name for model in models)
    if not models:
        raise Refusal(f"this server has no {kind}", status=404, code="model_not_found")
    if name is None:
        raise Refusal(f"model is missing; there are {names}", param="model")
    raise Refusal(
        f"no {kind} {name!r:.80} is served; there is {names}", status=404, param="model", code="model_not_found"
    )


def _max_tokens(asked: Generation, read: int, context: int | None) -> int:
    """Tokens a response may have; raises Refusal where the context has no room for them."""
    wanted = asked.max_tokens or _CHAT_TOKENS
    if context is None or read + wanted <= context:
        return wanted
    if asked.max_tokens is None and read < context:
        return context - read
    raise Refusal(
        f"a prompt of {read} tokens and {wanted} for the response pass the model's context of {context}; shorten the "
        f"prompt{f', or lower max_tokens to {context - read}' if read < context else ''}",
        param="messages" if asked.chat else "prompt",
        code="context_length_exceeded",
    )


def _heading(prefix: str, request_id: str, model: Named) -> Heading:
    return Heading(f"{prefix}-{request_id}", int(time.time()), model.name)


def new_id() -> str:
    """For a request that came without one."""
    return uuid.uuid4().hex
