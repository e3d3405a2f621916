"""Rewards over HTTP: a server that scores what a policy said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from keel.errors import UserError
from keel.records import PromptItem, Samples, Scores
from keel.remote.pool import ServerPool
from keel.remote.server import Call, Server

_ITEMS = 32  # responses a request


class ServiceScorer:
    """A reward whose scores come from servers that answer POST /v1/score."""

    def __init__(self, name: str, pool: ServerPool) -> None:
        self.name = name
        self.pool = pool

    def score(self, samples: Samples) -> Scores:
        """One score a response. Raises UserError where no server is left, or one gives no finite number for each."""
        items = [
            {"prompt": _plain(prompt), "response": text, "ended": ended}
            for prompt, text, ended in zip(samples.prompts, samples.texts, samples.ended.tolist(), strict=True)
        ]
        calls = [Call("/v1/score", {"items": items[start : start + _ITEMS]}) for start in range(0, len(items), _ITEMS)]
        parts = self.pool.map(
            calls, lambda server, number, answer: self._read(server, len(calls[number].body["items"]), answer)
        )
        total = torch.tensor([score for part in parts for score in part])
        return Scores(total=total, parts={self.name: total})

    def _read(self, server: Server, count: int, answer: Any) -> list[float]:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            found = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
            raise UserError(f"the reward {self.name}: {server.url} answered with {found} for {count} responses")
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise UserError(f"the reward {self.name}: {server.url} answered {score!r}, which is no finite number")
        return [float(score) for score in scores]


def _plain(prompt: PromptItem) -> str | Sequence[dict[str, str]]:
    """The prompt as JSON has it: a text, or messages."""
    source = prompt.source
    if isinstance(source, str):
        return source
    return [{"role": message.role, "content": message.content} for message in source]
