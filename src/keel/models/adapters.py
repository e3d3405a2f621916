"""LoRA adapters on one frozen body: several may live on it, one or none is on at a time (Hu et al., 2021).

An adapter that was just made changes nothing (B = 0), so a policy starts as its reference, exactly.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keel.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_STATE = "_keel_adapters"  # the body's attribute that holds its `_Adapted`
_OUTER = "base_model.model."  # before every name in an adapter's file


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's shape: W + (alpha / rank) B A on every targeted matrix."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | str = ALL_LINEAR  # names of modules, or every linear layer of the body


@dataclass
class _Adapted:
    """What a body with adapters remembers."""

    layers: dict[str, Any] = field(default_factory=dict)  # peft's layers by their name inside the body
    specs: dict[str, AdapterSpec] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    active: str | None = None


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head: what several heads may share."""
    holder: Any = model
    body: nn.Module = holder.base_model
    return body


def add_adapter(model: nn.Module, name: str, spec: AdapterSpec, *, seed: int = 0, trained: bool = True) -> None:
    """Put a new adapter on the model's body and leave it on: float32, B = 0, A a function of `seed` alone.

    The body's own weights are frozen. Raises UserError where no linear layer of it bears a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, so only where adapters are used
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = body_of(model)
    state: _Adapted = getattr(body, _STATE, None) or _Adapted()
    spec = AdapterSpec(spec.rank, spec.alpha, _targets(body, spec.targets))
    options: dict[str, Any] = {"lora_alpha": spec.alpha, "target_modules": list(spec.targets), "lora_dropout": 0.0}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # A is drawn again below; that there is an adapter already, and that GPT-2 stores its matrices transposed, is
        # known.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(LoraConfig(r=spec.rank, **options), body, name)
    state.layers = {key: layer for key, layer in body.named_modules() if isinstance(layer, BaseTunerLayer)}
    state.specs[name] = spec
    state.trained |= {name} if trained else set()
    setattr(body, _STATE, state)
    generator = torch.Generator().manual_seed(seed)
    for factor, weight in _factors(body, name).items():
        start = torch.zeros(weight.shape)
        if factor.endswith("lora_A.weight"):
            bound = 1 / math.sqrt(weight.shape[1])
            start.uniform_(-bound, bound, generator=generator)
        weight.data = start.to(weight.device)  # float32, whatever the body's precision
    body.requires_grad_(False)
    for adapter in state.trained:
        for weight in _factors(body, adapter).values():
            weight.requires_grad_(True)
    _switch(state, name)


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """With this adapter of the model's body on, or none of them; afterwards as before."""
    state: _Adapted | None = getattr(body_of(model), _STATE, None)
    before = state.active if state else None
    if state is None or before == name:
        assert state is not None or name is None, f"there is no adapter {name}"
        yield
        return
    _switch(state, name)
    try:
        yield
    finally:
        _switch(state, before)


def active_adapter(model: nn.Module) -> str | None:
    """The adapter that is on."""
    state: _Adapted | None = getattr(body_of(model), _STATE, None)
    return state.active if state else None


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's weights."""
    return list(_factors(body_of(model), name).values())


def merged_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The model's weights with the adapter merged in, under the names they had before; the model stays as it is."""
    state: _Adapted = getattr(body_of(model), _STATE)
    tensors = {
        key.replace(".base_layer.", "."): tensor for key, tensor in model.state_dict().items() if ".lora_" not in key
    }
    prefix = _prefix(model)
    for key, layer in state.layers.items():
        if name in layer.lora_A:
            weight: Tensor = layer.get_base_layer().weight
            merged = weight.detach().float() + layer.get_delta_weight(name).detach().float()
            tensors[f"{prefix}{key}.weight"] = merged.to(weight.dtype)
    return tensors


def save_adapter(
    model: nn.Module, name: str, folder: Path, *, base: str, heads: Mapping[str, nn.Module] | None = None
) -> None:
    """The adapter alone, as peft reads it: `PeftModel.from_pretrained(base model, folder)`.

    `base` is the name of the model it belongs on; `heads` are the modules beside the body that were trained with it.
    """
    spec: AdapterSpec = getattr(body_of(model), _STATE).specs[name]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if heads else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": list(spec.targets),
        "modules_to_save": list(heads) if heads else None,
        "fan_in_fan_out": any(_transposed(layer) for layer in getattr(body_of(model), _STATE).layers.values()),
        "inference_mode": True,
    }
    prefix = _OUTER + _prefix(model)
    tensors = {prefix + key: weight.detach() for key, weight in _factors(body_of(model), name).items()}
    for head, module in (heads or {}).items():
        tensors |= {f"{_OUTER}{head}.{key}": weight for key, weight in module.state_dict().items()}
    save_file({key: weight.contiguous().cpu() for key, weight in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, name: str, folder: Path, *, trained: bool = False) -> dict[str, Tensor]:
    """Put a saved adapter on the model's body and leave it on; returns the file's other tensors (a head's).

    Raises UserError where the file is no LoRA adapter that Keel knows, or does not fit the body.
    """
    config = read_adapter_config(folder)
    add_adapter(model, name, _spec(config, folder), trained=trained)
    weights = _factors(body_of(model), name)
    prefix = _OUTER + _prefix(model)
    tensors = load_file(folder / WEIGHTS_FILE)
    ours = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.removeprefix(prefix) in weights}
    if ours.keys() != weights.keys() or any(ours[key].shape != weights[key].shape for key in weights):
        raise UserError(f"the adapter {folder} does not fit this model: it was made for another one")
    with torch.no_grad():
        for key, weight in weights.items():
            weight.copy_(ours[key])
    return {key.removeprefix(_OUTER): tensor for key, tensor in tensors.items()}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's own description. Raises UserError where it is none."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError):
        raise UserError(f"{folder / CONFIG_FILE} cannot be read as an adapter's description") from None
    return config


def _spec(config: Mapping[str, Any], folder: Path) -> AdapterSpec:
    foreign = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias")
    unknown = [key for key in foreign if config.get(key)]
    if config.get("peft_type") != "LORA" or unknown:
        kind = ", ".join(unknown) or config.get("peft_type")
        raise UserError(f"the adapter {folder} is of a kind that Keel does not read ({kind}); merge it with peft first")
    targets = config["target_modules"]
    return AdapterSpec(config["r"], config["lora_alpha"], targets if isinstance(targets, str) else tuple(targets))


def _targets(body: nn.Module, wanted: tuple[str, ...] | str) -> tuple[str, ...]:
    """Names of linear layers (their last part), those of the adapters themselves left out."""
    from transformers.pytorch_utils import Conv1D

    plain: Any = Conv1D  # untyped
    linear = {
        key.removesuffix(".base_layer").rsplit(".", 1)[-1]
        for key, module in body.named_modules()
        if isinstance(module, nn.Linear | plain) and ".lora_" not in key
    }
    targets = linear if wanted == ALL_LINEAR else {wanted} if isinstance(wanted, str) else set(wanted)
    if not targets or not targets <= linear:
        missing = ", ".join(sorted(targets - linear)) or "any"
        raise UserError(f"lora.targets: the model has no linear layer {missing}; it has {', '.join(sorted(linear))}")
    return tuple(sorted(targets))


def _factors(body: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's weights by the names they bear in its file, less the model's prefix."""
    state: _Adapted = getattr(body, _STATE)
    return {
        f"{key}.{factor}.weight": getattr(layer, factor)[name].weight
        for key, layer in state.layers.items()
        for factor in ("lora_A", "lora_B")
        if name in getattr(layer, factor)
    }


def _switch(state: _Adapted, name: str | None) -> None:
    """peft's own switch also turns gradients on and off, which a graph that is being built must not see."""
    state.active = name
    for layer in state.layers.values():
        layer._disable_adapters = name is None
        layer._active_adapter = [name]


def _prefix(model: nn.Module) -> str:
    """What stands before the body's names in the model's."""
    holder: Any = model
    return f"{holder.base_model_prefix}." if body_of(model) is not model else ""


def _transposed(layer: Any) -> bool:
    return bool(getattr(layer, "fan_in_fan_out", False))
