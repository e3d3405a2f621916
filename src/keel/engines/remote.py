"""Sampling on inference servers: the prompts go out as token ids, the responses come back with log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from uuid import uuid4

import torch
from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.config.servers import ServerKind, ServersConfig
from keel.engines.base import DrawKey, TokenScorer
from keel.engines.responses import StopStrings, samples_of
from keel.errors import UserError
from keel.functional.masked import masked_mean
from keel.records import PromptItem, Samples
from keel.remote.completions import Drawn, Wanted, completion_call, read_completion
from keel.remote.pool import ServerPool
from keel.remote.server import Call, Failed, Server, token_from
from keel.remote.weights import WeightsFolder, load_on
from keel.text.render import Renderer

_LOOK_TOKENS = 16  # drawn for each prompt of the check at the start
_CLOSER = 4.0  # times as close at temperature 1: then that is what the server computed
_TEMPERED: dict[ServerKind, str] = {
    "keel": "serve it with `keel serve` of this version",
    "vllm": "start vLLM with --logprobs-mode processed_logprobs",
    "sglang": "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB",
}


@dataclass(frozen=True)
class Request:
    """One response that is to be drawn."""

    call: Call
    wanted: Wanted


class RemoteSampler:
    """Draws from a policy on servers that are given its weights; several of them stand in for each other.

    Before it samples, each server has the weights that `version` names; one that missed them, or failed since, gets
    them before it is asked again. A response has a seed of its own, so a request that is sent twice draws the same
    wherever the server keeps its seeds. The log-probabilities are the servers' own: the learner computes otherwise.
    """

    def __init__(
        self,
        config: ServersConfig,
        renderer: Renderer,
        *,
        vocabulary: int,
        weights: WeightsFolder,
        version: Callable[[], str],
        first_rest: float = 0.5,
    ) -> None:
        self.config = config
        self.renderer = renderer
        self.vocabulary = vocabulary
        self._weights = weights
        self._version = version
        self.under_way: Future[list[Drawn]] | None = None  # what another thread draws, under the weights that are there
        self._session = uuid4().hex[:8]  # so that no version of another process is taken for one of this
        token = token_from(config.token_env, "ppo.servers.token_env")
        self.pool = ServerPool(
            [Server(url, token=token, timeout=config.timeout, connections=config.max_in_flight) for url in config.urls],
            max_in_flight=config.max_in_flight,
            retries=config.retries,
            bring=self._bring,
            first_rest=first_rest,
        )

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """One response a prompt. Raises UserError where no server is left, or one answers what was not asked."""
        requests = self.requests(prompts, config, key)
        return self.samples(prompts, self.draw(requests, self.publish()), config)

    def publish(self) -> str:
        """The version that is wanted from now on, its weights written down; it waits for what is under way."""
        if self.under_way is not None:
            wait([self.under_way])
        version = f"{self._version()}-{self._session}"
        self._weights.publish(version)
        self.pool.version = version
        return version

    def draw(self, requests: Sequence[Request], version: str) -> list[Drawn]:
        """What the servers answer under the weights published as `version`: HTTP alone, which any thread may do."""
        return self.pool.map(
            [request.call for request in requests],
            lambda server, number, answer: read_completion(server, answer, requests[number].wanted, version),
        )

    def check(
        self,
        prompts: Sequence[PromptItem],
        config: SamplingConfig,
        key: DrawKey,
        *,
        context: int,
        scorer: Callable[[float], TokenScorer],
    ) -> None:
        """Hold every server to what sampling needs, before the first rollout: it is there, reads `context` tokens, and
        says of a few of its tokens the log-probabilities that the trainer's `scorer` at the temperature does.

        Raises UserError with what is wrong at which server.
        """
        version = self.publish()
        config = config.model_copy(update={"max_new_tokens": min(config.max_new_tokens, _LOOK_TOKENS)})
        for server in self.pool.servers:
            try:
                _require_model(server, self.config.model, context)
                self._bring(server, version)
                self.pool.note_fit(server)
                drawn = [
                    read_completion(server, server.post(request.call), request.wanted, version)
                    for request in self.requests(prompts, config, key)
                ]
            except Failed as failure:
                raise UserError(
                    f"the server {server.url} does not answer: {failure}; start it, or take it out of ppo.servers.urls"
                ) from None
            samples = self.samples(prompts, drawn, config)
            self._require_same_logprobs(server, samples, config, scorer)
            self._require_same_text(server, prompts, drawn)

    def close(self) -> None:
        """Close the connections and remove the weights that were written for the servers."""
        self.pool.close()
        self._weights.discard()

    def _bring(self, server: Server, version: str) -> None:
        load_on(server, self.config.kind, self._weights.path(version), version)

    def requests(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> list[Request]:
        """What the servers are asked, a request a prompt."""
        strings, eos_ids = StopStrings(self.renderer, config.stop), self.renderer.eos_ids

        def stopped(prompt: PromptItem) -> Callable[[Sequence[int]], bool]:
            return lambda ids: bool(config.stop) and strings.completed(prompt, ids)

        return [
            Request(
                completion_call(
                    prompt.tokens,
                    config,
                    seed=key.draws.integer(key.purpose, iteration=key.iteration, sample=key.first_sample + number),
                    eos_ids=eos_ids,
                    kind=self.config.kind,
                    model=self.config.model,
                ),
                Wanted(prompt.tokens, config.max_new_tokens, self.vocabulary, eos_ids, stopped(prompt)),
            )
            for number, prompt in enumerate(prompts)
        ]

    def samples(self, prompts: Sequence[PromptItem], drawn: Sequence[Drawn], config: SamplingConfig) -> Samples:
        """What the stage reads of the responses that were drawn to the prompts."""
        longest = max(len(one.tokens) for one in drawn)
        logprobs = torch.tensor([[*one.logprobs, *[0.0] * (longest - len(one.logprobs))] for one in drawn])
        rows = [one.tokens for one in drawn]
        return samples_of(self.renderer, prompts, rows, config, logprobs=logprobs, values=None)

    def _require_same_logprobs(
        self, server: Server, samples: Samples, config: SamplingConfig, scorer: Callable[[float], TokenScorer]
    ) -> None:
        """That gap is small, and not one that leaving the temperature out would close."""

        def gap_at(temperature: float) -> float:
            assert samples.logprobs is not None
            ours = scorer(temperature).logprobs(samples.sequences)
            return rms_gap(ours, samples.logprobs, samples.sequences.response_mask)

        gap = gap_at(config.temperature)
        if config.temperature != 1.0 and gap_at(1.0) < gap / _CLOSER:
            raise UserError(
                f"the log-probabilities of the server {server.url} are those at temperature 1, though it draws at "
                f"{config.temperature:g}; {_TEMPERED[self.config.kind]}"
            )
        if not gap <= self.config.max_logprob_gap:
            raise UserError(
                f"the log-probabilities of the server {server.url} differ from the trainer's by {gap:.3g} (root mean "
                f"square; ppo.servers.max_logprob_gap is {self.config.max_logprob_gap:g}): look at the precision it "
                "computes in, and whether it cuts the distribution or penalises tokens"
            )

    def _require_same_text(self, server: Server, prompts: Sequence[PromptItem], drawn: Sequence[Drawn]) -> None:
        """What the server reads in its tokens is what the policy's tokenizer does, but for white space."""
        for prompt, one in zip(prompts, drawn, strict=True):
            ours, theirs = (
                "".join(text.split()) for text in (self.renderer.response_text(prompt, one.tokens), one.text)
            )
            if ours != theirs and "\ufffd" not in ours + theirs:  # half a character may be shown in several ways
                raise UserError(
                    f"the server {server.url} has another tokenizer: it reads {one.text!r} where the policy's reads "
                    f"{self.renderer.response_text(prompt, one.tokens)!r}; serve the policy's own directory"
                )


def rms_gap(logprobs: Tensor, others: Tensor, mask: Tensor) -> float:
    """Root mean square difference of two log-probabilities [B, T] of the same tokens."""
    return float(masked_mean((logprobs - others).square(), mask).sqrt())


def _require_model(server: Server, name: str | None, context: int) -> None:
    """The model is served, and reads prompts and responses as long as the recipe's."""
    answer = server.get("/v1/models")
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"the server {server.url} lists no model at /v1/models; is it an inference server?")
    names = [one.get("id") for one in listed]
    if name is not None and name not in names:
        raise UserError(f"the server {server.url} has no model {name!r}; ppo.servers.model may be {', '.join(names)}")
    length = listed[0 if name is None else names.index(name)].get("max_model_len")
    if length is not None and length < context:
        raise UserError(
            f"the server {server.url} reads at most {length} tokens, and the recipe's prompts and responses have up to "
            f"{context}; start it with a longer context, or lower ppo.max_prompt_tokens or ppo.sampling.max_new_tokens"
        )
