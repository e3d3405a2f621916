"""From what was seen to the recipe's keys, each with its reason. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.config.data import DataConfig
from keel.config.presets import LORA_FROM, LORA_LR_SCALE, Preset, preset_for
from keel.errors import UserError
from keel.starters.facts import ModelFacts, SourceFacts, percentile, share_beyond

_UNKNOWN_RESPONSE = 128  # tokens, where no response was seen
_MEASURED = 0.99  # of the rows a limit should hold
_MOST_BEYOND = 0.5  # of the rows too long for the model, past which another model is wanted
_STEPS = 50  # optimiser steps that a stage should have, if it can with batches of 8 or more


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a recipe: its value (further keys make a section), and a short reason."""

    name: str
    value: Any
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The recipe's keys, and what the user should know about them."""

    keys: tuple[Key, ...]
    notes: tuple[str, ...]


def plan_recipe(
    name: str,
    model: ModelFacts,
    sources: Sequence[SourceFacts],
    *,
    judge: str | None = None,
    held_out: SourceFacts | None = None,
) -> Plan:
    """The stages that these data allow, with values fitted to the model's size and the measured lengths.

    `judge` is a reward function (`module:function`) or a reward model; `held_out` the prompts of the last stage.
    Raises UserError where two sources are of one kind, or nothing says what is to be learned.
    """
    by_kind = _by_kind(sources)
    demonstrations, comparisons = by_kind.get("demonstrations"), by_kind.get("comparisons")
    asking = next((s for kind in ("prompts", "comparisons", "demonstrations") if (s := by_kind.get(kind))
                   and s.gives_prompts), None)  # fmt: skip
    if not demonstrations and not comparisons and not judge:
        raise UserError(
            "prompts alone do not say what is preferred: add comparisons or demonstrations to --data, or name a reward "
            "function with --reward module:function"
        )
    fit = _Fit(model, asking, comparisons or demonstrations)
    keys = [Key("name", name, f"the run goes to runs/{name}"), Key("seed", 0), fit.model_key()]
    notes = []
    if demonstrations:
        keys.append(Key("sft", fit.sft(demonstrations), "learn to answer as the demonstrations do"))
    if comparisons:
        keys.append(Key("reward", fit.reward(comparisons, asking), "a model of what is preferred"))
    if asking and (comparisons or judge):
        keys.append(Key("ppo", fit.ppo(asking, comparisons, judge), "raise the rewards, on a leash to where it began"))
        keys.append(Key("evaluate", fit.evaluate(held_out or asking), "the policy against its reference"))
        if held_out is None:
            notes.append(
                f"evaluate reads {asking.name}, which ppo has seen: prompts kept apart (--held-out FILE) judge more "
                "honestly."
            )
    elif comparisons or judge:
        notes.append("There is no ppo stage, for no file gives prompts: add one of prompts to --data.")
    else:
        notes.append("Only sft: comparisons, or a reward function (--reward), would add what comes after it.")
    return Plan(tuple(keys), (*notes, *fit.notes))


def _by_kind(sources: Sequence[SourceFacts]) -> dict[str, SourceFacts]:
    found: dict[str, SourceFacts] = {}
    for source in sources:
        if source.kind in found:
            raise UserError(
                f"{found[source.kind].name} and {source.name} both hold {source.kind}; join them into one file, or "
                "give one"
            )
        found[source.kind] = source
    return found


class _Fit:
    """Values for one model: its preset and the room in its context."""

    def __init__(self, model: ModelFacts, asking: SourceFacts | None, answered: SourceFacts | None) -> None:
        self.model = model
        self.preset: Preset = preset_for(model.parameters)
        self.lora = model.parameters >= LORA_FROM
        self.notes: list[str] = []
        prompts = asking or answered
        longest = percentile(prompts.prompt_lengths, _MEASURED) if prompts else 0
        wanted = up_to_16(percentile(answered.response_lengths, _MEASURED)) if answered else _UNKNOWN_RESPONSE
        self.answered = answered
        room = wanted if model.context is None else model.context - min(longest, model.context // 2)
        self.new_tokens = min(wanted, room)
        self.prompt_tokens = self.limit(up_to_16(longest), less=self.new_tokens)

    def limit(self, tokens: int, less: int = 0) -> int:
        """No more than the context has room for."""
        return tokens if self.model.context is None else min(tokens, self.model.context - less)

    def rate(self, full: float) -> float:
        return float(f"{full * LORA_LR_SCALE:.3g}") if self.lora else full

    def model_key(self) -> Key:
        facts = self.model
        template = "its own chat template" if facts.own_template else "chats in Keel's plain template"
        context = f"a context of {facts.context:,}" if facts.context else "no stated context"
        tune = [Key("tune", "lora", "adapters on a frozen base: a fraction of the memory")] if self.lora else []
        why = f"{facts.family}, {facts.parameters:,} parameters, {context}, {template}"
        return Key("model", (Key("base", facts.name, why), *tune))

    def data(self, source: SourceFacts, lengths: Sequence[int], limit: int, *, hold_out: bool = True) -> Any:
        """The source as a recipe names it, with the shares that its rows need."""
        defaults = DataConfig.model_fields
        shares: dict[str, float] = {}
        if hold_out and source.validation != defaults["validation"].default:
            shares["validation"] = source.validation
        beyond = share_beyond(lengths, limit)
        lost = source.unusable_share + beyond
        if beyond > _MOST_BEYOND:
            raise UserError(
                f"{source.name}: {beyond:.0%} of the rows are longer than the {limit} tokens for which there is room "
                f"({self.model.name} has a context of {self.model.context}); take a model with a longer one, or "
                "shorten the rows"
            )
        if lost > 0.8 * defaults["max_unusable"].default:  # a sample's share may be a little low
            shares["max_unusable"] = min(1.0, round(1.25 * lost + 0.01, 2))
            self._note(f"{source.name}: {lost:.0%} of the rows cannot be used or are too long; max_unusable allows it.")
        named = DataConfig.model_validate(source.name)
        key = "path" if named.path is not None else "function"
        return {key: source.name, **shares} if shares else source.name

    def sft(self, source: SourceFacts) -> tuple[Key, ...]:
        limit = self.limit(up_to_16(percentile(source.row_lengths, _MEASURED)))
        epochs = 2
        return (
            _data_key("data", source, self.data(source, source.row_lengths, limit)),
            Key("epochs", epochs, "more than a few, and it learns the rows by heart"),
            Key("batch", batch_for(source.usable, epochs), "rows an optimiser step"),
            Key("lr", self.rate(self.preset.sft_lr), self.size()),
            _length_key(source.row_lengths, limit),
            self.budget(),
        )

    def reward(self, source: SourceFacts, asking: SourceFacts | None) -> tuple[Key, ...]:
        limit = self.limit(up_to_16(percentile(source.row_lengths, _MEASURED)))
        sampling = () if asking else (Key("normalise_sampling", {"max_new_tokens": self.new_tokens}),)
        return (
            _data_key("data", source, self.data(source, source.row_lengths, limit)),
            Key("epochs", 1, "a second one mostly learns the noise of the labels"),
            Key("batch", batch_for(source.usable, 1), "prompts an optimiser step, with all their comparisons"),
            Key("lr", self.rate(self.preset.reward_lr), self.size()),
            _length_key(source.row_lengths, limit),
            self.budget(),
            *sampling,
        )

    def ppo(self, asking: SourceFacts, comparisons: SourceFacts | None, judge: str | None) -> tuple[Key, ...]:
        rewards: list[dict[str, Any]] = [{"model": "reward"}] if comparisons else []
        if judge:
            is_function = DataConfig.model_validate(judge).function is not None
            rewards.append({"function" if is_function else "model": judge})
        return (
            _data_key("prompts", asking, self.data(asking, asking.prompt_lengths, self.prompt_tokens)),
            Key("iterations", 100, "look at the report's curves: stop earlier, or go on"),
            Key("rollout_batch", 128, "responses an iteration; published runs take 512 to 1,024"),
            Key("max_prompt_tokens", self.prompt_tokens, "longer prompts are left out"),
            Key("sampling", (
                Key("max_new_tokens", self.new_tokens, self._new_tokens_why()),
                Key("temperature", 1.0, "the policy itself; lower draws are less varied"),
            )),
            Key("reward", rewards, "each is logged apart; `weight:` sets its share"),
            Key("advantage", {"kind": "gae", "gamma": 1.0, "lam": 0.95}, "published: gamma 1, lambda .95"),
            Key("kl", {"kind": "fixed", "coef": self.preset.kl_coef},
                "the leash; published .01 to .1. Larger: closer to the start"),
            Key("update", (
                Key("lr", self.rate(self.preset.ppo_lr), f"{self.size()}; halve it if the KL leaps"),
                Key("epochs", 4, "passes over each rollout"),
                Key("minibatches", 4, "optimiser steps a pass"),
                Key("clip_low", 0.2, "how far a token's ratio may move in one iteration"),
                Key("clip_high", 0.2),
                self.budget(),
            )),
            Key("evaluate", {"every": 10, "count": min(64, asking.held_out)}, "held-out prompts, while it trains"),
        )  # fmt: skip

    def evaluate(self, source: SourceFacts) -> tuple[Key, ...]:
        return (
            Key("prompts", self.data(source, source.prompt_lengths, self.prompt_tokens, hold_out=False)),
            Key("max_prompt_tokens", self.prompt_tokens),
            Key("count", min(200, source.usable), "prompts"),
        )

    def size(self) -> str:
        adapters = f", x{LORA_LR_SCALE:g} for adapters" if self.lora else ""
        return f"for {_short(self.model.parameters)} parameters{adapters}"

    def budget(self) -> Key:
        return Key("token_budget", self.preset.token_budget, "tokens at a time: less needs less memory, same result")

    def _new_tokens_why(self) -> str:
        if self.answered is None:
            return "no response was seen: set it"
        return f"{1 - share_beyond(self.answered.response_lengths, self.new_tokens):.0%} of the responses seen fit"

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _data_key(name: str, source: SourceFacts, value: Any) -> Key:
    return Key(name, value, f"{source.usable:,} usable rows of {source.total:,}")


def _length_key(lengths: Sequence[int], limit: int) -> Key:
    return Key("max_tokens", limit, f"{1 - share_beyond(lengths, limit):.0%} of the rows fit; the longest has "
                                    f"{max(lengths):,}")  # fmt: skip


def up_to_16(tokens: int) -> int:
    """The next multiple of 16, at least 16."""
    return max(16, -(-tokens // 16) * 16)


def batch_for(rows: int, epochs: int) -> int:
    """The largest usual batch with which the stage has enough steps."""
    return next((batch for batch in (64, 32, 16) if rows * epochs >= _STEPS * batch), 8)


def _short(count: int) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
