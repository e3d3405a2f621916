"""Tensors in files, each process its own shards of them (torch.distributed.checkpoint): read by any other number.

The files are safetensors that say where in its tensor each shard belongs. Nothing is pickled, and no process ever holds
a sharded tensor whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.dist.fsdp import sharded
from keel.dist.world import everyone, world
from keel.errors import UserError

_SUFFIX = ".safetensors"
_FILE_BYTES = 2**28  # about what one process writes at a time: a file is in its memory once more while it is written


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, sharded or not, into `folder`, flushed to the disk. Called in every process, with the same names.

    Raises OSError where the disk does not take them, and UserError where the processes do not see one folder.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    alone = world().size == 1
    ready = {name: _ready(tensor) for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files(ready), save_distributed=True)
    with _own_errors():
        save(ready, storage_writer=writer, no_dist=alone)
    if alone:
        return
    written = everyone([file.name for file in folder.glob(f"*{_SUFFIX}")])
    lost = everyone([rank for rank, names in enumerate(written) if not all((folder / name).exists() for name in names)])
    if lost[0]:
        raise UserError(
            f"what process {lost[0][0]} writes into {folder} does not reach process 0: give an --out that lies on a "
            "file system which all hosts share"
        )


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors that `write_shards` has left in `folder`, by name, without their values (on the meta device).

    Empty where nothing was written.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta") for name, entry in known.items()}


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, sharded or not, with what is stored under their names: each process reads what it holds.

    Called in every process, with the same names; shapes must be those that are `stored`.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _own_errors(), torch.no_grad():
        load(
            {name: tensor.detach() for name, tensor in into.items()},
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=world().size == 1,
        )


def _ready(tensor: Tensor) -> Tensor:
    """As safetensors take it, whatever its strides were."""
    return tensor.detach() if sharded(tensor) else tensor.detach().contiguous()


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file in which a tensor's shards go, from 1: as many as fit what is written at a time."""
    numbers, number, filled = {}, 1, 0.0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() / world().size
        if filled and filled + size > _FILE_BYTES:
            number, filled = number + 1, 0.0
        numbers[name] = number
        filled += size
    return numbers


@contextmanager
def _own_errors() -> Iterator[None]:
    """What went wrong in a process, rather than what torch packs it into (which is no Exception)."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # though told so
            yield
    except CheckpointException as error:
        rank, (found, _) = min(error.failures.items())
        if isinstance(found, OSError) and world().rank > 0:  # that the leader raises
            raise UserError(str(found)) from error
        if world().rank in error.failures or isinstance(found, OSError):
            raise error.failures.get(world().rank, (found, None))[0] from error
        raise RuntimeError(f"process {rank}: {type(found).__name__}: {found}") from error
