"""A policy that trains, and a stand-in for an inference server: exact probabilities, one token after another."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from keel.config.servers import ServersConfig
from keel.engines.remote import RemoteSampler
from keel.engines.scorers import PolicyScorer
from keel.models.export import save_policy
from keel.models.policy import Policy, vocabulary_size
from keel.remote.weights import WeightsFolder
from keel.text.render import Renderer
from tests.remote.fake import Asked, Reply

_LOADING = threading.Lock()  # transformers takes tying out of all models while it loads one, and two would lose it

CONTEXT = 64


class Trained:
    """The policy that trains, and what its weights are called: change both, and servers are to get them."""

    def __init__(self, policy: Policy, renderer: Renderer) -> None:
        self.policy = policy
        self.renderer = renderer
        self.steps = 0

    def write(self, folder: Path) -> None:
        save_policy(self.policy.backbone, self.renderer.codec.hf, folder, eos_ids=self.renderer.eos_ids)

    def scorer(self, temperature: float) -> PolicyScorer:
        return PolicyScorer(self.policy, temperature=temperature, token_budget=4096)

    def sampler(self, config: ServersConfig, folder: Path, *, first_rest: float = 0.5) -> RemoteSampler:
        """A sampler on servers that get these weights through `folder`."""
        return RemoteSampler(
            config,
            self.renderer,
            vocabulary=vocabulary_size(self.policy.backbone),
            weights=WeightsFolder(folder, self.write),
            version=lambda: f"step-{self.steps}",
            first_rest=first_rest,
        )


class ServedPolicy:
    """Answers the completions API from a model; `/update_weights` puts another one in its place.

    A request that comes again with its id is not computed again. `uniforms` are the random numbers of a seed, where
    it is to draw as Keel's own sampler does; with `tempered` False the log-probabilities leave the temperature out,
    as vLLM's do unless it is told otherwise; `wrong` is put over every choice.
    """

    def __init__(
        self,
        model: nn.Module,
        renderer: Renderer,
        *,
        uniforms: Mapping[int, Sequence[float]] | None = None,
        tempered: bool = True,
        wrong: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Any = model
        self.renderer = renderer
        self.version = "as it was started"
        self.loaded: list[str] = []
        self.computed: Counter[str] = Counter()
        self.uniforms = uniforms
        self.tempered = tempered
        self.wrong = dict(wrong or {})
        self._answers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Reply:
        with self._lock:
            if asked.path == "/v1/models":
                return Reply(
                    {"object": "list", "data": [{"id": "policy", "object": "model", "max_model_len": CONTEXT}]}
                )
            if asked.path == "/update_weights":
                loader: Any = AutoModelForCausalLM
                with _LOADING:
                    self.model = loader.from_pretrained(asked.body["path"])
                self.version = asked.body["version"]
                self.loaded.append(self.version)
                return Reply({"status": "ok"})
            assert asked.path == "/v1/completions"
            assert asked.id is not None
            if asked.id not in self._answers:
                self.computed[asked.id] += 1
                self._answers[asked.id] = self._complete(asked.body)
            return Reply(self._answers[asked.id])

    @torch.no_grad()
    def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompt, temperature = list(body["prompt"]), body["temperature"]
        assert (body["top_p"], body["top_k"], body["logprobs"]) == (1.0, 0, 0)
        row: list[int] = []
        logprobs: list[float] = []
        numbers = self._numbers(body["seed"], body["max_tokens"])
        reason = "length"
        for number in numbers:
            logits = self.model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, -1].double()
            reached = (logits / temperature).softmax(dim=0).cumsum(dim=0)
            token = int(torch.searchsorted(reached, number * reached[-1], right=True))
            row.append(token)
            said = (logits / temperature if self.tempered else logits).log_softmax(dim=0)
            logprobs.append(float(said[token]))
            if token in body["stop_token_ids"] or any(stop in self._text(row) for stop in body.get("stop", ())):
                reason = "stop"
                break
        choice = {
            "index": 0,
            "text": self._text(row),
            "finish_reason": reason,
            "token_ids": row,
            "prompt_token_ids": prompt,
            "logprobs": {"token_logprobs": logprobs},
        }
        return {"choices": [choice | self.wrong], "weight_version": self.version}

    def _numbers(self, seed: int, length: int) -> Sequence[float]:
        if self.uniforms is not None:
            return self.uniforms[seed][:length]
        drawn: list[float] = np.random.default_rng(seed).random(length).tolist()
        return drawn

    def _text(self, row: Sequence[int]) -> str:
        """As servers do: the end token says nothing, and the text ends where the stop string begins."""
        return self.renderer.codec.decode(row[:-1] if row[-1] in self.renderer.eos_ids else row)
