"""Starting a run in several processes of this machine, as torchrun does, and what a process knows before it joins."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from keel.errors import UserError

USER_ERROR = 2  # the exit code of a mistake that the leader has told in a sentence
LOST = 3  # of a process whose peers are gone
LEFT = 128 + signal.SIGTERM  # 143, of a run that was left: what a program has that the signal ended
_SHUTDOWN = 600  # seconds that a step has to end in when the launcher is told to


class Dismissed(Exception):
    """The leader has ended, and says itself why; this process ends with the same exit code, 2 or that of leaving."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Lost(UserError):
    """Another process of the run has ended, and this one cannot go on."""


class Fallen(Exception):
    """This process cannot go on, in the midst of what all do together: it ends by itself, and takes the job with it."""


def launched() -> int:
    """How many processes a launcher such as torchrun says there are; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process leads: it alone decides, writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> None:
    """`keel ARGUMENTS` in that many processes; all are started again, `restarts` times at most, when one ends badly.

    Raises UserError that names the process which ended first, and SystemExit where it has told its mistake itself, or
    has left the run.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if launched() > 1:
        raise UserError("--processes is for a run that no launcher has started; leave it out under torchrun")
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):  # the latter has its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is needed is said below
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all here, whatever the host's name leads to
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="keel",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # they would be started again after leaving, too
        monitor_interval=0.1,
        shutdown_timeout=_SHUTDOWN,
        start_method="spawn",
    )
    for remaining in range(restarts, -1, -1):
        try:
            elastic_launch(config, sys.executable)("-m", "keel", *arguments)
            return
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None
        except ChildFailedError as error:
            if any(one.exitcode == LEFT for one in error.failures.values()):
                raise SystemExit(LEFT) from error
            if remaining:
                continue
            rank, failure = min(error.failures.items(), key=lambda one: (one[1].exitcode == LOST, one[1].timestamp))
            if failure.exitcode == USER_ERROR:
                raise SystemExit(USER_ERROR) from error
            how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            again = f", after {restarts} restarts" if restarts else ""
            raise UserError(
                f"process {rank} of {processes} ended with {how}{again}, and the others were stopped; start the run "
                "again: it goes on from its last checkpoint"
            ) from error
