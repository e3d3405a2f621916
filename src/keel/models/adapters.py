"""LoRA adapters on one frozen body: several may live on it, one or none is on at a time (Hu et al., 2021).

An adapter that was just made changes nothing (B = 0), so a policy starts as its reference, exactly.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keel.adapter_config import CONFIG_FILE, read_adapter_config
from keel.errors import UserError, first_line

WEIGHTS_FILE = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_STATE = "_keel_adapters"  # the body's attribute that holds its `_Adapted`
_OUTER = "base_model.model."  # before every name in an adapter's file
_READ = ("peft_type", "r", "lora_alpha", "bias", "init_lora_weights", "base_model_name_or_path")
_NO_MATTER = (  # to what a saved adapter computes
    *("task_type", "auto_mapping", "inference_mode", "revision", "peft_version", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config"),
)
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # of A and B; others change the base's weights too


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
    assert name not in state.specs, f"there is an adapter {name} already"
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
    assert name is None or (state is not None and name in state.specs), f"there is no adapter {name}"
    before = state.active if state else None
    if state is None or before == name:
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


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` has, of a model as it is in memory: of one that is gathered `state_dict` gives the shards."""
    return {name: tensor for names, tensor in _weights_by_names(model) for name in names}


def weights_of(
    model: nn.Module, adapter: str | None, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Iterator[tuple[list[str], Tensor]]:
    """The model's weights, the adapter merged in, each with the names it had before; the model stays as it is.

    One after the other: `whole` is given what is wanted next, and gives all of it where it is in shards.
    """
    state: _Adapted = getattr(body_of(model), _STATE, None) or _Adapted()
    merging = {f"{_prefix(model)}{key}.weight": layer for key, layer in state.layers.items() if adapter in layer.lora_A}
    for keys, tensor in _weights_by_names(model):
        names = [key.replace(".base_layer.", ".") for key in keys if ".lora_" not in key]
        if not names:
            continue
        weight, layer = whole(tensor), merging.get(names[0])
        if layer is not None:
            down, up = (whole(factors[adapter].weight.detach()) for factors in (layer.lora_A, layer.lora_B))
            change = (up @ down).T if _transposed(layer) else up @ down
            weight = (weight.float() + change.float() * layer.scaling[adapter]).to(weight.dtype)
        yield names, weight


def merged_state(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """`weights_of` as a dictionary."""
    return {name: tensor for names, tensor in weights_of(model, adapter) for name in names}


def merge_adapter(model: nn.Module, name: str) -> None:
    """Merge the adapter into the model's own weights and take all adapters off: an ordinary model, to be trained."""
    tensors = merged_state(model, name)
    body = body_of(model)
    state: _Adapted = getattr(body, _STATE)
    for key, layer in state.layers.items():
        body.set_submodule(key, layer.get_base_layer())
    delattr(body, _STATE)
    delattr(body, "peft_config")
    model.load_state_dict(tensors)
    model.requires_grad_(True)


def adapter_tensors(model: nn.Module, name: str, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What an adapter's file holds, by its names there: its weights, and those of the heads beside the body."""
    prefix = _OUTER + _prefix(model)
    tensors = {prefix + key: weight.detach() for key, weight in _factors(body_of(model), name).items()}
    for head, module in heads.items():
        tensors |= {f"{_OUTER}{head}.{key}": weight for key, weight in tensors_of(module).items()}
    return tensors


def save_adapter(
    model: nn.Module, name: str, folder: Path, *, base: str, tensors: Mapping[str, Tensor], heads: Collection[str] = ()
) -> None:
    """The adapter alone, as peft reads it: `PeftModel.from_pretrained(base model, folder)`.

    `tensors` are its `adapter_tensors`, whole; `base` is the name of the model it belongs on; `heads` names the modules
    beside the body that were trained with it.
    """
    spec: AdapterSpec = getattr(body_of(model), _STATE).specs[name]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if heads else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": list(spec.targets),
        "modules_to_save": list(heads) or None,
        "fan_in_fan_out": any(_transposed(layer) for layer in getattr(body_of(model), _STATE).layers.values()),
        "inference_mode": True,
    }
    save_file({key: weight.contiguous().cpu() for key, weight in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, name: str, folder: Path, *, trained: bool = False) -> dict[str, Tensor]:
    """Put a saved adapter on the model's body and leave it on; returns the file's other tensors (a head's).

    Raises UserError where the file is no LoRA adapter that Keel knows, or does not fit the body.
    """
    rank, alpha = _rank_and_alpha(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read: {first_line(error)}") from None
    prefix = _OUTER + _prefix(model)
    factors = [key for key in tensors if key.startswith(prefix) and key.endswith((".lora_A.weight", ".lora_B.weight"))]
    ours = {key.removeprefix(prefix): tensors.pop(key) for key in factors}
    layers = tuple({key.rsplit(".", 2)[0] for key in ours})
    misfit = UserError(f"the adapter {folder} does not fit this model: it was made for another one")
    try:
        add_adapter(model, name, AdapterSpec(rank, alpha, layers), trained=trained)
    except UserError:
        raise misfit from None
    weights = _factors(body_of(model), name)
    if ours.keys() != weights.keys() or any(ours[key].shape != weights[key].shape for key in weights):
        raise misfit
    with torch.no_grad():
        for key, weight in weights.items():
            weight.copy_(ours[key])
    return {key.removeprefix(_OUTER): tensor for key, tensor in tensors.items()}


def _rank_and_alpha(folder: Path) -> tuple[int, float]:
    """Where the adapter sits is seen from its weights: peft has many ways to say it."""
    config = read_adapter_config(folder)
    unknown = [key for key, value in config.items() if value and key not in _READ and key not in _NO_MATTER]
    unknown += ["bias"] if config.get("bias", "none") != "none" else []
    unknown += ["init_lora_weights"] if config.get("init_lora_weights") not in _STARTS else []
    if config.get("peft_type") != "LORA" or unknown:
        kind = config.get("peft_type") if config.get("peft_type") != "LORA" else ", ".join(unknown)
        raise UserError(f"the adapter {folder} is of a kind that Keel does not read ({kind}); merge it with peft first")
    try:
        return int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / CONFIG_FILE} lacks a rank or an alpha") from None


def _targets(body: nn.Module, wanted: tuple[str, ...] | str) -> tuple[str, ...]:
    """Names of linear layers (the end of their names in the body), those of the adapters themselves left out."""
    from transformers.pytorch_utils import Conv1D

    plain: Any = Conv1D  # untyped
    linear = [
        key.removesuffix(".base_layer")
        for key, module in body.named_modules()
        if isinstance(module, nn.Linear | plain) and ".lora_" not in key
    ]
    last = {key.rsplit(".", 1)[-1] for key in linear}
    targets = last if wanted == ALL_LINEAR else {wanted} if isinstance(wanted, str) else set(wanted)
    missing = sorted(name for name in targets if not any(f".{key}".endswith(f".{name}") for key in linear))
    if not targets or missing:
        raise UserError(
            f"lora.targets: the model has no linear layer {', '.join(missing) or 'to adapt'}; it has "
            f"{', '.join(sorted(last))}"
        )
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
    for layer in state.layers.values():  # not by setattr, which nn.Module makes slow: a sampler switches at every token
        vars(layer).update(_disable_adapters=name is None, _active_adapter=[name])


def _prefix(model: nn.Module) -> str:
    """What stands before the body's names in the model's."""
    holder: Any = model
    return f"{holder.base_model_prefix}." if body_of(model) is not model else ""


def _transposed(layer: Any) -> bool:
    return bool(getattr(layer, "fan_in_fan_out", False))


def _weights_by_names(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Each weight and kept buffer with all the names it has: several where weights are tied."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kept = {name: one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                names, _ = found.setdefault(id(tensor), ([], tensor.detach()))
                names.append(f"{prefix}.{name}" if prefix else name)
    return list(found.values())
