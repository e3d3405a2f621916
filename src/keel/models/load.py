"""Typed doors to transformers: loading models from a directory or a hub name, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from keel.errors import UserError, first_line
from keel.models.quiet import quiet_transformers


def resolve_device(choice: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if choice != "auto":
        try:
            return torch.empty(0, device=choice).device
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device: {choice!r} cannot be used here ({first_line(error)}); give auto, cpu, cuda or mps"
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_causal_lm(source: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A causal language model in float32, dropout off.

    Raises UserError where there is none, or where it has no safetensors weights (pickles are never read).
    """
    model: nn.Module = _load(AutoModelForCausalLM, source, trust_remote_code=trust_remote_code)
    return model.eval()


def context_length(source: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest text in tokens that the model's positions allow; None where its config states no limit."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no model could be loaded from {source}: {first_line(error)}{_hint(source)}") from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def load_classifier(source: str, *, new_head: bool = False, trust_remote_code: bool = False) -> nn.Module:
    """A sequence classifier with one label in float32; with `new_head`, one that the weights lack is made.

    Raises UserError as `load_causal_lm` does, where the weights have a head of several labels, and where they have
    none and no new one is asked for.
    """
    options = {"trust_remote_code": trust_remote_code, "num_labels": 1, "output_loading_info": True}
    try:
        model, found = _load(AutoModelForSequenceClassification, source, **options)
    except RuntimeError:  # transformers' for weights of another shape
        raise UserError(
            f"{source} is no reward model with one score a text: its head's weights have another shape"
        ) from None
    if found["missing_keys"] and not new_head:
        raise UserError(
            f"{source} is no reward model: its weights lack {', '.join(sorted(found['missing_keys']))}; give a "
            "sequence classifier, such as a reward stage makes"
        )
    classifier: nn.Module = model.eval()
    return classifier


def _load(kind: Any, source: str, **options: Any) -> Any:
    try:
        with quiet_transformers():
            model = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"no model could be loaded from {source}: {first_line(error)}{_hint(source)}") from error
    return model


def _hint(source: str) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return " (and there is no such directory)"
    if not list(folder.glob("*.safetensors")):
        return " (only safetensors weights are read; convert pickled ones with transformers first)"
    return ""
