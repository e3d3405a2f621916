"""Typed doors to transformers: loading models from a directory or a hub name, safetensors only."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from keel.adapter_config import adapter_base, members_of, whole_model
from keel.errors import UserError, first_line, wants_code
from keel.models.adapters import body_of, load_adapter, merge_adapter
from keel.models.attention import use_attention
from keel.models.kernels import tune_cpu
from keel.models.quiet import quiet_transformers

Dtype = torch.dtype | Literal["auto"]
"""A precision, or the one that the weights were saved in."""


def resolve_device(choice: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU, which is then made ready."""
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=choice).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {choice!r} cannot be used here ({first_line(error)}); give auto, cpu, cuda or mps"
        ) from None
    if device.type == "cpu":
        tune_cpu()
    return device


def resolve_precision(choice: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 on a CUDA device that computes in it, else float32."""
    if choice == "auto":
        choice = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    dtype: torch.dtype = getattr(torch, choice)
    return dtype


def load_causal_lm(
    source: str, *, dtype: Dtype = torch.float32, attention: str = "auto", trust_remote_code: bool = False
) -> nn.Module:
    """A causal language model, dropout off; a directory with a LoRA adapter gives its base with the adapter merged.

    Raises UserError where there is none, where it has no safetensors weights (pickles are never read), where they
    are quantised, or are not all that the model has.
    """
    if (base := adapter_base(source)) is not None:
        model = load_causal_lm(base, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        return _merged(model, source)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {} if attention == "auto" else {"attn_implementation": attention}
    model, found = _load(AutoModelForCausalLM, source, trust_remote_code, **options)
    new = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})  # random ones
    if new:
        raise UserError(f"{source} is no whole model: its weights lack {', '.join(new[:3])}, or have another shape")
    if attention == "auto":
        use_attention(model)
    loaded: nn.Module = model.eval()
    return loaded


def _merged(model: nn.Module, source: str) -> nn.Module:
    """With the adapter in the directory `source`."""
    beside = load_adapter(model, "merged", Path(source))
    if beside:
        raise UserError(
            f"the adapter {source} comes with other weights ({', '.join(sorted(beside)[:3])}), which Keel would leave "
            "out; merge it with peft first"
        )
    merge_adapter(model, "merged")
    return model


def classifier_on(backbone: nn.Module, *, trust_remote_code: bool = False) -> nn.Module:
    """A sequence classifier with one label on the body of a causal language model, which is shared; its head is zero.

    Raises UserError where the model's family has none whose head is all that it adds.
    """
    model: Any = backbone
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = None  # it may end a text, and there too the last token has the score
    kind: Any = AutoModelForSequenceClassification  # untyped
    body = body_of(backbone)
    try:
        with torch.device("meta"):  # its own body is thrown away
            classifier = kind.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:  # transformers' for a family without one
        classifier = None
    if (
        classifier is None
        or type(body_of(classifier)) is not type(body)
        or not isinstance(getattr(classifier, "score", None), nn.Module)
    ):
        raise UserError(f"{type(backbone).__name__} has no sequence classifier with a `score` head on the same body")
    setattr(classifier, classifier.base_model_prefix, body)
    classifier.score = nn.Linear(config.get_text_config().hidden_size, 1, bias=False, device="meta").to_empty(
        device="cpu"
    )
    nn.init.zeros_(classifier.score.weight)
    result: nn.Module = classifier.eval()
    return result


def context_length(source: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest text in tokens that the model's positions allow; None where its config states no limit."""
    source = whole_model(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"no model could be loaded from {source}: {first_line(error)}{_hint(source)}") from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def load_classifier(
    source: str,
    *,
    dtype: Dtype = torch.float32,
    attention: str = "auto",
    new_head: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A sequence classifier as it is; with `new_head` one to be trained, of one label.

    To be trained it gets a head where the weights lack one, and is read at the last token, whatever that is: its pad
    id may end a text till the trained one gets its own. Raises UserError as `load_causal_lm` does, where the weights
    have no head and no new one is asked for, and where one is and they have a head of several labels.
    """
    if (base := adapter_base(source)) is not None:
        if not new_head:
            raise UserError(f"{source} is an adapter alone, no reward model; give the whole model it was merged into")
        whole = load_classifier(
            base, dtype=dtype, attention=attention, new_head=True, trust_remote_code=trust_remote_code
        )
        return _merged(whole, source)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    options |= {} if attention == "auto" else {"attn_implementation": attention}
    if new_head:
        options["num_labels"] = 1
    try:
        model, found = _load(AutoModelForSequenceClassification, source, trust_remote_code, **options)
    except RuntimeError:  # transformers' for weights of another shape
        raise UserError(
            f"{source} is no reward model with one score a text: its head's weights have another shape"
        ) from None
    if found["missing_keys"] and not new_head:
        raise UserError(
            f"{source} is no reward model: its weights lack {', '.join(sorted(found['missing_keys']))}; give a "
            "sequence classifier, such as a reward stage makes"
        )
    for part in model.children():
        if part is not body_of(model):
            part.float()  # in bfloat16 scores that differ by half a per cent would be one
    if new_head:
        model.config.get_text_config().pad_token_id = None
    if attention == "auto":
        use_attention(model)
    classifier: nn.Module = model.eval()
    return classifier


def choose_label(classifier: nn.Module, label: int | str | None, key: str) -> int:
    """The index of the label that is the score, by index or name; `key` is what errors call the recipe's key.

    Raises UserError with the list of labels where there is no such one, or several and none is chosen.
    """
    config: Any = classifier.config
    names = {int(index): str(name) for index, name in config.id2label.items()}
    chosen = [index for index, name in names.items() if label in (index, name)]
    if label is None and len(names) == 1:
        return 0
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))
    fault = "the model has several labels" if label is None else f"{label!r} names no label of the model"
    raise UserError(f"{key}: {fault}; give one of {known}")


def _load(kind: Any, source: str, trust_remote_code: bool, **options: Any) -> Any:
    options["trust_remote_code"] = trust_remote_code
    try:
        _refuse_quantised(source, trust_remote_code)
        _refuse_other_shards(source)
        with quiet_transformers():
            return kind.from_pretrained(source, use_safetensors=True, **options)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many kinds for files that are not what they should be
        if isinstance(error, RuntimeError) and "mismatch" in str(error):
            raise
        raise UserError(
            f"no model could be loaded from {source}: {first_line(error)}{wants_code(error)}{_hint(source)}"
        ) from error


def _refuse_other_shards(source: str) -> None:
    """transformers unpickles a shard whose name does not end in .safetensors, wherever the index says it lies."""
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return
    names = {str(name) for name in json.loads(Path(index).read_bytes())["weight_map"].values()}
    others = sorted(name for name in names if name != Path(name).name or not name.endswith(".safetensors"))
    if others:
        raise UserError(
            f"{source}: {SAFE_WEIGHTS_INDEX_NAME} names {others[0]}, which is no safetensors file beside it, and only "
            "such weights are read; convert pickled ones with transformers first"
        )


def _refuse_quantised(source: str, trust_remote_code: bool) -> None:
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{source} is quantised: an adapter merged into such weights is rounded away with them, so the reference "
            "would not be the model that was trained; give the model in bfloat16 or float32"
        )


def _hint(source: str) -> str:
    folder = Path(source)
    if (members := members_of(source)) != (source,):
        return f" (it is an ensemble of {len(members)} reward models; where one model is wanted, give {members[0]})"
    if not folder.is_dir():
        return " (and there is no such directory)"
    if not list(folder.glob("*.safetensors")):
        return " (only safetensors weights are read; convert pickled ones with transformers first)"
    return ""
