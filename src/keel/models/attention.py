"""The attention that Keel gives models: of rows whose tokens lie side by side, and as matrix products where short."""

from __future__ import annotations

import inspect
import math
import re
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from keel.batching import Flat
from keel.models.kernels import thin_products
from keel.models.quiet import quiet_transformers

ATTENTION = "keel"  # its name in a model's config
_SHORT = 256  # keys up to which, on a CPU, whole matrices of scores are faster than the blocks of torch's kernel


def use_attention(model: nn.Module) -> None:
    """Give a model that calls torch's attention through transformers' interface the one below.

    An architecture whose code asks whether it is called "sdpa" (sparse attention of the DeepSeek kind) stays as it is.
    """
    known: Any = model
    code = inspect.getsource(sys.modules[type(model).__module__])
    if known.config._attn_implementation == "sdpa" and not re.search(r"_attn_implementation.*[\"']sdpa[\"']", code):
        with quiet_transformers():  # an old architecture, which cannot change it, stays as it is
            known.set_attn_implementation(ATTENTION)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat: Flat | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as torch computes it: of each row to itself alone where the rows are `flat`.

    Shapes as in transformers: query [B, heads, S, D], key and value [B, key heads, L, D], mask bool or to be added
    [B or 1, 1, S, L]; the result is [B, S, heads, D]. Flat rows have B = 1 and S = L = N, and no mask: each is causal.
    """
    if flat is None:
        return _padded(module, query, key, value, attention_mask, options)
    apart = [_spread(part[0].transpose(0, 1), flat).transpose(1, 2) for part in (query, key, value)]
    result, _ = _padded(module, apart[0], apart[1], apart[2], None, options)
    gathered: Tensor = _Gather.apply(result, flat)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return gathered[None], None


def _spread(tokens: Tensor, flat: Flat) -> Tensor:
    spread: Tensor = _Spread.apply(tokens, flat)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return spread


def _padded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, None]:
    rough = key.dtype not in (torch.float32, torch.float64)  # whose scores torch's kernel keeps in float32
    long = key.device.type != "cpu" or key.shape[2] > _SHORT
    if rough or long or options.get("dropout") or "position_bias" in options:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    batch, heads, steps, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1] * steps)  # the query heads that share a key head, together
    scaling = options.get("scaling") or 1 / math.sqrt(width)
    with thin_products() if steps == 1 else nullcontext():
        scores = ((query * scaling).reshape(*shape, width) @ key.transpose(2, 3)).view(batch, heads, steps, -1)
    causal = options.get("is_causal")
    if mask is None and steps > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        mask = torch.ones(steps, scores.shape[-1], dtype=torch.bool).tril_()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # not -inf: a padded row may see nothing
    elif mask is not None:
        scores = scores + mask
    with thin_products() if steps == 1 else nullcontext():
        result = scores.softmax(dim=-1).view(*shape, -1) @ value
    return result.view(batch, heads, steps, -1).transpose(1, 2).contiguous(), None


class _Spread(torch.autograd.Function):
    """[N, heads, D] to rows [rows, width, heads, D], 0 where there is no token."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, flat: Flat) -> Tensor:
        ctx.flat = flat
        return _in_rows(tokens, flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.flatten(0, 1).index_select(0, ctx.flat.slots), None


class _Gather(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, flat: Flat) -> Tensor:
        ctx.flat = flat
        return rows.flatten(0, 1).index_select(0, flat.slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _in_rows(grad, ctx.flat), None


def _in_rows(tokens: Tensor, flat: Flat) -> Tensor:
    rows = tokens.new_zeros(flat.rows * flat.width, *tokens.shape[1:]).index_copy_(0, flat.slots, tokens)
    return rows.view(flat.rows, flat.width, *tokens.shape[1:])


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
