"""Weights in shards (FSDP2): gathered block by block where a model trains, and all at once for a phase of looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn

from keel.dist.world import everyone, world

_owners: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()  # under which root a module is sharded
_gathered: WeakSet[nn.Module] = WeakSet()
_FEW = 8  # rows


def shard(root: nn.Module) -> None:
    """Leave each process its shard of every weight of `root`, each block of its models a unit of its own.

    Called in every process at the same point, before an optimiser is made; alone, nothing happens. While it trains
    `root` is called in all processes equally often. What is on a body that another root holds stays as it is, and so
    do heads and norms outside the blocks: they are small, may be of another precision, and some are read outside of
    a forward.
    """
    here = world()
    if here.size == 1 or any(module in _owners for module in root.modules()):
        return
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": here.mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if here.offload else OffloadPolicy(),
    }
    blocks = _blocks(root)
    for block in blocks:
        fully_shard(block, **options)
    fully_shard(root, ignored_params=_small(root, blocks), **options)
    for module in root.modules():
        _owners[module] = ref(root)
    for unit in _units(root):
        unit.set_gradient_divide_factor(1.0)  # a loss is a sum over the whole minibatch
        unit.set_force_sum_reduction_for_comms(True)
    known: Any = root
    known._get_fsdp_state()._lazy_init()  # else the first block that is called alone would take itself for the root


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """While the context lasts every process holds the model whole, to be looked at without gradients.

    Called in every process at the same point; inside, processes may do different things.
    """
    parts = set(model.modules())
    roots = dict.fromkeys(owner() for module in model.modules() if (owner := _owners.get(module)) is not None)
    units = [unit for root in roots if root for unit in _units(root) if unit is root or unit in parts]
    mine = [unit for unit in units if unit not in _gathered]
    for unit in mine:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
        _gathered.add(unit)
    try:
        yield
    finally:
        for unit in mine:
            unit.reshard()
            unit.set_reshard_after_forward(unit not in roots, recurse=False)
            _gathered.discard(unit)


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; another one is itself. Called in every process."""
    known: Any = tensor
    result: Tensor = known.full_tensor() if sharded(tensor) else tensor
    return result


def collected(tensors: Iterable[tuple[Iterable[str], Tensor]]) -> dict[str, Tensor]:
    """Whole tensors, each under all its names, in the memory of the leader's host; other processes keep none.

    Called in every process: an iterable that gathers them as it goes leaves no process with more than one at a time.
    """
    found: dict[str, Tensor] = {}
    for names, tensor in tensors:
        if world().rank == 0:
            found |= dict.fromkeys(names, tensor.cpu())
    return found


def sharded(tensor: Tensor) -> bool:
    """Whether this process holds a shard of it."""
    return hasattr(tensor, "full_tensor")


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add up what the processes found for the weights that are not sharded; of the others FSDP has."""
    if world().size == 1:
        return
    import torch.distributed as torch_dist

    mine = [weight for weight in weights if not sharded(weight)]
    found = everyone([weight.grad is not None for weight in mine])
    for weight, anywhere in zip(mine, map(any, zip(*found, strict=True)), strict=True):
        if anywhere:  # what no loss reaches is not moved
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch_dist.all_reduce(weight.grad)


def clip_gradients(weights: Iterable[nn.Parameter], max_norm: float) -> float:
    """The norm of all gradients together, sharded or not, which are scaled down to `max_norm` where it is above."""
    weights = list(weights)
    if world().size == 1:
        return float(nn.utils.clip_grad_norm_(weights, max_norm))
    norm = torch.zeros(())
    for kind in (True, False):
        gradients = [weight.grad for weight in weights if weight.grad is not None and sharded(weight) is kind]
        norm = torch.hypot(norm, whole(nn.utils.get_total_norm(gradients)).cpu())
    scale = float(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    for weight in weights:
        if weight.grad is not None:
            weight.grad.mul_(scale)
    return float(norm)


def _small(root: nn.Module, blocks: Sequence[nn.Module]) -> set[nn.Parameter]:
    """Weights outside the blocks that are vectors, or a few of them."""
    inside = {weight for block in blocks for weight in block.parameters()}
    return {weight for weight in root.parameters() if weight not in inside and (weight.ndim < 2 or len(weight) <= _FEW)}


def _blocks(root: nn.Module) -> list[nn.Module]:
    """The blocks that its models are made of, as transformers names them."""
    kinds: set[str] = set()
    for module in root.modules():
        kinds |= set(getattr(module, "_no_split_modules", None) or ())
    return [module for module in root.modules() if type(module).__name__ in kinds]


def _units(root: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in root.modules() if isinstance(module, FSDPModule)]
