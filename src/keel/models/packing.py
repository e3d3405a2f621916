"""Only real tokens: the rows of a batch side by side, where a model keeps them apart."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import get_layer_types_and_kwargs

from keel.batching import Flat, flatten
from keel.models.attention import ATTENTION
from keel.models.hidden import last_hidden

_WIDTH = 4  # no longer than the least window
_LEAK = 1e-5  # of the largest hidden state: what a row may change by when its neighbour is another one
_ROUNDING = {torch.float32: 1e-3}  # … and when it has no neighbour, so other shapes
_ROUGH_ROUNDING = 5e-2  # of the shorter kinds of numbers
_KINDS = {"full_attention", "sliding_attention"}  # of attention layers, which Keel's knows
_found: WeakKeyDictionary[nn.Module, tuple[str, float]] = WeakKeyDictionary()


def states_at(backbone: nn.Module, tokens: Tensor, lengths: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Hidden states [N, H] of the tokens at (rows, places), int64 [N] each, of a batch [B, L] padded on the right.

    Padding is left out where there is much of it and the model keeps rows apart without it.
    """
    flat = flatten(tokens, lengths) if tokens.shape[1] <= longest_kept_apart(backbone) else None
    if flat is None:
        return last_hidden(backbone, tokens).flatten(0, 1)[rows * tokens.shape[1] + places]
    return _flat_hidden(backbone, flat)[flat.starts[rows] + places]


def _flat_hidden(backbone: nn.Module, flat: Flat) -> Tensor:
    """Hidden states [N, H]. The mask says nothing but that none is to be made."""
    ready = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=flat.tokens.device)
    return last_hidden(backbone, flat.tokens, position_ids=flat.position_ids, attention_mask=ready, flat=flat)[0]


def longest_kept_apart(backbone: nn.Module) -> float:
    """The longest rows that the model keeps apart when they lie side by side; 0 where it does not.

    A row that follows another one is held to the same row alone, once a model: not every architecture uses Keel's
    attention, hands it what it needs to know, or listens to positions. Within a sliding window rows see all of
    themselves, and beyond it they are padded.
    """
    known: Any = backbone
    kernel = known.config._attn_implementation
    if backbone not in _found or _found[backbone][0] != kernel:
        kinds, options = get_layer_types_and_kwargs(known.config.get_text_config())
        apart = kernel == ATTENTION and set(kinds) <= _KINDS and _keeps_apart(backbone)
        windows = [float(one["sliding_window"]) for one in options if one.get("sliding_window")]
        _found[backbone] = (kernel, min(windows, default=math.inf) if apart else 0)
    return _found[backbone][1]


@torch.no_grad()
def _keeps_apart(backbone: nn.Module) -> bool:
    device = next(backbone.parameters()).device
    embeddings: Any = backbone.get_input_embeddings()  # type: ignore[operator]  # of every transformers model
    first, other, last = (torch.arange(3 * _WIDTH, device=device) % embeddings.num_embeddings).split(_WIDTH)
    lengths = torch.tensor([2, _WIDTH, 1, 2], device=device)
    found = []
    for neighbour in (first, other):
        flat = flatten(torch.stack([neighbour, last, neighbour, last]), lengths)
        assert flat is not None
        try:
            found.append(_flat_hidden(backbone, flat)[2 : 2 + _WIDTH])
        except Exception:  # it takes no positions, or nothing it does not know, and may say so in any way
            return False
    alone = last_hidden(backbone, last[None])[0]
    rounding = _ROUNDING.get(alone.dtype, _ROUGH_ROUNDING)
    return _gap(found[0], found[1]) <= _LEAK and _gap(found[0], alone) <= rounding


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
