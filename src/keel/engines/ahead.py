"""Sampling on servers while the trainer trains: the next batch is begun before this one is learned from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.remote import RemoteSampler, Request
from keel.records import PromptItem, Samples
from keel.remote.completions import Drawn


@dataclass(frozen=True)
class _Begun:
    """A batch that is under way, or there."""

    asked: str  # the digest of its requests
    version: int  # the iteration whose weights draw it
    drawn: Future[list[Drawn]]


class AheadSampler:
    """Draws as `remote` does, or gives what was begun beforehand, if that is what it is asked for.

    A thread sends the requests and waits for the answers; all else, the publishing of weights among it, is done where
    it is called. Whoever else samples on the same servers waits until the batch is there.
    """

    def __init__(self, remote: RemoteSampler) -> None:
        self._remote = remote
        self._begun: _Begun | None = None

    def begin(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey, version: int) -> None:
        """Draw the batch of `key` from now on, under the weights of now, which are those of iteration `version`."""
        requests, weights = self._remote.requests(prompts, config, key), self._remote.publish()
        drawn = self._remote.under_way = _in_a_thread(lambda: self._remote.draw(requests, weights))
        self._begun = _Begun(_digest(requests), version, drawn)

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """One response a prompt; how old their policy is they say. Raises UserError as `RemoteSampler.sample`.

        A batch that was begun for other requests (a run went on under other settings) is left.
        """
        begun, self._begun = self._begun, None
        if begun is None or begun.asked != _digest(self._remote.requests(prompts, config, key)):
            return self._remote.sample(prompts, config, key)
        samples = self._remote.samples(prompts, begun.drawn.result(), config)
        return replace(samples, lag=key.iteration - begun.version)

    def kept(self) -> dict[str, Any] | None:
        """The batch that was begun, once it is there, as plain JSON, which gives every number back as it was.

        None without one, or where it failed, as `sample` will say.
        """
        if self._begun is None:
            return None
        wait([self._begun.drawn])
        if self._begun.drawn.exception() is not None:
            return None
        drawn = [[list(one.tokens), list(one.logprobs)] for one in self._begun.drawn.result()]
        return {"asked": self._begun.asked, "policy_version": self._begun.version, "drawn": drawn}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on with what `kept` gave."""
        drawn: Future[list[Drawn]] = Future()
        drawn.set_result([Drawn(tuple(tokens), tuple(logprobs), text="") for tokens, logprobs in kept["drawn"]])
        self._begun = _Begun(kept["asked"], kept["policy_version"], drawn)


def _in_a_thread(work: Callable[[], list[Drawn]]) -> Future[list[Drawn]]:
    """The future of what `work` returns or raises. A daemon's: it keeps no process from its end."""
    future: Future[list[Drawn]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where the result is taken
            future.set_exception(error)

    Thread(target=run, name="keel ahead", daemon=True).start()
    return future


def _digest(requests: Sequence[Request]) -> str:
    """Of all that the servers are asked: prompts, seeds, limits."""
    bodies = json.dumps([dict(request.call.body) for request in requests], sort_keys=True)
    return hashlib.sha256(bodies.encode()).hexdigest()
