"""Figures and how they are taken: rounds and their spread, peak memory, the machine and its matrix peaks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Round:
    """One round of the work: its seconds, those of its parts, and what was done in it."""

    seconds: float
    counts: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)  # bytes that a part took at most, where it was measured


@dataclass(frozen=True)
class Side:
    """What one side measured in a process of its own."""

    name: str
    rounds: tuple[Round, ...]  # without the one that warms up
    peak_memory: int  # bytes, of the whole process with its imports
    first_loss: float | None = None  # of the first optimiser step, where both sides compute the same
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Side:
        """Back from JSON."""
        return cls(**{**content, "rounds": tuple(Round(**one) for one in content["rounds"])})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def mean(self, count: str) -> float:
        """How much of it a round did, on average."""
        return statistics.fmean(one.counts[count] for one in self.rounds)


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """ValueError where there are none."""
        if not values:
            raise ValueError("no round was measured, so there is no median")
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.least)}–{_short(self.most)})"


def rates(side: Side, unit: str) -> Spread:
    """`unit` a second, over the rounds."""
    return Spread.of([one.counts[unit] / one.seconds for one in side.rounds])


def shares(side: Side, flops: Callable[[Round], Mapping[str, float]], peak: float) -> dict[str, float]:
    """Useful operations over what the peak (operations a second) does in the same time, median over the rounds.

    `flops` gives those of each of a round's parts; "all" is their sum over the round's seconds.
    """
    found: dict[str, list[float]] = {}
    for one in side.rounds:
        useful = flops(one)
        found.setdefault("all", []).append(sum(useful.values()) / one.seconds / peak)
        for part, seconds in one.parts.items():
            found.setdefault(part, []).append(useful[part] / seconds / peak)
    return {part: statistics.median(values) for part, values in found.items()}


def peak_memory() -> int:
    """Bytes that this process has held at most: on the CUDA device where it used one, else by the kernel's count.

    The latter on Linux alone; unlike ru_maxrss it knows nothing of the parent.
    """
    return torch.cuda.max_memory_allocated() if _on_cuda() else _status("VmHWM")


def _on_cuda() -> bool:
    cuda: Any = torch.cuda  # untyped
    return bool(cuda.is_initialized())


def memory_of(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` gives, and the bytes it took at most beyond what the process held before it. Linux with glibc alone.

    Freed buffers are given back to the kernel first and the high-water mark is set back, so that neither hides any.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    done = work()
    return done, _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


_PEAKS = """
import sys, time, torch
size, rounds = int(sys.argv[1]), int(sys.argv[2])
def peak(product, dtype):
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        product(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
print(peak(torch.mm, torch.float32))
print(peak(torch.mm, torch.bfloat16))
try:
    onednn = torch.ops.mkldnn._linear_pointwise
    print(peak(lambda a, b: onednn(a, b, None, "none", [], ""), torch.float32))
except (AttributeError, RuntimeError):
    print(0.0)
"""


def matrix_peaks(environment: Mapping[str, str], size: int = 2048, rounds: int = 12) -> dict[str, float]:
    """Operations a second of a square matrix product, the best of some rounds, in a process of its own.

    `fp32` and `bf16` are torch's own product; `fp32 onednn` is the same fp32 product by oneDNN, 0 where there is none.
    """
    command = [sys.executable, "-c", _PEAKS, str(size), str(rounds)]
    done = subprocess.run(command, env=dict(environment), check=True, capture_output=True, text=True)
    return dict(zip(("fp32", "bf16", "fp32 onednn"), map(float, done.stdout.split()), strict=True))


def machine(threads: int) -> dict[str, Any]:
    """What a figure must name."""
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "keel": _git("rev-parse", "--short=10", "HEAD") + ("+" if dirty else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "load": os.getloadavg()[0],
    }


def machine_line(where: Mapping[str, Any]) -> str:
    """What `machine` found, in words."""
    return (
        f"{where['cpu']}, {where['threads']} of {where['cores']} cores, load {where['load']:.1f}; torch "
        f"{where['torch']}, transformers {where['transformers']}, keel {where['keel']}, {where['date']} UTC"
    )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def rounds_of(one_round: Callable[[int], Round], rounds: int) -> tuple[Round, ...]:
    """`rounds` rounds after one that warms up; the argument numbers them from that one, 0."""
    return tuple(one_round(number) for number in range(rounds + 1))[1:]


class Stopwatch:
    """Seconds between calls, what a CUDA device was given included."""

    def __init__(self) -> None:
        self._last = _settled()

    def lap(self) -> float:
        """Since the last call, or since it was made."""
        last, self._last = self._last, _settled()
        return self._last - last


def _settled() -> float:
    if _on_cuda():
        torch.cuda.synchronize()
    return time.perf_counter()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
