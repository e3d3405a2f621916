"""The processes of one job: how many there are, which one this is, and what they tell each other."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from keel.dist.launcher import Lost, launched
from keel.errors import UserError, first_line

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=60)  # the leader may be busy alone that long: a judge over the network, a report


@dataclass(frozen=True)
class World:
    """What a process knows of its job. Alone, it is number 0 of 1."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None  # over which weights are sharded; with two dimensions copies x shards
    offload: bool = False  # sharded weights wait in the memory of the host


ALONE = World()
_world = ALONE


def world() -> World:
    """This process's."""
    return _world


@contextmanager
def joined(*, shard: int | None = None, offload: bool = False, device: str = "auto") -> Iterator[World]:
    """While the context lasts the launched processes are one world; a single process stays as it is.

    `shard` processes hold a model between them (all, where it is None), and as many copies there are as processes
    remain. Raises UserError where that does not divide, or where `offload` finds no GPU.
    """
    global _world
    size = launched()
    if size == 1:
        yield _world
        return
    shard = size if shard is None else shard
    if size % shard:
        raise UserError(
            f"parallel.shard: {shard} does not divide the {size} processes; give a divisor, or leave it out"
        )
    kind = _device_kind(device)
    if offload and kind == "cpu":
        raise UserError("parallel.offload keeps weights off a GPU, and this run has none; leave it out")
    _meet("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        _world = World(torch_dist.get_rank(), size, _mesh(kind, size, shard), offload)
        try:
            yield _world
            _part()
        except RuntimeError as error:
            raise _of_others(error) from error
    finally:
        _world = ALONE
        with suppress(RuntimeError):  # a peer is gone; the error that is under way says so
            torch_dist.destroy_process_group()


def everyone(value: T) -> list[T]:
    """What each process gives, in their order, the same list for all."""
    if _world.size == 1:
        return [value]
    values: list[Any] = [None] * _world.size
    torch_dist.all_gather_object(values, value)
    return values


def from_leader(value: T) -> T:
    """What the leader gives; others may give anything."""
    if _world.size == 1:
        return value
    box: list[Any] = [value]
    torch_dist.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result


def _meet(backend: str) -> None:
    """Find the other processes. A launcher that starts them again may keep its store, with addresses of the dead."""
    try:
        found, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes cannot meet ({first_line(error)}): start them by `keel run --processes` or torchrun"
        ) from error
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), found)
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)


def _device_kind(device: str) -> str:
    """The kind of device, and on a machine of several GPUs the one of this process."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return "cuda"
    return "cpu"


def _mesh(kind: str, size: int, shard: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if shard == size:
        return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (size // shard, shard), mesh_dim_names=("copy", "shard"))


def is_lost(error: Exception) -> bool:
    """Whether it says that another process is gone."""
    return isinstance(error, torch_dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _of_others(error: RuntimeError) -> Exception:
    """What a lost connection means; any other error is itself."""
    if not is_lost(error):
        return error
    return Lost(
        f"process {_world.rank} of {_world.size} lost the others: one of them has ended, and says "
        "why, or its launcher does; start the run again: it goes on from its last checkpoint"
    )


def _part() -> None:
    """Before the group is destroyed: gloo aborts a process that still holds what belongs to it."""
    gc.collect()
    torch_dist.barrier()
