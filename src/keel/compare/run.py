"""Run what is planned, each run a process of its own, so that its memory and time are its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from keel.compare.plan import Planned
from keel.errors import UserError
from keel.runs import files

COST = "cost.json"
_RECIPES = "recipes"


def run_all(runs: Sequence[Planned], out: Path, *, jobs: int, tell: Callable[[Planned, str], None]) -> list[Planned]:
    """Run each in `out/NAME`, `jobs` at a time; those that failed. `keel run` skips what is finished, and refuses what
    was made with other settings.
    """

    def one(run: Planned) -> bool:
        error = execute(run.recipe, out, run.name, threads=max(1, (os.cpu_count() or 1) // jobs))
        tell(run, error)
        return not error

    with ThreadPoolExecutor(jobs) as pool:
        finished = list(pool.map(one, runs))
    return [run for run, done in zip(runs, finished, strict=True) if not done]


def execute(recipe: dict[str, Any], out: Path, name: str, *, threads: int) -> str:
    """`keel run` on the recipe in `out/NAME`, its words in `out/NAME.log`; what it said last if it failed, else "".

    What it took goes beside the run: seconds of processor time, and the peak of its memory in GiB.
    """
    path = out / _RECIPES / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode())
    command = [sys.executable, "-m", "keel", "run", str(path), "--out", str(out / name)]
    log = out / f"{name}.log"
    with log.open("wb") as words:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with {process.returncode}"
    if (out / name / COST).exists():  # it had finished before
        return ""
    cost = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / 2**20, "threads": threads}
    files.write_json(out / name / COST, cost)
    return ""


def require_base(recipe: dict[str, Any] | None, out: Path) -> None:
    """Make what all runs share. Raises UserError if it fails."""
    if recipe is None:
        return
    error = execute(recipe, out, recipe["name"], threads=os.cpu_count() or 1)
    if error:
        raise UserError(f"keel compare: the shared stages failed: {error} (all of it: {out / recipe['name']}.log)")
