"""PPO of the demo on a `keel serve` process, the next batch sampled while this one trains or not.

    python -m benchmarks.overlap --base DIR     # runs/…, a finished `keel run src/keel/demo/demo.yaml`

The models before PPO are those of the demo; trainer and server get a core and a thread each, and the arms take turns.
`--delay` puts that many seconds before every request reaches the server: as if it were slower, on no core of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measure import ROOT, machine, machine_line
from benchmarks.peers import environment

DEMO = ROOT / "src" / "keel" / "demo" / "demo.yaml"
ARMS = ("in process, 2 threads", "in process", "off", "on")
CORES = ("0", "1")  # the trainer's and the server's
COLUMNS = ("win rate", "score", "utility", "KL", "rollout, s", "update, s", "iteration, s", "weights off")


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
        "evaluate.frontier_samples": 16,
        "evaluate.frontier_prompts": 4,
    }
    if servers is not None:
        settings["ppo.servers"] = servers
    line = [sys.executable, "-m", "keel", "run", str(DEMO), "--out", str(out)]
    for key, value in settings.items():
        line += ["--set", f"{key}={json.dumps(value)}"]  # JSON is YAML
    return line


@contextmanager
def serving(base: Path, delay: float) -> Iterator[str]:
    """A server of the policy's start on its core, and in front of it the delay; its address."""
    line = ["taskset", "-c", CORES[1], sys.executable, "-m", "keel", "serve", str(base / "sft" / "model")]
    line += ["--port", "0", "--allow-updates", "--device", "cpu"]
    process = subprocess.Popen(line, env=variables(1), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = next(one for one in process.stdout if one.startswith("Ready at "))
        url = ready.split()[2].removesuffix("/v1.")
        yield delayed(url, delay) if delay else url
    finally:
        process.terminate()
        process.wait()


def delayed(url: str, delay: float) -> str:
    """The address of a relay that holds back whatever a client sends, for as long as the process lives."""
    place = urlsplit(url)
    addresses: list[str] = []
    ready = threading.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
        while content := await reader.read(1 << 20):
            await asyncio.sleep(seconds)
            writer.write(content)
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(place.hostname, place.port)
        await asyncio.gather(relay(reader, forth, delay), relay(back, writer, 0.0), return_exceptions=True)

    async def run() -> None:
        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        addresses.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    ready.wait()
    return addresses[0]


def variables(threads: int) -> dict[str, str]:
    return environment(threads, "default") | {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def measure(base: Path, arm: str, seed: int, iterations: int, delay: float) -> dict[str, float]:
    """One run: what it ends with, and medians of its iterations behind the first."""
    both = arm.endswith("2 threads")
    pinned = ["taskset", "-c", ",".join(CORES) if both else CORES[0]]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"

        def run(servers: dict[str, Any] | None) -> None:
            line = [*pinned, *command(base, seed, iterations, out, servers)]
            done = subprocess.run(line, env=variables(2 if both else 1), capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")

        if arm in ("on", "off"):
            with serving(base, delay) as url:
                run({"urls": [url], "kind": "keel", "overlap": arm == "on", "max_in_flight": 128})
        else:
            run(None)
        return figures(out)


def figures(out: Path) -> dict[str, float]:
    """By the names of the columns."""
    rows = [json.loads(row) for row in (out / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    done = json.loads((out / "evaluate" / "done.json").read_text(encoding="utf-8"))
    later = [row for row in rows if row["iteration"] > 1]

    def median(*names: str) -> float:
        return float(statistics.median(row[name] for row in later for name in names if name in row))

    rollout, update = (median(f"time/{part}_seconds") for part in ("rollout", "update"))
    whole = statistics.median(row["time/rollout_seconds"] + row["time/update_seconds"] for row in later)
    gaps = ("ppo/policy/staleness", "ppo/policy/sampler_gap")
    served = any(name in later[-1] for name in gaps)
    return {
        "win rate": done["utility"]["win_rate"],
        "score": done["policy"]["score"],
        "utility": done["policy"]["utility"],
        "KL": done["kl"],
        "rollout, s": rollout,
        "update, s": update,
        "iteration, s": whole,
        "weights off": median(*gaps) if served else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description="Overlap off against on.")
    parser.add_argument("--base", type=Path, required=True, help="a finished run of the demo's recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a request reaches the server")
    options = parser.parse_args()
    base = options.base.resolve()
    print(f"{machine_line(machine(1))}\n")
    print(f"| seed | overlap | {' | '.join(COLUMNS)} | load |\n|{'---|' * (len(COLUMNS) + 3)}", flush=True)
    for number, seed in enumerate(options.seeds):
        turn = number % len(options.arms)
        for arm in [*options.arms[turn:], *options.arms[:turn]]:
            started = time.monotonic()
            found = measure(base, arm, seed, options.iterations, options.delay)
            cells: Sequence[str] = [f"{found[column]:.3g}" for column in COLUMNS]
            print(f"| {seed} | {arm} | {' | '.join(cells)} | {os.getloadavg()[0]:.1f} |", flush=True)
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
