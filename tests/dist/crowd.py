"""Several processes on this machine, forked so that imports are paid once."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_processes(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of `count` processes of one job, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        children = start(count, work, Path(folder))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * count, f"exit codes {codes}; the traceback is above"
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def start(count: int, work: Callable[[], Any], folder: Path) -> list[int]:
    """The ids of forked processes, each of which writes what `work` returns to a file named by its rank."""
    children = []
    mine = held_port()
    port = mine.getsockname()[1]
    for rank in range(count):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"} | {
                name: str(value) for name, value in place.items()
            }
            _child(work, folder / str(rank))
        children.append(child)
    mine.close()
    return children


def held_port() -> socket.socket:
    """Bound to a free port, that nobody else is given while a process forked from here has it, and may listen there."""
    mine = socket.socket()
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    mine.bind(("127.0.0.1", 0))
    return mine


def _child(work: Callable[[], Any], result: Path) -> None:
    try:
        torch.set_num_threads(1)
        result.write_bytes(pickle.dumps(work()))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
