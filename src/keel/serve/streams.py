"""Server-sent events: a response's text as it grows, then all else that is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future

from keel.serve.answers import END_OF_STREAM, event, first_piece, last_piece, piece, usage_piece
from keel.serve.records import Drawn, Generation, Order
from keel.serve.refusal import refusal_of

Heard = Sequence[tuple[int, int]]
Said = Callable[[str, Sequence[int]], str]  # the text of ids behind a prompt's space


class Ears:
    """Hears in the worker's thread, and tells in that of `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heard: asyncio.Queue[Heard | None] = asyncio.Queue()

    def hear(self, heard: Heard) -> None:
        self._loop.call_soon_threadsafe(self._heard.put_nowait, heard)

    async def until(self, done: asyncio.Future[Drawn]) -> AsyncIterator[Heard]:
        """What is heard of each step, till `done`."""
        done.add_done_callback(lambda _: self._heard.put_nowait(None))
        while (heard := await self._heard.get()) is not None:
            yield heard


def grows(asked: Generation) -> bool:
    """Whether its stream sends text as it is drawn; what is said of tokens is known at the end alone."""
    return asked.stream and not asked.logprobs and not asked.return_token_ids


async def stream_of(order: Order, future: Future[Drawn], ears: Ears | None, said: Said) -> AsyncIterator[str]:
    """The events of an answer; without ears each response comes whole, in one."""
    asked = order.asked
    sent = [""] * len(order.rows)
    if asked.chat:
        for index in range(len(sent)):
            yield event(first_piece(order, index))
    done = asyncio.wrap_future(future)
    if ears is not None:
        ids: list[list[int]] = [[] for _ in sent]
        async for heard in ears.until(done):
            for index, token in heard:
                if token in asked.stop_token_ids:
                    continue
                ids[index].append(token)
                text = settled(said(order.rows[index].space, ids[index]), asked.sampling.stop)
                if len(text) > len(sent[index]):
                    yield event(piece(order, index, text[len(sent[index]) :]))
                    sent[index] = text
    try:
        drawn = await done
    except Exception as error:
        yield event(refusal_of(error).body())
    else:
        for index, text in enumerate(sent):
            yield event(last_piece(order, index, drawn, text))
        if asked.stream_usage:
            yield event(usage_piece(order, drawn))
    yield END_OF_STREAM


def settled(text: str, stops: Sequence[str]) -> str:
    """As much of a growing text as no later token can take back: no half character, no beginning of a stop string."""
    text = text.rstrip("\ufffd")
    for start in range(len(text)):
        if any(stop.startswith(text[start : start + len(stop)]) for stop in stops):
            return text[:start]
    return text
