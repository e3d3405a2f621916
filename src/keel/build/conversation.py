"""A model that answers: loaded once, asked many times, alone or in a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from keel.adapter_config import members_of
from keel.build.rewards import model_scorer
from keel.build.workbench import SCORING_TOKENS, load_renderer
from keel.config.rewards import RewardSource
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, Sampler, Scorer, Watch
from keel.engines.best_of import BestOfSampler
from keel.engines.sampler import make_sampler
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.models.load import context_length, load_causal_lm, load_classifier, resolve_device, resolve_precision
from keel.models.policy import Policy
from keel.models.quiet import quiet_transformers
from keel.models.reward import RewardModel
from keel.records import PromptItem, Samples
from keel.schema import Message, Prompt
from keel.seeds import Draws
from keel.text.render import Renderer

Hear = Callable[[str], object]


def load_policy(source: str, device: str) -> Policy:
    """A language model that does not train, in the precision that suits the device."""
    place = resolve_device(device)
    return Policy(load_causal_lm(source, dtype=resolve_precision("auto", place))).to(place).eval()


def load_judge(
    source: str, device: str, policy: Renderer | None = None, *, say: Callable[[str], None] = lambda text: None
) -> RewardModelScorer:
    """A reward model, or an ensemble, that does not train; `policy` writes what it is to judge, if it is known who."""
    return load_reward(RewardSource(model=source), device, policy, say=say)


def load_reward(
    reward: RewardSource, device: str, policy: Renderer | None = None, *, say: Callable[[str], None]
) -> RewardModelScorer:
    """The same, read as a recipe says."""
    place = resolve_device(device)
    dtype = resolve_precision("auto", place)
    models = [RewardModel(load_classifier(one, dtype=dtype)).to(place) for one in members_of(str(reward.model))]
    return model_scorer(reward, models, policy, token_budget=SCORING_TOKENS, trust_remote_code=False, say=say)


class Responder:
    """A model's directory or hub name; its weights are read with the first response."""

    def __init__(self, source: str, device: str, *, best_of: int = 1, reward: str | None = None) -> None:
        """With `reward`, a reward model, every response is the best of `best_of`."""
        self.source = source
        self.renderer = load_renderer(source)
        self.context = context_length(source)
        self._device = device
        self._best_of = best_of
        self._reward = reward
        self._watch: Watch = lambda rows, tokens: None  # of the response that is being drawn

    @cached_property
    def _policy(self) -> Policy:
        return load_policy(self.source, self._device)

    @cached_property
    def _sampler(self) -> Sampler:
        drawer = make_sampler(self._policy, self.renderer, watch=lambda rows, tokens: self._watch(rows, tokens))
        return drawer if self._judge is None else BestOfSampler(drawer, self._judge, self._best_of)

    @cached_property
    def _judge(self) -> Scorer | None:
        return None if self._reward is None else load_judge(self._reward, self._device, self.renderer)

    def respond(
        self, items: Sequence[PromptItem], sampling: SamplingConfig, key: DrawKey, hear: Hear | None = None
    ) -> Samples:
        """One response an item; `hear` is given the text so far of the first one, as it grows."""
        tokens: list[int] = []

        def watch(rows: Sequence[int], chosen: Sequence[int]) -> None:
            if hear is not None and 0 in rows:
                tokens.append(chosen[rows.index(0)])
                hear(self.renderer.response_text(items[0], tokens))

        self._watch = watch
        return self._sampler.sample(items, sampling, key)

    def scores(self, samples: Samples) -> list[float] | None:
        """What the reward model says of each response; None without one."""
        if self._judge is None:
            return None
        scores: list[float] = self._judge.score(samples).total.tolist()
        return scores


@dataclass(frozen=True)
class Reply:
    """What a model said, and what happened to the conversation."""

    text: str
    ended: bool  # False: cut at the length limit
    forgotten: int  # oldest exchanges that were dropped, for the context was full


class Conversation:
    """Exchanges with one model through its chat template; when the context is full the oldest ones go."""

    def __init__(self, responder: Responder, system: str = "") -> None:
        self.system = system
        self._responder = responder
        self._exchanges: list[tuple[str, str]] = []

    def reset(self) -> None:
        """Forget every exchange; the system message stays."""
        self._exchanges.clear()

    def ask(self, question: str, sampling: SamplingConfig, *, seed: int, turn: int, hear: Hear | None = None) -> Reply:
        """The model's answer; the same seed and turn draw the same random numbers, whatever the model.

        Raises UserError where the question alone passes the context, or the chat template refuses the dialogue.
        The conversation is then what it was.
        """
        with quiet_transformers():  # its warning of texts beyond the context: those are shortened here
            item, kept = self._fit(question, sampling.max_new_tokens)
        key = DrawKey(Draws(seed, "chat"), "response", turn)
        samples = self._responder.respond([item], sampling, key, hear)
        forgotten = len(self._exchanges) - len(kept)
        self._exchanges = [*kept, (question, samples.texts[0])]
        return Reply(samples.texts[0], bool(samples.ended[0]), forgotten)

    def _fit(self, question: str, new_tokens: int) -> tuple[PromptItem, list[tuple[str, str]]]:
        """The prompt with as many of the latest exchanges as leave room for an answer, and those exchanges."""
        context = self._responder.context
        for first in range(len(self._exchanges) + 1):
            kept = self._exchanges[first:]
            item = self._responder.renderer.item(Prompt(self._messages(kept, question)))
            if context is None or len(item.tokens) + new_tokens <= context:
                return item, kept
        raise UserError(
            f"this message takes {len(item.tokens)} tokens, and with {new_tokens} for the answer it passes the context "
            f"of {context}; shorten it, or lower --max-new-tokens"
        )

    def _messages(self, exchanges: Sequence[tuple[str, str]], question: str) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        past = (
            Message(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)
        )
        return (*system, *past, Message("user", question))
