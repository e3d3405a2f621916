"""What the training stages of a recipe hold and do, as `estimate` takes it: from configurations, without weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keel.adapter_config import members_of
from keel.config.recipe import Recipe
from keel.doctor.estimate import SCORING_TOKENS, Load, Model
from keel.doctor.shapes import adapter_numbers, read_config, shape_of, without_weights
from keel.inputs import Inputs, stage_inputs
from keel.models.load import resolve_precision
from keel.models.scratch import scratch_config


class Loads:
    """Of a recipe whose run lies in `out`, on so many processes of which `shards` hold a model between them."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, processes: int = 1, shards: int = 1) -> None:
        self._recipe = recipe
        self._out = out
        self._device = device
        self._processes = processes
        self._shards = shards
        self._known: dict[tuple[str, bool], nn.Module] = {}  # on the meta device

    def of(self, stage: str) -> Load:
        """Of sft, reward, direct or ppo. Raises UserError where the configuration of a model cannot be read."""
        inputs = stage_inputs(self._recipe, self._out, stage)
        config = getattr(self._recipe, stage)
        limit = self._context(inputs)
        load = Load(
            models=self._models(stage, inputs),
            precision=resolve_precision(self._recipe.model.precision, self._device).itemsize,
            row=limit if stage == "ppo" else min(config.max_tokens, limit),
            update_tokens=0,
            scoring_tokens=0,
            vocabulary_loss=stage != "reward",
            checkpointing=self._recipe.model.gradient_checkpointing,
            cpu=self._device.type == "cpu",
            shards=self._shards,
        )
        if stage == "ppo":
            return self._of_ppo(load)
        if stage == "reward":
            return self._of_reward(load)
        rows = 1 if stage == "sft" else 2  # of one prompt, which stay in one micro-batch
        tokens = min(max(config.token_budget, rows * load.row), rows * config.batch * load.row)
        return replace(load, update_tokens=tokens, scoring_tokens=tokens)

    def _of_ppo(self, load: Load) -> Load:
        config = self._recipe.ppo
        assert config is not None
        row = min(config.max_prompt_tokens + config.sampling.max_new_tokens, load.row)
        minibatch = config.rollout_batch // config.update.minibatches
        drawn = self._share(max(config.rollout_batch, config.evaluate.count))
        return replace(
            load,
            row=row,
            update_tokens=min(max(config.update.token_budget, row), minibatch * row),
            scoring_tokens=max(row, min(SCORING_TOKENS, drawn * row)),
            slots=min(config.sampling.batch, drawn),
        )

    def _of_reward(self, load: Load) -> Load:
        config = self._recipe.reward
        assert config is not None
        drawn = self._share(config.normalise_samples)
        budget = config.token_budget // self._apart()
        return replace(
            load,
            update_tokens=max(budget, 2 * load.row),
            scoring_tokens=max(load.row, min(SCORING_TOKENS, drawn * load.row)),
            slots=min(config.normalise_sampling.batch, drawn),
            sampler="reference",
        )

    def _share(self, rows: int) -> int:
        return math.ceil(rows / self._processes)

    def _apart(self) -> int:
        """Adapters of an ensemble, each with a forward of its own."""
        ensemble = self._recipe.reward.ensemble if self._recipe.reward else None
        return ensemble.members if ensemble and ensemble.of == "adapters" else 1

    def _models(self, stage: str, inputs: Inputs) -> tuple[Model, ...]:
        if self._recipe.model.tune == "lora" and not (stage == "sft" and self._recipe.model.scratch):
            return self._with_adapters(stage, inputs)
        sources = inputs.models
        if stage == "sft":
            return (self._whole("policy", sources.get("base", str(self._out / "sft" / "model"))),)
        if stage == "reward":
            trained = self._whole("reward", sources["init"], classifier=True)
            return (trained, self._frozen("reference", sources["reference"]))
        if stage == "direct":
            return (self._whole("policy", sources["policy"]),)  # its reference is gone before it comes
        critic = [self._whole("critic", sources["critic"], classifier=True)] if "critic" in sources else []
        frozen = self._frozen("reference", sources["reference"])
        return (self._whole("policy", sources["policy"]), *critic, frozen, *self._judges(inputs))

    def _with_adapters(self, stage: str, inputs: Inputs) -> tuple[Model, ...]:
        """One base for whoever starts from the same source, and others beside it."""
        sources = dict(inputs.models)
        source = sources.pop("init" if stage == "reward" else "base" if stage == "sft" else "policy")
        shares = [role for role in ("reference",) if sources.get(role) == source]
        beside = [self._frozen("reference", sources["reference"])] if "reference" in sources and not shares else []
        own = [one for one in inputs.rewards if one.model and self._made_on(one.model, source)]
        shares += [one.logged_as for one in own]
        passes = self._apart() if stage == "reward" else 1
        numbers = passes
        critic = sources.get("critic")
        if critic is not None and self._made_on(critic, source):
            passes, numbers, shares = 2, 2, ["critic", *shares]
        elif critic is not None:
            base = self._whole("critic", critic, classifier=True)
            beside.append(replace(base, trained=self._adapter(critic, classifier=True), adapters=True))
        base = self._frozen(", ".join(["reward" if stage == "reward" else "policy", *shares]), source)
        trained = replace(base, trained=numbers * self._adapter(source), adapters=True, passes=passes)
        return (trained, *beside, *(one for one in self._judges(inputs) if one.role not in shares))

    def _made_on(self, source: str, base: str) -> bool:
        """Whether a model is this run's reward stage's, an adapter on that base."""
        own = Path(source).is_relative_to(self._out / "reward")
        return own and stage_inputs(self._recipe, self._out, "reward").models["init"] == base

    def _judges(self, inputs: Inputs) -> Sequence[Model]:
        return [
            self._frozen(one.logged_as, member, classifier=True)
            for one in inputs.rewards
            if one.model
            for member in members_of(one.model)
        ]

    def _whole(self, role: str, source: str, *, classifier: bool = False) -> Model:
        model = self._frozen(role, source, classifier=classifier)
        return replace(model, trained=model.shape.weights)

    def _frozen(self, role: str, source: str, *, classifier: bool = False) -> Model:
        return Model(role, shape_of(self._model(source, classifier=classifier)))

    def _adapter(self, source: str, *, classifier: bool = False) -> int:
        return adapter_numbers(self._model(source, classifier=classifier), self._recipe.model.lora)

    def _context(self, inputs: Inputs) -> int:
        """Tokens that every language model of the stage reads."""
        names = {source for role, source in inputs.models.items() if role != "tokenizer"}
        configs = [self._config(source).get_text_config() for source in names] or [self._scratch()]
        limits = [getattr(config, "max_position_embeddings", None) for config in configs]
        return min((limit for limit in limits if limit), default=1 << 20)

    def _model(self, source: str, *, classifier: bool) -> nn.Module:
        if (source, classifier) not in self._known:
            config = copy.deepcopy(self._config(source))
            if classifier and Path(source).is_relative_to(self._out):
                config.num_labels = 1
            trust = self._recipe.model.trust_remote_code
            made = without_weights(config, classifier=classifier, trust_remote_code=trust)
            self._known[source, classifier] = made
        return self._known[source, classifier]

    def _config(self, source: str) -> Any:
        """A model's configuration; of one that a stage of this run makes, that of what it starts from."""
        path = Path(source)
        if not path.is_relative_to(self._out):
            return read_config(source, trust_remote_code=self._recipe.model.trust_remote_code)
        models = stage_inputs(self._recipe, self._out, path.relative_to(self._out).parts[0]).models
        start = next((models[role] for role in ("policy", "init", "base") if role in models), None)
        return self._scratch() if start is None else self._config(start)

    def _scratch(self) -> Any:
        scratch = self._recipe.model.scratch
        assert scratch is not None
        return scratch_config(
            hidden=scratch.hidden,
            layers=scratch.layers,
            heads=scratch.heads,
            intermediate=scratch.intermediate,
            vocab=scratch.vocab,
            context=scratch.context,
        )
