"""What is not finite in a micro-batch, and where it came from; and whether memory ran out. No weight moves here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from keel.dist.world import everyone
from keel.engines.losses import Loss

_MEMORY_WORDS = ("out of memory", "can't allocate memory")  # of CUDA and MPS, and of the CPU's allocator


@dataclass(frozen=True)
class Finding:
    """A micro-batch's loss, the norm of its gradient, and what was the first to be not finite, if anything was."""

    loss: float
    gradient_norm: float
    where: str
    statistics: Mapping[str, float]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def examine(
    module: nn.Module,
    loss: Loss[Any],
    batch: Any,
    denominator: float,
    norm: Callable[[], float],
    weights: Mapping[str, nn.Parameter],
) -> Finding:
    """Forward and backward of one micro-batch; `norm` is that of the gradients that `weights` have then.

    The gradients are left to the caller to drop.
    """
    with _first_not_finite(module) as modules:
        value, tally = loss(module, batch, denominator)
        torch.autograd.backward(value)
    found = float(value.detach())
    mine = [name for name, weight in weights.items() if weight.grad is not None and not _is_finite(weight.grad)]
    bad = set().union(*everyone(mine))
    gradients = [name for name in weights if name in bad]
    size = norm()
    if modules:
        where = f"the output of {modules[0]}"
    elif not math.isfinite(found):
        where = "the loss"
    elif gradients:
        where = f"the gradient of {gradients[-1]}"  # the last one is nearest to the loss
    else:
        where = "" if math.isfinite(size) else "the norm of the gradients, each of which is finite"
    return Finding(found, size, where, tally.means())


def not_finite(weights: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of weights that hold a number which is not finite."""
    return [name for name, weight in weights.items() if not _is_finite(weight)]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


@contextmanager
def _first_not_finite(root: nn.Module) -> Iterator[list[str]]:
    """The name of the first module below `root` whose output is not finite, as soon as there is one."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(_is_finite(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
                found.append(name)

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in root.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_finite(tensor: Tensor) -> bool:
    """Of a sharded tensor, the part that this process holds."""
    known: Any = tensor.detach()
    mine: Tensor = known.to_local() if hasattr(known, "to_local") else known
    return not mine.is_floating_point() or bool(mine.isfinite().all())
