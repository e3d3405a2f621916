"""How long `keel --help` takes: the median of ten runs, each in a fresh process (`python -m benchmarks.startup`)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

NUM_RUNS = 10


def seconds_for_help() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "keel", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    seconds_for_help()  # the first run compiles bytecode
    times = [seconds_for_help() for _ in range(NUM_RUNS)]
    print(f"keel --help: median {statistics.median(times):.3f} s, from {min(times):.3f} to {max(times):.3f} s")


if __name__ == "__main__":
    main()
