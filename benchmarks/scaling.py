"""PPO on several processes: strong and weak scaling, and two hosts over a slow link (`python -m benchmarks.scaling`).

The models of `benchmarks.ppo` (critic on the backbone, a separate reward model), one thread a process. Strong: 64
responses an iteration, whatever the number of processes; weak: 32 for each. `--hosts` puts one process each into two
network namespaces (root and iproute2 are needed), joined by a link that `--link` slows down.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.comparison import MAX_LENGTH, MEAN_LENGTH, PROMPT_LENGTH
from benchmarks.measure import machine, machine_line
from benchmarks.models import SIZES, Models, as_text, make_models, random_texts
from benchmarks.peers import HOME, environment
from benchmarks.ppo import EPOCHS, LEARNING_RATE, MINIBATCHES

ITERATIONS = 4  # the first warms up
BATCH, BATCH_EACH = 64, 32
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def recipe(models: Models, prompts: Path, batch: int) -> dict[str, Any]:
    """PPO alone, with as little besides as may be."""
    return {
        "name": "scaling",
        "device": "cpu",
        "model": {"base": str(models.policy)},
        "ppo": {
            "prompts": {"path": str(prompts), "validation": 0.02},
            "policy": str(models.policy),
            "reference": str(models.policy),
            "reward": [{"model": str(models.reward)}],
            "critic": "head",
            "iterations": ITERATIONS,
            "rollout_batch": batch,
            "sampling": {"max_new_tokens": MAX_LENGTH, "batch": batch},
            "update": {"lr": LEARNING_RATE, "epochs": EPOCHS, "minibatches": MINIBATCHES},
            "evaluate": {"count": 2, "every": 100},
            "checkpoint_every": 100,
            "max_truncated": 1.0,
        },
    }


def seconds(out: Path) -> dict[str, float]:
    """Medians of the iterations behind the first, and the share of the time in which a process waited for another."""
    rows = [json.loads(line) for line in (out / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    done = json.loads((out / "ppo" / "done.json").read_text(encoding="utf-8"))
    parts = {
        part: statistics.median(row[f"time/{part}_seconds"] for row in rows if row["iteration"] > 1)
        for part in ("rollout", "update")
    }
    return parts | {"idle": done.get("time/waiting", 0.0)}


def measure(
    models: Models, vocab: int, batch: int, command: Sequence[Sequence[str]], variables: Any, shard: int | None
) -> dict[str, float]:
    """One run by these commands, which all get the recipe and the folder."""
    with tempfile.TemporaryDirectory() as folder:
        prompts, file = Path(folder) / "prompts.jsonl", Path(folder) / "scaling.json"
        texts = random_texts(batch * 8, PROMPT_LENGTH, PROMPT_LENGTH, vocab, 0)
        prompts.write_text("".join(json.dumps({"prompt": as_text(text)}) + "\n" for text in texts), encoding="utf-8")
        tree = recipe(models, prompts, batch) | {"parallel": {"shard": shard}}
        file.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
        out = Path(folder) / "run"
        started = [subprocess.Popen([*one, str(file), "--out", str(out)], env=variables) for one in command]
        codes = [one.wait() for one in started]
        if any(codes):
            sys.exit(f"{' '.join(command[0])} failed; its message is above")
        return seconds(out)


@contextmanager
def two_hosts(shape: str) -> Iterator[list[list[str]]]:
    """How to run a command on each of two hosts, which are namespaces of this one's network."""
    names, links = ("keel0", "keel1"), ("keelv0", "keelv1")
    ip(f"link add {links[0]} type veth peer name {links[1]}")
    try:
        for name, link, address in zip(names, links, ADDRESSES, strict=True):
            ip(f"netns add {name}")
            ip(f"link set {link} netns {name}")
            ip(f"-n {name} addr add {address}/24 dev {link}")
            ip(f"-n {name} link set {link} up")
            ip(f"-n {name} link set lo up")
            if shape:
                ip(f"netns exec {name} tc qdisc add dev {link} root {shape}")
        yield [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={link}"]
            for name, link in zip(names, links, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def commands(processes: int, hosts: Sequence[Sequence[str]] | None) -> list[list[str]]:
    """What starts a run."""
    if hosts is None:
        return [[sys.executable, "-m", "keel", "run", "--processes", str(processes)]]
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    run += ["--master-addr", ADDRESSES[0], "--master-port", "29517"]
    return [[*host, *run, "--node-rank", str(rank), "-m", "keel", "run"] for rank, host in enumerate(hosts)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="PPO on several processes.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--weak", action="store_true", help=f"{BATCH_EACH} responses for each process")
    parser.add_argument("--hosts", action="store_true", help="two processes on two hosts")
    parser.add_argument(
        "--link", default="", help="what slows the hosts down, for tc, say: tbf rate 1gbit burst 256kb latency 50ms"
    )
    parser.add_argument("--shard", type=int, help="processes that hold a model between them")
    options = parser.parse_args()
    size = SIZES[options.size]
    models = make_models(size, HOME / "models" / options.size, mean_length=MEAN_LENGTH, max_length=MAX_LENGTH)
    variables = environment(1, "default") | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    print(f"{machine_line(machine(1))}\n")
    print("| processes | rollout, s | update, s | responses a second | waiting |\n|---|---|---|---|---|")
    if options.hosts:
        with two_hosts(options.link) as hosts:
            found = measure(models, size.vocab, BATCH, commands(2, hosts), variables, options.shard)
            row(f"2 hosts{', ' * bool(options.link)}{options.link}", BATCH, found)
        return
    for count in options.processes:
        batch = BATCH_EACH * count if options.weak else BATCH
        row(str(count), batch, measure(models, size.vocab, batch, commands(count, None), variables, options.shard))


def row(what: str, batch: int, found: dict[str, float]) -> None:
    """A row of the table."""
    whole = found["rollout"] + found["update"]
    print(
        f"| {what} | {found['rollout']:.2f} | {found['update']:.2f} | {batch / whole:.1f} | {found['idle']:.1%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
