"""A real vLLM in an environment of its own (benchmarks.peers makes it), for as long as a test needs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks.peers import environment, prepare, vllm

_PEER = vllm("0.32.0", "vllm_generate.py")
_PATIENCE = 300.0  # seconds until it must be up
CONTEXT = 256


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL to it and all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(model: Path, log: Path, *options: str) -> Iterator[Running]:
    """vLLM with that model on a free port of the loopback, in float32, eager, with its development routes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `vllm serve` asks for the version of a package named vllm, which the build for processors is not.
    command = [str(prepare(_PEER)), "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", "64", "--generation-config", "vllm", *options]
    variables = environment(1, "plain", {**(_PEER.settings or {}), "VLLM_SERVER_DEV_MODE": "1"})
    variables.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Running(f"http://127.0.0.1:{port}", process)
    try:
        _wait(running, log)
        yield running
    finally:
        running.kill()


def _wait(running: Running, log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < _PATIENCE:
        assert running.process.poll() is None, f"vLLM ended: {log.read_text(errors='replace')[-3000:]}"
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{running.url}/health").is_success:
                return
        time.sleep(0.5)
    raise AssertionError(f"vLLM is not up after {_PATIENCE:g} s: {log.read_text(errors='replace')[-3000:]}")
