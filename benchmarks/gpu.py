"""PPO at a size that fills a GPU (`python -m benchmarks.gpu [--against trl]`); needs some 30 GiB of disk in `.bench/`.

A Llama of a billion random weights in bfloat16, with float32 copies of what trains; 128 prompts of 128 tokens, 256
tokens a response (no policy ends one here, so that the work is known exactly and nobody gains by padding), one epoch
of four minibatches, a separate reward model. Keel's layouts: a critic `network`, a critic `head` on the policy's
backbone, and `lora`, where policy, critic, reference and reward model are adapters on one frozen base. TRL has a
critic network, float32 weights and bfloat16 autocast. Memory is what torch allocated on the device at most.

The update is held to the bfloat16 matrix product that is measured on the device, sampling to the time in which its
bytes, the weights and every row's keys and values once a token, could be read at the bandwidth that is measured there.
`--device cpu --size tiny` tries the script out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import ppo
from benchmarks.comparison import UnequalWork, is_side, require_same_work
from benchmarks.measure import Side, Stopwatch, machine, machine_line, rates
from benchmarks.models import SIZES, Models, Size, as_text, make_models, random_texts
from benchmarks.peers import HOME, environment, run_keel, run_peer

GPU_SIZES = {
    "1b": Size(2048, 16, 32, 8192, 32768),
    "1b-128k": Size(2048, 16, 32, 8192, 131072),
    "tiny": SIZES["tiny"],
}
LAYOUTS = {
    "network": {"critic": "network", "tune": "full"},
    "head": {"critic": "head", "tune": "full"},
    "lora": {"critic": "network", "tune": "lora"},
}
BATCH, PROMPT_LENGTH, LENGTH = 128, 128, 256
_NUMBER = 2  # bytes of one in bfloat16


def specify(options: argparse.Namespace, size: Size, models: Models) -> dict[str, Any]:
    """What all layouts, and TRL, have in common."""
    texts = random_texts(BATCH * (options.rounds + 1), PROMPT_LENGTH, PROMPT_LENGTH, size.vocab, options.seed)
    return {
        "models": models.paths() | {"policy": models.paths()["endless"]},
        "vocab": size.vocab,
        "prompts": [as_text(text) for text in texts],
        "batch": BATCH,
        "epochs": 1,
        "minibatches": 4,
        "prompt_length": PROMPT_LENGTH,
        "max_length": LENGTH,
        "lr": 1e-6,
        "bf16": True,
        "device": options.device,
        "rounds": options.rounds,
        "threads": options.threads,
        "seed": options.seed,
        "on_base": None,
    }


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel in one layout, in a process of its own."""
    return ppo.rollouts(spec).measure(spec["rounds"])


def peaks(device: str, size: int) -> dict[str, float]:
    """Operations a second of a square bfloat16 product, and bytes a second read and written by a copy as large."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    target = torch.empty_like(left)
    return {
        "matrix": 2 * size**3 / _least(lambda: torch.mm(left, right, out=target)),
        "bandwidth": 2 * _NUMBER * size**2 / _least(lambda: target.copy_(left)),
    }


def _least(work: Callable[[], object], rounds: int = 20) -> float:
    """Seconds of one, over some rounds of five after one that warms up."""
    seconds, watch = [], Stopwatch()
    for _ in range(rounds + 1):
        for _ in range(5):
            work()
        seconds.append(watch.lap() / 5)
    return min(seconds[1:])


def sampled_bytes(size: Size, batch: int, prompt_length: int, length: int) -> int:
    """What sampling has to read in bfloat16: the weights once a token, and before each the keys and values so far."""
    weights = length * (size.body + size.head)
    positions = batch * sum(prompt_length + drawn for drawn in range(length))
    return _NUMBER * (weights + 2 * size.layers * size.hidden * positions)


def figures_of(side: Side, size: Size, spec: Mapping[str, Any], peak: Mapping[str, float]) -> dict[str, Any]:
    """One row of the table."""
    parts = {part: statistics.median(one.parts[part] for one in side.rounds) for part in side.rounds[0].parts}
    useful = ppo.flops(size, spec, side.rounds[0])["updating"]
    read = sampled_bytes(size, spec["batch"], spec["prompt_length"], spec["max_length"])
    return {
        **side.to_dict(),
        "seconds": parts,
        "rate": str(rates(side, "episodes")),
        "update": useful / parts["updating"] / peak["matrix"],
        "sampling": read / peak["bandwidth"] / parts["sampling"],
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| layout | episodes/s | sampling, s | scoring, s | updating, s | update's share of the bf16 matrix peak | "
        "sampling's share of the bandwidth bound | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        seconds = " | ".join(f"{row['seconds'][part]:.2f}" for part in ("sampling", "scoring", "updating"))
        shares = f"{row['update']:.0%} | {row['sampling']:.0%}"
        lines.append(f"| {name} | {row['rate']} | {seconds} | {shares} | {row['peak_memory'] / 2**30:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="PPO at a size that fills a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script out")
    parser.add_argument("--size", choices=sorted(GPU_SIZES), default="1b")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), action="append", help="all unless given; may be repeated")
    parser.add_argument("--against", choices=("trl",), help="beside the layout `network`, TRL's own")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; --device cpu --size tiny tries the script out.", file=sys.stderr)
        sys.exit(2)
    size, variables = GPU_SIZES[options.size], environment(options.threads, "default")
    models = make_models(size, HOME / "models" / options.size, mean_length=LENGTH / 2, max_length=LENGTH)
    spec = specify(options, size, models)
    peak = peaks(options.device, 8192 if options.device == "cuda" else 1024)
    sides, rows = {}, {}
    for name in options.layout or LAYOUTS:
        on_base = ppo.reward_on_base(models, spec["models"]["policy"]) if name == "lora" else None
        own = {**spec, **LAYOUTS[name], "on_base": on_base}
        sides[name] = run_keel("benchmarks.gpu", own, variables)
        rows[name] = figures_of(sides[name], size, own, peak)
    if options.against:
        own = {**spec, **LAYOUTS["network"]}
        sides["trl"] = run_peer(ppo.BENCHMARK.peers["trl"], own, variables)
        rows["trl"] = figures_of(sides["trl"], size, own, peak)
    where = machine(options.threads) | {"device": _device_name(options.device)}
    print(
        f"{where['device']}; {machine_line(where)}\nmeasured there: bf16 product {peak['matrix'] / 1e12:.1f} TFLOP/s, "
        f"{peak['bandwidth'] / 1e9:.0f} GB/s\n{options.size}: hidden {size.hidden}, {size.layers} layers, {size.heads} "
        f"heads, intermediate {size.intermediate}, vocabulary {size.vocab}; {BATCH} x ({PROMPT_LENGTH} + {LENGTH}) "
        f"tokens, 1 epoch, 4 minibatches, bfloat16 with float32 copies of what trains\n\n{table(rows)}"
    )
    if options.json:
        figures = {"machine": where, "peaks": peak, "size": options.size, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if "trl" in sides:
        _require_same_work(sides)


def _require_same_work(sides: Mapping[str, Side]) -> None:
    for name in sides.keys() - {"trl"}:
        try:
            require_same_work(ppo.BENCHMARK.work, sides[name], sides["trl"], loss_tolerance=None)
        except UnequalWork as difference:
            sys.exit(f"These rows do not compare: {name} and trl did not do the same work ({difference}).")


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU (tried out: no figure of a GPU)"


if __name__ == "__main__" and not is_side(measure):
    main()
