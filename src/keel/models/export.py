"""Ordinary Hugging Face directories."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig

from keel.models.adapters import tensors_of
from keel.models.quiet import quiet_transformers
from keel.models.reward import RewardModel

_generation_config: Any = GenerationConfig  # untyped
PAD_TOKEN = "<|keel_pad|>"
NORMALISATION_FILE = "keel_reward.json"


def save_policy(
    backbone: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    eos_ids: Collection[int],
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Weights, config, tokenizer and chat template: `AutoModelForCausalLM.from_pretrained(folder)` loads it.

    `tensors` are its weights where they are not the backbone's own (an adapter merged in, shards gathered). Every token
    of `eos_ids` ends a response there too, by the generation config.
    """
    model: Any = backbone
    old = model.generation_config
    model.generation_config = _generation_config(
        bos_token_id=old.bos_token_id, eos_token_id=sorted(eos_ids), pad_token_id=old.pad_token_id
    )
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=tensors_of(model) if tensors is None else tensors)
    tokenizer.save_pretrained(folder)


def save_reward_model(
    model: RewardModel, tokenizer: Any, folder: Path, *, scale: float, tensors: dict[str, Tensor] | None = None
) -> None:
    """A sequence classifier that transformers alone scores alike (plus `keel_reward_shift`), at any batch size.

    An ensemble of heads has a label for each member, and a list of shifts, `keel_reward_shifts`.

    transformers reads the score at the rightmost token that is not the pad id, so the saved model gets a pad
    token that no text can hold: one of its own, added behind the vocabulary. `scale` is the standard deviation
    that was divided out (math.md §1: the preference model is sigmoid(scale x score gap)); `tensors` are as in
    `save_policy`.
    """
    classifier: Any = model.classifier
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "right"
    tensors = tensors_of(classifier) if tensors is None else tensors
    config = copy.deepcopy(classifier.config)
    config.pad_token_id = tokenizer.pad_token_id
    table = classifier.get_input_embeddings().weight
    if len(table) < len(tokenizer):
        name = next(name for name, one in classifier.named_parameters() if one is table)
        tensors = tensors | {name: pad(tensors[name], (0, 0, 0, len(tokenizer) - len(table)))}
        config.get_text_config().vocab_size = len(tokenizer)
    own, classifier.config = classifier.config, config
    try:
        with quiet_transformers():
            classifier.save_pretrained(folder, state_dict=tensors)
    finally:
        classifier.config = own
    tokenizer.save_pretrained(folder)
    shifts = model.shifts
    kept = {"scale": scale, "shift": shifts[0] if len(shifts) == 1 else shifts}
    (folder / NORMALISATION_FILE).write_text(json.dumps(kept) + "\n")
