"""The figures of several runs as a Markdown table (`python -m benchmarks.table benchmarks/results/*.json`)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ELSEWHERE = (
    "against",
    "size",
    "rounds",
    "threads",
    "seed",
    "allocator",
)  # options that stand in the row or heading, or say nothing


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A table for each machine and day, a row a run; ratios are Keel's median over the peer's."""
    tables: dict[str, list[str]] = {}
    for run in runs:
        tables.setdefault(_heading(run), []).append(_row(run))
    titles = "| work (Keel's commit) | Keel | peer | rate | memory, MiB | share of the fp32 peak |"
    head = titles + "\n|---|---|---|---|---|---|"
    return "\n\n".join("\n".join((heading, "", head, *rows)) for heading, rows in tables.items())


def _heading(run: Mapping[str, Any]) -> str:
    where = run["machine"]
    return (
        f"{where['date'][:10]}, {where['cpu']}, {where['threads']} of {where['cores']} cores; torch {where['torch']}, "
        f"transformers {where['transformers']}."
    )


def _row(run: Mapping[str, Any]) -> str:
    ours, *others = run["sides"]
    options = {key: value for key, value in run["options"].items() if value and key not in _ELSEWHERE}
    work = ", ".join([run["benchmark"], run["size"], *(_option(key, value) for key, value in options.items())])
    memory = " / ".join(f"{side['peak_memory'] / 2**20:,.0f}" for side in run["sides"])
    share = " / ".join(f"{side['share']['all']:.0%}" for side in run["sides"])
    share += f" of {run['peaks']['fp32'] / 1e9:.0f} GFLOP/s (oneDNN: {run['peaks'].get('fp32 onednn', 0) / 1e9:.0f})"
    cells = [f"{work} ({run['machine']['keel'][:7]})", f"{ours['rate']['shown']} {run['unit']}/s"]
    if others:
        a_token = f" ({run['ratio_a_token']:.2f} × a token)" if "ratio_a_token" in run else ""
        cells += [f"{others[0]['name']}: {others[0]['rate']['shown']}", f"**{run['ratio']:.2f} ×**{a_token}"]
        cells += [f"{memory} ({run['memory_ratio']:.2f} ×)", share]
    else:
        cells += ["", "", memory, share]
    return f"| {' | '.join(cells)} |"


def _option(key: str, value: Any) -> str:
    return key if value is True else f"{key} {value}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="what a benchmark wrote with --json")
    paths = parser.parse_args().results
    print(markdown([json.loads(path.read_text(encoding="utf-8")) for path in paths]))


if __name__ == "__main__":
    main()
