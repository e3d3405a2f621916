"""What makes a process fast on a CPU: whose products are used for what, and buffers that are kept."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

_EXACT = 1e-6  # error of a product in float32 beside its terms' sizes; in bfloat16 it is some 5e-4
# oneDNN's cache of kernels, and torch's of what asks for them, one a shape. Ragged batches have many shapes, and a
# kernel is made in a fifth of a millisecond; torch's 1,024 would hold a quarter of a MiB each.
_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS = "16"
_PACKED_BYTES = 1 << 30  # of weights that are copied, at most
_PACKED_ROWS = 64  # of the products they are packed for; others are right too
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
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, _KERNELS)
    matmul = _matmul()
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


@contextmanager
def thin_products() -> Iterator[None]:
    """Within, MKL multiplies float32 again: for products of one row, which oneDNN makes copies for.

    Such a product is as fast as its matrix is read; a slice of a buffer is read where it is.
    """
    matmul = _matmul()
    before, matmul.fp32_precision = matmul.fp32_precision, "none"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Within, the model's linear layers use copies of their weights in oneDNN's own order; the results are the same.

    A product of few rows spends up to half its time bringing the weights into that order. The weights must not
    change meanwhile, and nothing is differentiated. Without effect away from oneDNN, and on models whose copies would
    take more than 1 GiB.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    size = sum(layer.weight.nbytes for layer in layers)
    fast = _matmul().fp32_precision == "bf16" and all(layer.weight.device.type == "cpu" for layer in layers)
    if not fast or size > _PACKED_BYTES:
        layers = []
    operations: Any = torch.ops.mkldnn
    try:
        for layer in layers:
            packed = operations._reorder_linear_weight(layer.weight.detach(), _PACKED_ROWS)
            layer.__dict__["forward"] = partial(_packed_product, packed, layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _packed_product(packed: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    operations: Any = torch.ops.mkldnn
    product: Tensor = operations._linear_pointwise(states, packed, bias, "none", [], "")
    return product


def _matmul() -> Any:
    backends: Any = torch.backends  # untyped
    return backends.mkldnn.matmul


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
