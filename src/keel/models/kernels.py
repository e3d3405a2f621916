"""What computes a model on a CPU: the matrix product, attention and allocation that are fastest there, all float32."""

from __future__ import annotations

import ctypes
import math
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from keel.models.quiet import quiet_transformers

SHORT_ATTENTION = "keel_short"  # its name in a model's config
_SHORT = 256  # keys up to which whole matrices of attention scores are faster than the blocks of torch's kernel
_EXACT = 1e-6  # error of a product in float32 beside its terms' sizes; in bfloat16 it is some 5e-4
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


@cache
def tune_cpu() -> None:
    """Once a process, before its first large product: `use_fast_matmul`, and `keep_freed_buffers`."""
    use_fast_matmul()
    keep_freed_buffers()


def use_fast_matmul() -> bool:
    """Let oneDNN multiply float32 matrices on a CPU, unless a precision has been chosen; whether it does.

    torch gives float32 to MKL, which uses half of an AMD processor's vector width, and other numbers to oneDNN, which
    uses all of it. The way to oneDNN is a permission to round to bfloat16, of which it makes use only on processors
    with matrix units (AMX): there the product below is off, and the permission is taken back.
    """
    os.environ.setdefault(
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"
    )  # kernels kept, one a shape: ragged batches have many
    backends: Any = torch.backends  # untyped
    matmul = backends.mkldnn.matmul
    if matmul.fp32_precision != "none":
        return bool(matmul.fp32_precision == "bf16")
    numbers = torch.arange(256 * 256, dtype=torch.float64).reshape(256, 256)
    left, right = (1.25 * numbers).sin().float(), (2.5 * numbers).cos().float()
    size = left.double().abs() @ right.double().abs()
    matmul.fp32_precision = "bf16"
    if (((left @ right) - left.double() @ right.double()).abs() <= _EXACT * size).all():
        return True
    matmul.fp32_precision = "none"
    return False


def keep_freed_buffers() -> bool:
    """Keep large freed buffers for the next tensor instead of handing them to the kernel; whether that can be set.

    glibc maps a large buffer anew each time, and the kernel clears it page by page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def release_freed_buffers() -> None:
    """Hand what `keep_freed_buffers` has kept back to the kernel; without effect under another C library."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def use_short_attention(model: nn.Module) -> None:
    """Give a model that calls torch's attention through transformers' interface the one below."""
    known: Any = model
    if known.config._attn_implementation == "sdpa":
        with quiet_transformers():  # an old architecture, which cannot change it, stays as it is
            known.set_attn_implementation(SHORT_ATTENTION)


def short_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as two matrix products where the keys are few, on a CPU; else torch's own.

    Shapes as in transformers: query [B, heads, S, D], key and value [B, key heads, L, D], mask bool or to be added
    [B or 1, 1, S, L]; the result is [B, S, heads, D].
    """
    if key.device.type != "cpu" or key.shape[2] > _SHORT or options.get("dropout") or "position_bias" in options:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    batch, heads, steps, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1] * steps)  # the query heads that share a key head, together
    scaling = options.get("scaling") or 1 / math.sqrt(width)
    scores = ((query * scaling).reshape(*shape, width) @ key.transpose(2, 3)).view(batch, heads, steps, -1)
    causal = options.get("is_causal")
    if attention_mask is None and steps > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        attention_mask = torch.ones(steps, scores.shape[-1], dtype=torch.bool).tril_()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        lowest = torch.finfo(scores.dtype).min  # not -inf: a padded row may see nothing
        scores = scores.masked_fill(~attention_mask, lowest)
    elif attention_mask is not None:
        scores = scores + attention_mask
    result = scores.softmax(dim=-1).view(*shape, -1) @ value
    return result.view(batch, heads, steps, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHORT_ATTENTION, short_attention)
AttentionMaskInterface.register(SHORT_ATTENTION, sdpa_mask)
