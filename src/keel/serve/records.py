"""What flows between the protocol, the worker and the models. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from keel.config.sampling import SamplingConfig
from keel.schema import Dialogue

Hear = Callable[[Sequence[tuple[int, int]]], None]
"""Told of each step's tokens, as (which response of the request, token); in the worker's thread."""


@dataclass(frozen=True)
class Ids:
    """A prompt that is token ids already."""

    tokens: tuple[int, ...]


Asked = Dialogue | Ids


@dataclass(frozen=True)
class Generation:
    """A request for responses."""

    model: str | None
    prompts: tuple[Asked, ...]
    n: int
    sampling: SamplingConfig  # but for its max_new_tokens and batch
    max_tokens: int | None  # None: what a chat gets
    stop_token_ids: frozenset[int]
    seed: int | None
    logprobs: bool
    return_token_ids: bool
    stream: bool
    stream_usage: bool
    chat: bool


@dataclass(frozen=True)
class ScoreItem:
    """A response to be scored."""

    prompt: Dialogue
    response: str
    ended: bool  # False: it was cut off


@dataclass(frozen=True)
class Scoring:
    """A request for scores."""

    model: str | None
    items: tuple[ScoreItem, ...]


@dataclass(frozen=True)
class Update:
    """A request for other weights."""

    path: str
    version: str


@dataclass(frozen=True)
class Row:
    """One response that is to be drawn: `seed` and `index` name its random numbers, beside its prompt."""

    tokens: tuple[int, ...]  # the prompt's
    space: str  # at the prompt's end, which belongs to the response's first word
    seed: int
    index: int  # which answer of its request to this prompt it is


@dataclass(frozen=True)
class Heading:
    """What stands at the top of an answer, the same whenever it is given."""

    id: str
    created: int  # seconds since 1970
    model: str


@dataclass(frozen=True)
class Order:
    """A request for responses that was accepted: each of its prompts has `asked.n` rows."""

    heading: Heading
    asked: Generation
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Settings:
    """What the responses of one round share."""

    sampling: SamplingConfig
    stop_ids: frozenset[int]
    logprobs: bool


@dataclass(frozen=True)
class Drawing:
    """The responses of one request; `hear` is told of their tokens as they are drawn."""

    rows: tuple[Row, ...]
    hear: Hear | None = None


@dataclass(frozen=True)
class Response:
    """One response."""

    token_ids: tuple[int, ...]  # its end token included
    text: str  # without it, and without the stop string that ended it
    finish_reason: Literal["stop", "length"]
    drawn_tokens: tuple[tuple[str, float], ...] | None = None  # what each says and its log-probability, if asked for


@dataclass(frozen=True)
class Drawn:
    """The responses to one request, and the version of the weights that drew them."""

    responses: tuple[Response, ...]
    version: str


@dataclass(frozen=True)
class Scored:
    """The scores of one request, and which prompts lost their beginning to the reward model's length."""

    scores: tuple[float, ...]
    cut: tuple[bool, ...]
