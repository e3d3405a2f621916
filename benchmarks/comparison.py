"""One benchmark: both sides one after the other, the check that they did the same work, the table."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Round, Side, machine, machine_line, matrix_peaks, peak_memory, rates, shares
from benchmarks.models import SIZES, Size, make_models
from benchmarks.peers import HOME, Peer, environment, run_keel, run_peer

MEAN_LENGTH, MAX_LENGTH, PROMPT_LENGTH = 30, 64, 32
SAMPLED_TOLERANCE = 0.15  # of a count that depends on what was sampled, on average over the rounds


class UnequalWork(Exception):
    """The sides did not do the same work, so their ratio means nothing."""


@dataclass(frozen=True)
class Work:
    """What a benchmark measures and what must be equal on both sides."""

    name: str
    unit: str  # the count whose rate is compared
    exact: tuple[str, ...]  # counts that are the same in every round
    sampled: tuple[str, ...] = ()  # counts whose means agree to SAMPLED_TOLERANCE; the last one measures the work


@dataclass(frozen=True)
class Benchmark:
    """A row: its work, its peers, its specification, Keel's side, and the operations that are useful."""

    module: str
    work: Work
    peers: Mapping[str, Peer]
    specify: Callable[[argparse.Namespace, Size], dict[str, Any]]
    measure: Callable[[Mapping[str, Any]], Side]
    flops: Callable[[Size, Mapping[str, Any], Round], dict[str, float]]  # of each part, or of "all"
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    peer_changes: Mapping[str, Any] = field(default_factory=dict)  # of the specification: the peer's own layout


def require_same_work(work: Work, ours: Side, theirs: Side, *, loss_tolerance: float | None) -> None:
    """Raises UnequalWork with the first count in which the two sides differ, or if the first step's losses do.

    `loss_tolerance` is relative; None where the sides draw their own samples, whose losses say nothing.
    """
    if len(ours.rounds) != len(theirs.rounds):
        raise UnequalWork(f"{ours.name} did {len(ours.rounds)} rounds, {theirs.name} {len(theirs.rounds)}")
    for count in work.exact:
        pairs = [
            (one.counts[count], other.counts[count]) for one, other in zip(ours.rounds, theirs.rounds, strict=True)
        ]
        for number, (one, other) in enumerate(pairs, 1):
            if one != other:
                raise UnequalWork(f"round {number}: {count}: {ours.name} {one:g}, {theirs.name} {other:g}")
    for count in work.sampled:
        one, other = ours.mean(count), theirs.mean(count)
        if abs(one - other) > SAMPLED_TOLERANCE * max(one, other):
            raise UnequalWork(
                f"{count} a round: {ours.name} {one:.1f}, {theirs.name} {other:.1f}, which is more than "
                f"{SAMPLED_TOLERANCE:.0%} apart"
            )
    if loss_tolerance is not None:
        first, second = ours.first_loss, theirs.first_loss
        if first is None or second is None or not math.isclose(first, second, rel_tol=loss_tolerance):
            raise UnequalWork(f"the first step's loss: {ours.name} {first}, {theirs.name} {second}")


def main(benchmark: Benchmark) -> None:
    """The command line of a benchmark: measure Keel, and the peer it is asked to be held against."""
    if is_side(benchmark.measure):
        return
    options = _parser(benchmark).parse_args()
    size = SIZES[options.size]
    models = make_models(size, HOME / "models" / options.size, mean_length=MEAN_LENGTH, max_length=MAX_LENGTH)
    common = {"models": models.paths(), "rounds": options.rounds, "threads": options.threads, "seed": options.seed}
    spec = {
        "vocab": size.vocab,
        "lr": 1e-6,
        "bf16": options.bf16,
        "onednn": options.onednn,
        **common,
        **benchmark.specify(options, size),
    }
    variables = environment(options.threads, options.allocator)
    figures: dict[str, Any] = {
        "benchmark": benchmark.work.name,
        "unit": benchmark.work.unit,
        "size": options.size,
        "allocator": options.allocator,
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "machine": machine(options.threads),
    }
    before = matrix_peaks(variables)
    sides = [run_keel(benchmark.module, spec, variables)]
    if options.against:
        sides.append(run_peer(benchmark.peers[options.against], {**spec, **benchmark.peer_changes}, variables))
    after = matrix_peaks(variables)  # what else runs takes from one or the other
    figures["peaks"] = {product: max(peak, after[product]) for product, peak in before.items()}
    figures["sides"] = [_figures(benchmark, side, size, spec, figures["peaks"]["fp32"]) for side in sides]
    if len(sides) == 2:
        try:
            require_same_work(benchmark.work, *sides, loss_tolerance=spec.get("loss_tolerance"))
        except UnequalWork as difference:
            print(_table(figures))
            sys.exit(f"No ratio: the two sides did not do the same work ({difference}).")
        figures |= _ratios(benchmark.work, *sides)
    print(_table(figures))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8")


def _ratios(work: Work, ours: Side, theirs: Side) -> dict[str, float]:
    """Of the medians, ours over theirs; where one side drew longer responses than the other, for each token too."""

    def ratio(unit: str) -> float:
        return rates(ours, unit).median / rates(theirs, unit).median

    found = {"ratio": ratio(work.unit), "memory_ratio": ours.peak_memory / theirs.peak_memory}
    if work.sampled and work.unit not in work.sampled:
        found["ratio_a_token"] = ratio(work.sampled[-1])
    return found


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {benchmark.module}", description=f"{benchmark.work.name}.")
    parser.add_argument("--against", choices=sorted(benchmark.peers), help="the peer; without it only Keel is measured")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=("tuned", "default"), default="tuned", help="glibc's, on both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="Keel computes in bfloat16; the peer stays in float32")
    parser.add_argument("--onednn", action="store_true", help="the peer too multiplies float32 by oneDNN, as Keel does")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    benchmark.add_options(parser)
    return parser


def is_side(measure: Callable[[Mapping[str, Any]], Side]) -> bool:
    """Whether this process is one that `run_keel` started: then it has measured and left its answer."""
    if len(sys.argv) != 4 or sys.argv[1] != "--measure":
        return False
    import torch

    spec = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    side = measure(spec)
    Path(sys.argv[3]).write_text(json.dumps({**side.to_dict(), "peak_memory": peak_memory()}), encoding="utf-8")
    return True


def _figures(benchmark: Benchmark, side: Side, size: Size, spec: Mapping[str, Any], peak: float) -> dict[str, Any]:
    rate = rates(side, benchmark.work.unit)
    if side.name != "keel":
        spec = {**spec, **benchmark.peer_changes}
    parts = {part: statistics.median(one.parts[part] for one in side.rounds) for part in side.rounds[0].parts}
    return {
        **side.to_dict(),
        "rate": {"median": rate.median, "least": rate.least, "most": rate.most, "shown": str(rate)},
        "share": shares(side, lambda one: benchmark.flops(size, spec, one), peak),
        "parts": parts,
        "counts": {count: side.mean(count) for count in side.rounds[0].counts},
    }


def _table(figures: Mapping[str, Any]) -> str:
    """All figures of one run, a row each, a column a side."""
    sides, peaks = figures["sides"], figures["peaks"]
    chosen = ", ".join(f"{key} {value}" for key, value in figures["options"].items() if value not in (None, False))
    rows = [["", *(side["name"] for side in sides)]]
    rows.append([f"{figures['unit']} a second", *(side["rate"]["shown"] for side in sides)])
    rows.append(["peak memory, MiB", *(f"{side['peak_memory'] / 2**20:,.0f}" for side in sides)])
    for part in sides[0]["share"]:
        rows.append([f"share of the matrix peak, {part}", *(f"{side['share'].get(part, 0):.0%}" for side in sides)])
    for part in sides[0]["parts"]:
        rows.append([f"seconds {part}", *(f"{side['parts'].get(part, 0):.2f}" for side in sides)])
    for count in sides[0]["counts"]:
        rows.append([f"{count} a round", *(f"{side['counts'].get(count, 0):,.1f}" for side in sides)])
    rows.append(["first loss", *(_loss(side["first_loss"]) for side in sides)])
    width = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{figures['benchmark']}: {chosen}",
        machine_line(figures["machine"]),
        "matrix peak, GFLOP/s: "
        + ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
        + " (shares are of fp32, torch's own product)",
        "",
        *("  ".join(cell.ljust(wide) for cell, wide in zip(row, width, strict=True)).rstrip() for row in rows),
    ]
    if "ratio" in figures:
        a_token = f" ({figures['ratio_a_token']:.2f} x for each token)" if "ratio_a_token" in figures else ""
        lines += ["", f"rate {figures['ratio']:.2f} x{a_token}, memory {figures['memory_ratio']:.2f} x"]
    return "\n".join(lines)


def _loss(value: float | None) -> str:
    return "its own samples" if value is None else f"{value:.6f}"
