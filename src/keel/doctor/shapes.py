"""The sizes of a model from its configuration alone: it is built on torch's meta device, without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from keel.adapter_config import whole_model
from keel.config.model import LoRAConfig
from keel.doctor.estimate import Shape
from keel.errors import UserError, first_line
from keel.models.adapters import ALL_LINEAR, body_of
from keel.models.quiet import quiet_transformers

_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")  # the MLP's width, as families call it
_GATES = ("gate_proj", "gate_up_proj")


def read_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a directory (of an adapter's base) or of a hub name that has been fetched before.

    Raises UserError where there is none.
    """
    name = whole_model(source)
    try:
        return AutoConfig.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=not Path(name).is_dir()
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the configuration of {source} cannot be read here: {first_line(error)}") from error


def without_weights(config: Any, *, classifier: bool = False, trust_remote_code: bool = False) -> nn.Module:
    """The model of a configuration on the meta device: a causal one, or a sequence classifier.

    Raises UserError where transformers has no such model.
    """
    kind: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM  # untyped
    try:
        with quiet_transformers(), torch.device("meta"):
            model: nn.Module = kind.from_config(config, trust_remote_code=trust_remote_code)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"no model can be made of the configuration {type(config).__name__}: {first_line(error)}"
        ) from (error)
    return model


def shape_of(model: nn.Module) -> Shape:
    """Sizes as `estimate` takes them. Raises UserError for a model that is no transformer of blocks with attention."""
    known: Any = model
    config = known.config.get_text_config()
    try:
        hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
        layers = int(config.num_hidden_layers)
    except AttributeError as error:
        raise UserError(f"{type(model).__name__} has no attention whose sizes are known ({error})") from error
    size = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size
    weights, modules = _count(model), _blocks(model)
    blocks = [_count(block) for block in modules] or [weights // layers]
    norms = [name for name, part in modules[0].named_modules() if "Norm" in type(part).__name__] if modules else []
    widths = {"q_norm": queries, "k_norm": keys}
    return Shape(
        weights=weights,
        block=max(blocks),
        root=weights - sum(blocks),
        layers=layers,
        hidden=hidden,
        heads=heads,
        normed=sum(widths.get(name.rsplit(".", 1)[-1], hidden) for name in norms) or 2 * hidden,
        queries=queries,
        keys=keys,
        intermediate=next((int(wide) for key in _INTERMEDIATE if (wide := getattr(config, key, None))), 4 * hidden),
        gated=any(name.endswith(_GATES) for name, _ in model.named_modules()),
        vocabulary=int(config.vocab_size),
    )


def adapter_numbers(model: nn.Module, lora: LoRAConfig) -> int:
    """How many numbers an adapter of the model's body trains: rank x (in + out) for each of its matrices."""
    plain: Any = Conv1D  # untyped
    return sum(
        lora.rank * sum(module.weight.shape)
        for name, module in body_of(model).named_modules()
        if isinstance(module, nn.Linear | plain)
        and (lora.targets == ALL_LINEAR or any(f".{name}".endswith(f".{target}") for target in lora.targets))
    )


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What its model class never splits, which is what is sharded as one."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
