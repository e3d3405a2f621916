"""Only real tokens: rows of a batch that share one, where the model keeps documents apart that do."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from keel.batching import pack
from keel.models.hidden import last_hidden

_LENGTH = 4
_LEAK = 1e-5  # of the largest hidden state: what a document may change by when its neighbour is another one
_ROUNDING = {torch.float32: 1e-3}  # … and when it has no neighbour, so other shapes
_ROUGH_ROUNDING = 5e-2  # of the shorter kinds of numbers
_found: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


def states_at(backbone: nn.Module, tokens: Tensor, lengths: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Hidden states [N, H] of the tokens at (rows, places), int64 [N] each, of a batch [B, L] padded on the right.

    Rows share one where that saves padding and the model keeps documents apart that do.
    """
    packed = pack(tokens, lengths) if keeps_documents_apart(backbone) else None
    if packed is None:
        return last_hidden(backbone, tokens).flatten(0, 1)[rows * tokens.shape[1] + places]
    hidden = last_hidden(backbone, packed.tokens, packed.position_ids)
    return hidden.flatten(0, 1)[packed.starts[rows] + places]


def keeps_documents_apart(backbone: nn.Module) -> bool:
    """Hold a document that follows another one in its row to the same document alone, once a model and kernel.

    Positions that begin anew are all that tells documents apart (no mask is given), and not every attention kernel
    or architecture listens to them.
    """
    known: Any = backbone
    kernel = known.config._attn_implementation
    if backbone not in _found or _found[backbone][0] != kernel:
        _found[backbone] = (kernel, _tried(backbone))
    return _found[backbone][1]


@torch.no_grad()
def _tried(backbone: nn.Module) -> bool:
    weight = next(backbone.parameters())
    embeddings: Any = backbone.get_input_embeddings()  # type: ignore[operator]  # of every transformers model
    first, other, last = (torch.arange(3 * _LENGTH, device=weight.device) % embeddings.num_embeddings).split(_LENGTH)
    positions = torch.arange(_LENGTH, device=weight.device).repeat(2).expand(2, -1)
    rows = torch.stack([torch.cat([first, last]), torch.cat([other, last])])
    try:
        beside_first, beside_other = last_hidden(backbone, rows, positions)[:, _LENGTH:]
    except TypeError:  # it takes no position_ids
        return False
    alone = last_hidden(backbone, last[None])[0]
    rounding = _ROUNDING.get(alone.dtype, _ROUGH_ROUNDING)
    return _gap(beside_first, beside_other) <= _LEAK and _gap(beside_first, alone) <= rounding


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
