"""PPO of the demo on a `keel serve` process, the next batch sampled while this one trains, or not.

    keel run src/keel/demo/demo.yaml --out runs/base
    python -m benchmarks.overlap --base runs/base

The models before PPO are those of that run. Trainer and server get a core and a thread each; the arms take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, machine, machine_line
from benchmarks.peers import environment

DEMO = ROOT / "src" / "keel" / "demo" / "demo.yaml"
ARMS = ("in process", "off", "on")
CORES = ("0", "1")  # the trainer's and the server's
VARIABLES = environment(1, "default") | {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_WAIT_POLICY": "PASSIVE"}


def command(base: Path, seed: int, iterations: int, out: Path, servers: dict[str, Any] | None) -> list[str]:
    """The demo's PPO and evaluation on the models that are there."""
    settings: dict[str, Any] = {
        "name": "overlap",
        "seed": seed,
        "model": {"base": str(base / "sft" / "model"), "tune": "full"},
        "sft": None,
        "collect": None,
        "reward": None,
        "ppo.reward": [{"model": str(base / "reward" / "model")}],
        "ppo.iterations": iterations,
        "ppo.servers": servers,
        "evaluate.frontier_samples": 16,  # which nobody looks at here
        "evaluate.frontier_prompts": 4,
    }
    line = ["taskset", "-c", CORES[0], sys.executable, "-m", "keel", "run", str(DEMO), "--out", str(out)]
    for key, value in settings.items():
        line += ["--set", f"{key}={json.dumps(value)}"]  # JSON is YAML
    return line


@contextmanager
def serving(base: Path) -> Iterator[str]:
    """The address of a server of the policy's start."""
    line = ["taskset", "-c", CORES[1], sys.executable, "-m", "keel", "serve", str(base / "sft" / "model")]
    line += ["--port", "0", "--allow-updates", "--device", "cpu"]
    process = subprocess.Popen(line, env=VARIABLES, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = next(one for one in process.stdout if one.startswith("Ready at "))
        yield ready.split()[2].removesuffix("/v1.")
    finally:
        process.terminate()
        process.wait()


def measure(base: Path, arm: str, seed: int, iterations: int) -> dict[str, float]:
    """One run: what it ends with, and its iterations."""

    def run(servers: dict[str, Any] | None) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            line = command(base, seed, iterations, Path(folder) / "run", servers)
            done = subprocess.run(line, env=VARIABLES, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
            return figures(Path(folder) / "run")

    if arm == "in process":
        return run(None)
    with serving(base) as url:
        return run({"urls": [url], "kind": "keel", "overlap": arm == "on", "max_in_flight": 128})


def figures(out: Path) -> dict[str, float]:
    """By the names of the columns; of the iterations medians without the first."""
    rows = [json.loads(row) for row in (out / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    done = json.loads((out / "evaluate" / "done.json").read_text(encoding="utf-8"))
    later = [row for row in rows if row["iteration"] > 1]
    rollouts, updates = ([row[f"time/{part}_seconds"] for row in later] for part in ("rollout", "update"))
    return {
        "win rate": done["utility"]["win_rate"],
        "score": done["policy"]["score"],
        "utility": done["policy"]["utility"],
        "KL": done["kl"],
        "rollout, s": statistics.median(rollouts),
        "update, s": statistics.median(updates),
        "iteration, s": statistics.median(map(sum, zip(rollouts, updates, strict=True))),
        "staleness": statistics.median(row.get("ppo/policy/staleness", 0.0) for row in later),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description="Overlap off against on.")
    parser.add_argument("--base", type=Path, required=True, help="a finished run of the demo's recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=["off", "on"])
    options = parser.parse_args()
    base = options.base.resolve()
    print(f"{machine_line(machine(1))}\n")
    for number, seed in enumerate(options.seeds):
        turn = number % len(options.arms)
        for arm in [*options.arms[turn:], *options.arms[:turn]]:
            found = measure(base, arm, seed, options.iterations)
            if seed == options.seeds[0] and arm == options.arms[0]:
                print(f"| seed | overlap | {' | '.join(found)} |\n|{'---|' * (len(found) + 2)}")
            cells = " | ".join(f"{value:.3g}" for value in found.values())
            print(f"| {seed} | {arm} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
