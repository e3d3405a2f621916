"""The models of one stage: each base is loaded once, whoever shares it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from keel.adapter_config import ENSEMBLE_FILE, members_of
from keel.config.model import ModelConfig
from keel.config.reward import EnsembleConfig
from keel.dist.crew import shared
from keel.dist.fsdp import collected, shard, whole
from keel.dist.launcher import leads
from keel.errors import UserError
from keel.inputs import hash_model
from keel.models.adapters import (
    AdapterSpec,
    adapter_tensors,
    add_adapter,
    load_adapter,
    save_adapter,
    weights_of,
)
from keel.models.critic import ValueHead, ValueNetwork
from keel.models.ensemble import RewardEnsemble
from keel.models.export import save_policy, save_reward_model
from keel.models.hidden import hidden_size
from keel.models.kernels import release_freed_buffers
from keel.models.load import classifier_on, load_causal_lm, load_classifier, resolve_device, resolve_precision
from keel.models.memory import describe_weights
from keel.models.policy import Policy
from keel.models.reward import RewardModel, shift_settings, stated_shifts
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

    def new_reward_model(self, source: str, ensemble: EnsembleConfig | None = None) -> RewardModel | RewardEnsemble:
        """A reward model to be trained, or an ensemble: new heads on the body of `source`, all of it or adapters."""
        if ensemble is None:
            return self._as("reward", self._new_part(source, "reward", "adapter", "head"))
        heads = [f"head {member}" for member in range(ensemble.members)]
        if ensemble.of == "heads":
            parts = [self._new_part(source, "reward", "adapter", *heads)]
        else:
            parts = [self._new_part(source, f"reward-{n}", f"adapter {n}", head) for n, head in enumerate(heads)]
        return self._as("reward", RewardEnsemble(parts))

    def _new_part(self, source: str, name: str, adapter_seed: str, *head_seeds: str) -> RewardModel:
        """A body to be trained, all of it or an adapter `name`, with a head for each of the seeds' names."""
        recompute = self.config.gradient_checkpointing
        if self.config.tune == "lora":
            classifier = classifier_on(self._base(source), trust_remote_code=self.config.trust_remote_code)
            add_adapter(classifier, name, self._lora, seed=self._draws.torch_seed(adapter_seed))
            model = RewardModel(classifier, adapter=name, recompute=recompute)
        else:
            model = RewardModel(self._load_classifier(source, new_head=True), recompute=recompute)
        model.require_trainable()
        model.head.float()  # what trains keeps float32
        model.reset_head(*(self._draws.torch_seed(seed) for seed in head_seeds))
        return model

    def reward_models(self, source: str, role: str) -> list[RewardModel]:
        """A reward model that does not train, or those of an ensemble: adapters on a base that is here already, else
        models of their own.
        """
        name = f"reward-{len(self._roles)}"
        models = [
            self._shared(one, f"{name}-{n}") or RewardModel(self._load_classifier(one).requires_grad_(False))
            for n, one in enumerate(members_of(source))
        ]
        self._as(role, nn.ModuleList(models))
        return models

    def export_policy(self, policy: Policy, renderer: Renderer, source: str) -> Callable[[Path], None]:
        """What writes a policy: the whole model into the folder given, its adapter as an artefact of the stage."""
        save = policy_writer(policy, renderer)

        def export(folder: Path) -> None:
            if policy.adapter is not None:
                tensors = _whole(adapter_tensors(policy.backbone, policy.adapter, {}))
                if leads():
                    work = self._stage.work(ADAPTER)
                    self._write_adapter(work, policy.backbone, policy.adapter, tensors, source, renderer)
                    self._stage.publish(ADAPTER)
            save(folder)

        return shared(export)

    def export_reward_model(
        self, model: RewardModel | RewardEnsemble, renderer: Renderer, source: str
    ) -> Callable[[Path, float], None]:
        """As `export_policy`, for a reward model and the scale that was divided out of its scores.

        Adapters of an ensemble become folders member-0, member-1, … of both artefacts.
        """
        parts = list(model.parts) if isinstance(model, RewardEnsemble) else [model]
        names = [f"member-{n}" for n in range(len(parts))] if len(parts) > 1 else [""]

        def export_adapters() -> None:
            folder = self._stage.work(ADAPTER) if leads() else Path()
            for part, name in zip(parts, names, strict=True):
                assert part.adapter is not None
                tensors = _whole(adapter_tensors(part.classifier, part.adapter, {"score": part.head}))
                if leads():
                    self._write_adapter(
                        folder / name, part.classifier, part.adapter, tensors, source, renderer, part.shifts
                    )
            if leads():
                _name_members(folder, names)
                self._stage.publish(ADAPTER)

        def export(folder: Path, scale: float) -> None:
            if parts[0].adapter is not None:
                export_adapters()
            for part, name in zip(parts, names, strict=True):
                tensors = collected(weights_of(part.classifier, part.adapter, whole))
                if leads():
                    save_reward_model(part, renderer.codec.hf, folder / name, scale=scale, tensors=tensors)
            if leads():
                _name_members(folder, names)

        return shared(export)

    def release(self, role: str) -> None:
        """Forget the model of that role, if there is one; what no other role holds leaves the memory."""
        self._roles.pop(role, None)
        held = {id(weight) for module in self._roles.values() for weight in module.parameters()}
        self._frozen = {
            key: base for key, base in self._frozen.items() if any(id(weight) in held for weight in base.parameters())
        }
        gc.collect()  # the modules of a model refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for whoever else uses the device
        release_freed_buffers()

    def spread(self) -> None:
        """Leave each process its shard of the models that do not train; those that do are their learner's."""
        for module in self._roles.values():
            for model in module if isinstance(module, nn.ModuleList) else [module]:
                shard(model)

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
        if len(members_of(source)) > 1:
            raise _no_critic(source)
        shared = self._shared(source, "critic", trained=True)
        reward = shared or RewardModel(self._load_classifier(source))
        if reward.is_ensemble:
            raise _no_critic(source)
        if shared is None:
            reward.require_trainable()
            if self.config.tune == "lora":
                reward.classifier.requires_grad_(False)
                add_adapter(reward.classifier, "critic", self._lora, seed=self._draws.torch_seed("critic"))
                reward = RewardModel(reward.classifier, adapter="critic")
        return ValueNetwork(reward, adapter=reward.adapter)

    def _shared(self, source: str, name: str, *, trained: bool = False) -> RewardModel | None:
        """The reward model as an adapter on a base that is loaded, if it was made as one on that very base."""
        folder = _adapter_beside(Path(source))
        if self.config.tune == "full" or not (folder / _ORIGIN).is_file():
            return None
        origin: dict[str, Any] = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
        base = self._frozen.get(origin["base"])
        shifts = stated_shifts(origin)
        if base is None or shifts is None:
            return None
        classifier = classifier_on(base, trust_remote_code=self.config.trust_remote_code).to(self.device)
        head = load_adapter(classifier, name, folder, trained=trained)
        model = RewardModel(classifier, adapter=name)
        model.set_head(head["score.weight"])
        model.head.requires_grad_(False)
        model.set_shifts(shifts)
        return model

    def _write_adapter(
        self,
        folder: Path,
        model: nn.Module,
        name: str,
        tensors: Mapping[str, Tensor],
        source: str,
        renderer: Renderer,
        shifts: Sequence[float] = (),
    ) -> None:
        """The adapter alone with its tokenizer, of a reward model with its shifts; its base is named from where it will
        lie.
        """
        folder.mkdir(exist_ok=True)
        base = os.path.relpath(os.path.realpath(source), os.path.realpath(folder)) if Path(source).is_dir() else source
        save_adapter(model, name, folder, base=base, tensors=tensors, heads=["score"] if shifts else [])
        renderer.codec.save(folder)
        origin = {"base": hash_model(source)} | (shift_settings(shifts) if shifts else {})
        (folder / _ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")


def policy_writer(policy: Policy, renderer: Renderer) -> Callable[[Path], None]:
    """What writes the whole model into a folder: called in every process, it is gathered for the leader, who writes."""

    def write(folder: Path) -> None:
        tensors = collected(weights_of(policy.backbone, policy.adapter, whole))
        if leads():
            save_policy(policy.backbone, renderer.codec.hf, folder, eos_ids=renderer.eos_ids, tensors=tensors)

    return write


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the leader, out of the shards of all."""
    return collected(([name], whole(tensor)) for name, tensor in tensors.items())


def _name_members(folder: Path, names: Sequence[str]) -> None:
    """Make it the folder of an ensemble, where there are several models in it."""
    if len(names) > 1:
        (folder / ENSEMBLE_FILE).write_text(json.dumps({"members": names}) + "\n", encoding="utf-8")


def _adapter_beside(model: Path) -> Path:
    """Where a stage's adapter lies: that of `model` in `adapter`, that of `model/member-1` in `adapter/member-1`."""
    member = (model.parent / ENSEMBLE_FILE).is_file()
    return model.parent.parent / ADAPTER / model.name if member else model.parent / ADAPTER


def _no_critic(source: str) -> UserError:
    return UserError(
        f"ppo.critic: network starts from one reward model, and {source} is an ensemble; give critic_init another, or "
        "take critic: head"
    )
