"""Whether a model keeps documents apart that share a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keel.errors import UserError
from keel.models.hidden import last_hidden

_LENGTH = 4
_LEAK = 1e-5  # of the largest hidden state: what a document may change by when its neighbour is another one
_ROUNDING = {torch.float32: 1e-3}  # … and when it has no neighbour, so other shapes
_ROUGH_ROUNDING = 5e-2  # of the shorter kinds of numbers


@torch.no_grad()
def require_packing(backbone: nn.Module) -> None:
    """Hold a document that follows another one in its row to the same document alone.

    Positions that begin anew are all that tells documents apart (no mask is given), and not every attention kernel
    or architecture listens to them. Raises UserError where they are not kept apart.
    """
    device = next(backbone.parameters()).device
    embeddings: Any = backbone.get_input_embeddings()  # type: ignore[operator]  # of every transformers model
    first, other, last = (torch.arange(3 * _LENGTH, device=device) % embeddings.num_embeddings).split(_LENGTH)
    positions = torch.arange(_LENGTH, device=device).repeat(2).expand(2, -1)
    rows = torch.stack([torch.cat([first, last]), torch.cat([other, last])])
    try:
        beside_first, beside_other = last_hidden(backbone, rows, positions)[:, _LENGTH:]
    except TypeError as error:
        raise _refused(backbone, f"it takes no position_ids ({error})") from None
    alone = last_hidden(backbone, last[None])[0]
    if not _gap(beside_first, beside_other) <= _LEAK:
        raise _refused(backbone, "what it makes of a document depends on the one before it")
    if not _gap(beside_first, alone) <= _ROUNDING.get(alone.dtype, _ROUGH_ROUNDING):
        raise _refused(backbone, "what it makes of a document is not what it makes of it alone")


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _refused(backbone: nn.Module, reason: str) -> UserError:
    config: Any = backbone.config
    kernel = getattr(config, "_attn_implementation", None)
    return UserError(
        f"sft.packing: {type(backbone).__name__} with the attention kernel {kernel} does not keep documents apart that "
        f"share a row ({reason}); leave packing out"
    )
