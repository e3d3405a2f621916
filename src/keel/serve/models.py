"""The models behind the server: a policy that is sampled, reward models that score. The only part with torch."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from keel.build.conversation import load_judge, load_policy
from keel.build.workbench import SCORING_TOKENS, load_renderer
from keel.engines.base import DrawKey, Sampler, Watch
from keel.engines.sampler import make_sampler
from keel.engines.scorers import PolicyScorer
from keel.errors import UserError
from keel.models.load import context_length
from keel.models.policy import Policy, vocabulary_size
from keel.models.quiet import quiet_transformers
from keel.records import PromptItem, Samples
from keel.schema import Dialogue, Prompt
from keel.seeds import Draws
from keel.serve.records import Asked, Drawing, Drawn, Ids, Response, Row, Scored, ScoreItem, Settings, Update
from keel.text.render import Renderer

Say = Callable[[str], None]
FIRST_VERSION = "0"  # of the weights that a server starts with
_MEND = "give weights of the same model"


@dataclass(frozen=True)
class _RowDraws(Draws):
    """The draws of a round whose rows belong to several requests: each row's are named by its own seed."""

    rows: tuple[Row, ...] = ()

    def uniforms(self, purpose: str, *, iteration: int, samples: Sequence[int], length: int) -> NDArray[np.float64]:
        """Those of the rows `samples`: a function of the row's seed, prompt and index."""
        own = [
            Draws(row.seed, f"serve {row.tokens}").uniforms(
                purpose, iteration=iteration, samples=[row.index], length=length
            )
            for row in (self.rows[sample] for sample in samples)
        ]
        return np.concatenate(own)


class Reader:
    """The text side of a policy, for the thread that answers: a tokenizer is used by one thread alone."""

    def __init__(self, source: str, vocabulary: int) -> None:
        self.context = context_length(source)
        self._renderer = load_renderer(source)
        self._vocabulary = vocabulary

    def read(self, prompt: Asked) -> tuple[tuple[int, ...], str]:
        """Token ids of a prompt, and the space at its end, which belongs to the response.

        Raises UserError for ids that the model has not, and where the chat template refuses a dialogue.
        """
        if isinstance(prompt, Ids):
            if max(prompt.tokens) >= self._vocabulary:
                raise UserError(f"prompt has the token id {max(prompt.tokens)}; the model has {self._vocabulary} ids")
            return prompt.tokens, ""
        with quiet_transformers():  # its warning of texts beyond the context: those are refused
            item = self._renderer.item(Prompt(prompt))
        return item.tokens, item.space

    def said(self, space: str, ids: Sequence[int]) -> str:
        """What a response says so far."""
        return self._renderer.response_text(_item((), space), ids)


class ServedPolicy:
    """A policy that is sampled a round at a time, and whose weights may be exchanged between two rounds."""

    def __init__(self, source: str, *, device: str, batch: int, say: Say) -> None:
        self.name = source
        self.version = FIRST_VERSION
        self._device = device
        self._batch = batch
        self._renderer = load_renderer(source)
        self._policy = load_policy(source, device)
        self._sampler = make_sampler(self._policy, self._renderer, say=say)
        self._words: dict[int, str] = {}  # of the tokens that were drawn so far
        self._vocabulary = vocabulary_size(self._policy.backbone)
        self.reader = Reader(source, self._vocabulary)

    def describe(self) -> str:
        """What is held, in a few words."""
        return _describe(self._policy, self._policy.device)

    def draw(self, settings: Settings, drawings: Sequence[Drawing]) -> list[Drawn]:
        """One round: the responses of each request."""
        rows = tuple(row for drawing in drawings for row in drawing.rows)
        sampling = settings.sampling.model_copy(update={"batch": self._batch})
        key = DrawKey(_RowDraws(0, "serve", rows), "response", 0)
        prompts = [_item(row.tokens, row.space) for row in rows]
        samples = self._sampler_for(settings, drawings).sample(prompts, sampling, key)
        responses = iter(self._responses(settings, samples))
        return [Drawn(tuple(next(responses) for _ in drawing.rows), self.version) for drawing in drawings]

    def update(self, updates: Sequence[Update]) -> list[str]:
        """Take the weights of a directory, with its chat template and end tokens.

        Raises UserError where they are not whole, or of another kind than the present ones, which then stay.
        """
        (update,) = updates
        if not Path(update.path).is_dir():
            raise UserError(f"path: there is no directory {update.path}")
        renderer, reader = load_renderer(update.path), Reader(update.path, self._vocabulary)
        same = {
            "tokenizer": renderer.codec.hf.get_vocab() == self._renderer.codec.hf.get_vocab(),
            "context": reader.context == self.reader.context,
        }
        for what, kept in same.items():
            if not kept:
                raise UserError(f"{update.path} has another {what} than the model that is served; {_MEND}")
        policy = load_policy(update.path, self._device)
        _require_same_shapes(self._policy, policy, update.path)
        self._policy, self._sampler = policy, make_sampler(policy, renderer)
        self._renderer, self.reader, self.version = renderer, reader, update.version
        gc.collect()  # the modules of the old one refer to each other
        return [self.version]

    def _sampler_for(self, settings: Settings, drawings: Sequence[Drawing]) -> Sampler:
        """The usual one unless somebody listens, or other tokens end a response too."""
        watch = _watch(drawings)
        if watch is None and settings.stop_ids <= self._renderer.eos_ids:
            return self._sampler
        return make_sampler(self._policy, _ending_with(self._renderer, settings.stop_ids), watch=watch)

    def _word(self, token: int) -> str:
        """What a token says by itself."""
        if token not in self._words:
            self._words[token] = str(self._renderer.codec.hf.decode([token]))
        return self._words[token]

    def _responses(self, settings: Settings, samples: Samples) -> list[Response]:
        sequences = samples.sequences
        said = None
        if settings.logprobs:
            greedy = PolicyScorer(self._policy, temperature=1.0, token_budget=SCORING_TOKENS)
            said = (greedy.logprobs(sequences) if samples.logprobs is None else samples.logprobs).tolist()
        found: list[Response] = []
        rows = zip(sequences.response_tokens().tolist(), sequences.response_lengths.tolist(), strict=True)
        for row, (ids, length) in enumerate(rows):
            response = Response(tuple(ids[:length]), samples.texts[row], "stop" if samples.ended[row] else "length")
            if said is not None:
                words = map(self._word, response.token_ids)
                response = replace(response, drawn_tokens=tuple(zip(words, said[row][:length], strict=True)))
            found.append(response)
        return found


class ServedReward:
    """A reward model, or an ensemble, that scores texts."""

    def __init__(self, source: str, *, device: str, say: Say) -> None:
        self.name = source
        self._scorer = load_judge(source, device, say=say)

    def describe(self) -> str:
        """What is held, in a few words."""
        return _describe(self._scorer.model, self._scorer.model.device)

    def score(self, requests: Sequence[Sequence[ScoreItem]]) -> list[Scored]:
        """The scores of each request. Raises UserError for a response that is longer than what the model reads."""
        with quiet_transformers():  # its warning of texts beyond the context: those are cut, or refused
            every = [item for items in requests for item in items]
            scores = self._scorer.score_texts(
                [_item((), source=item.prompt) for item in every],
                [item.response for item in every],
                [item.ended for item in every],
            )
        (cut,) = scores.cut.values()
        pairs = iter(zip(scores.total.tolist(), cut.tolist(), strict=True))
        answers = [[next(pairs) for _ in items] for items in requests]
        return [Scored(tuple(score for score, _ in one), tuple(cut for _, cut in one)) for one in answers]


def _describe(model: nn.Module, device: torch.device) -> str:
    return f"{sum(weight.numel() for weight in model.parameters()):,} numbers on {device}"


def _item(tokens: tuple[int, ...], space: str = "", source: Dialogue = "") -> PromptItem:
    return PromptItem(tokens, text="", row={}, source=source, space=space)


def _watch(drawings: Sequence[Drawing]) -> Watch | None:
    """What tells each request that listens of its own responses' tokens; None where none does."""
    owners = [(drawing, index) for drawing in drawings for index in range(len(drawing.rows))]
    if all(drawing.hear is None for drawing in drawings):
        return None

    def watch(rows: Sequence[int], tokens: Sequence[int]) -> None:
        heard: dict[int, list[tuple[int, int]]] = {}
        for row, token in zip(rows, tokens, strict=True):
            drawing, index = owners[row]
            if drawing.hear is not None:
                heard.setdefault(id(drawing), []).append((index, token))
        for drawing in drawings:
            if drawing.hear is not None and id(drawing) in heard:
                drawing.hear(heard[id(drawing)])

    return watch


def _ending_with(renderer: Renderer, stop_ids: Collection[int]) -> Renderer:
    """One that takes these too for end tokens."""
    other = copy.copy(renderer)
    other.eos_ids = renderer.eos_ids | frozenset(stop_ids)
    return other


def _require_same_shapes(present: Policy, new: Policy, path: str) -> None:
    """Refuse a model of another architecture."""
    old, other = (type(policy.backbone).__name__ for policy in (present, new))
    if old != other:
        raise UserError(f"{path} is a {other}, and the model that is served a {old}; {_MEND}")
    shapes, others = (
        {name: tuple(weight.shape) for name, weight in policy.named_parameters()} for policy in (present, new)
    )
    differing = sorted(shapes.items() ^ others.items())
    if differing:
        raise UserError(
            f"{path} has weights of other shapes than the model that is served ({differing[0][0]}, for one); {_MEND}"
        )
