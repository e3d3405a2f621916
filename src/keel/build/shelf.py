"""The models of one stage: each base is loaded once, whoever shares it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from keel.config.model import ModelConfig
from keel.inputs import hash_model
from keel.models.adapters import AdapterSpec, add_adapter, load_adapter, merged_state, save_adapter
from keel.models.critic import ValueHead, ValueNetwork
from keel.models.export import save_policy, save_reward_model
from keel.models.hidden import hidden_size
from keel.models.load import classifier_on, load_causal_lm, load_classifier, resolve_device, resolve_precision
from keel.models.memory import describe_weights
from keel.models.policy import Policy
from keel.models.reward import SHIFT_KEY, RewardModel
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.text.render import Renderer

M = TypeVar("M", bound=nn.Module)
ADAPTER = "adapter"  # the artefact beside `model`, where only an adapter was trained
_ORIGIN = "keel_origin.json"  # the base an adapter belongs on, by its contents


class Shelf:
    """Loads models onto the device, and puts on one body what may share it.

    Frozen models of the same contents are one. With `tune: lora` the trained policy, its critic, and reward adapters
    that were made on that base live on it too.
    """

    def __init__(self, config: ModelConfig, device: str, stage: StageRun, draws: Draws) -> None:
        self.config = config
        self.device = resolve_device(device)
        self.precision = resolve_precision(config.precision, self.device)
        self._lora = AdapterSpec(config.lora.rank, config.lora.alpha, config.lora.targets)
        self._stage = stage
        self._draws = draws
        self._frozen: dict[str, nn.Module] = {}  # by the hash of what was loaded
        self._roles: dict[str, nn.Module] = {}

    def frozen_policy(self, source: str, role: str) -> Policy:
        """A language model that does not train, as it was saved."""
        return self._as(role, Policy(self._base(source)))

    def trained_policy(self, source: str, *, critic: str = "none", critic_source: str | None = None) -> Policy:
        """The language model that trains, all of it or an adapter on the frozen base, with its critic."""
        if self.config.tune == "full":
            return self.own_policy(self._load(source), critic=critic, critic_source=critic_source)
        base = self._base(source)
        add_adapter(base, "policy", self._lora, seed=self._draws.torch_seed("adapter"))
        made = self._critic(critic, base, critic_source)
        recompute = self.config.gradient_checkpointing
        return self._as("policy", Policy(base, critic=made, adapter="policy", recompute=recompute))

    def own_policy(self, backbone: nn.Module, *, critic: str = "none", critic_source: str | None = None) -> Policy:
        """A model all of whose weights train."""
        made = self._critic(critic, backbone, critic_source)
        return self._as("policy", Policy(backbone, critic=made, recompute=self.config.gradient_checkpointing))

    def new_reward_model(self, source: str) -> RewardModel:
        """A reward model to be trained: a new scalar head on the body of `source`, all of it or an adapter."""
        recompute = self.config.gradient_checkpointing
        if self.config.tune == "lora":
            classifier = classifier_on(self._base(source), trust_remote_code=self.config.trust_remote_code)
            add_adapter(classifier, "reward", self._lora, seed=self._draws.torch_seed("adapter"))
            model = RewardModel(classifier, adapter="reward", recompute=recompute)
        else:
            model = RewardModel(self._load_classifier(source, new_head=True), recompute=recompute)
        model.require_trainable()
        model.head.float()  # what trains keeps float32
        model.reset_head(self._draws.torch_seed("head"))
        return self._as("reward", model)

    def reward_model(self, source: str, role: str) -> RewardModel:
        """A reward model that does not train: an adapter on a base that is here already, else a model of its own."""
        shared = self._shared(source, f"reward-{len(self._roles)}")
        return self._as(role, shared or RewardModel(self._load_classifier(source).requires_grad_(False)))

    def export_policy(self, policy: Policy, renderer: Renderer, source: str) -> Callable[[Path], None]:
        """What writes a policy: the whole model into the folder given, its adapter as an artefact of the stage."""

        def export(folder: Path) -> None:
            if policy.adapter is not None:
                self._publish_adapter(policy.backbone, policy.adapter, source, renderer)
            tokenizer, ends = renderer.codec.hf, renderer.eos_ids
            save_policy(policy.backbone, tokenizer, folder, eos_ids=ends, adapter=policy.adapter)

        return export

    def export_reward_model(self, model: RewardModel, renderer: Renderer, source: str) -> Callable[[Path, float], None]:
        """As `export_policy`, for a reward model and the scale that was divided out of its scores."""

        def export(folder: Path, scale: float) -> None:
            whole = model
            if model.adapter is not None:
                self._publish_adapter(model.classifier, model.adapter, source, renderer, model)
                merged = self._load_classifier(source, new_head=True)
                merged.load_state_dict(merged_state(model.classifier, model.adapter))
                whole = RewardModel(merged)
                whole.set_shift(model.shift)
            save_reward_model(whole, renderer.codec.hf, folder, scale=scale)

        return export

    def describe(self) -> str:
        """What is held, in one sentence."""
        return describe_weights(self._roles)

    def _as(self, role: str, module: M) -> M:
        self._roles[role] = module.to(self.device).eval()
        return module

    def _base(self, source: str) -> nn.Module:
        key = hash_model(source)
        if key not in self._frozen:
            self._frozen[key] = self._load(source).requires_grad_(False)
        return self._frozen[key]

    def _load(self, source: str) -> nn.Module:
        return load_causal_lm(
            source,
            dtype=self.precision,
            attention=self.config.attention,
            trust_remote_code=self.config.trust_remote_code,
        ).to(self.device)

    def _load_classifier(self, source: str, *, new_head: bool = False) -> nn.Module:
        trust = self.config.trust_remote_code
        attention = self.config.attention
        return load_classifier(
            source, dtype=self.precision, attention=attention, new_head=new_head, trust_remote_code=trust
        ).to(self.device)

    def _critic(self, kind: str, backbone: nn.Module, source: str | None) -> ValueHead | ValueNetwork | None:
        if kind == "none":
            return None
        if kind == "head":
            return ValueHead(hidden_size(backbone))
        assert source is not None, "a critic network starts from a reward model"
        reward = self._shared(source, "critic", trained=True)
        if reward is None:
            reward = RewardModel(self._load_classifier(source))
            reward.require_trainable()
            if self.config.tune == "lora":
                reward.classifier.requires_grad_(False)
                add_adapter(reward.classifier, "critic", self._lora, seed=self._draws.torch_seed("critic"))
                reward = RewardModel(reward.classifier, adapter="critic")
        return ValueNetwork(reward, adapter=reward.adapter)

    def _shared(self, source: str, name: str, *, trained: bool = False) -> RewardModel | None:
        """The reward model as an adapter on a base that is loaded, if it was made as one on that very base."""
        folder = Path(source).parent / ADAPTER
        if self.config.tune == "full" or not (folder / _ORIGIN).is_file():
            return None
        origin: dict[str, Any] = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
        base = self._frozen.get(origin["base"])
        if base is None or SHIFT_KEY not in origin:
            return None
        classifier = classifier_on(base, trust_remote_code=self.config.trust_remote_code).to(self.device)
        head = load_adapter(classifier, name, folder, trained=trained)
        model = RewardModel(classifier, adapter=name)
        with torch.no_grad():
            weight: Tensor = model.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
            weight.copy_(head["score.weight"])
        model.head.requires_grad_(False)
        model.set_shift(origin[SHIFT_KEY])
        return model

    def _publish_adapter(
        self, model: nn.Module, name: str, source: str, renderer: Renderer, reward: RewardModel | None = None
    ) -> None:
        """The adapter alone with its tokenizer, beside the whole model; its base is named from where it will lie."""
        folder = self._stage.work(ADAPTER)
        base = os.path.relpath(os.path.realpath(source), os.path.realpath(folder)) if Path(source).is_dir() else source
        save_adapter(model, name, folder, base=base, heads={"score": reward.head} if reward else None)
        renderer.codec.save(folder)
        origin: dict[str, Any] = {"base": hash_model(source)} | ({SHIFT_KEY: reward.shift} if reward else {})
        (folder / _ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")
        self._stage.publish(ADAPTER)
