"""Runs `keel demo` from nothing in a temporary directory and prints seconds a stage and peak memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "keel", "demo", "--out", str(out)], check=True)
        seconds = time.perf_counter() - started
        for done in sorted(out.glob("*/*/done.json")):
            if not done.parent.is_symlink():
                print(f"{done.parent.relative_to(out)!s:18} {json.loads(done.read_text())['seconds']:7.1f} s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{'in all':18} {seconds:7.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
