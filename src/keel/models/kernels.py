"""What makes a process fast on a CPU: oneDNN for products in float32, and buffers that are kept."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import torch

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
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32"
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
