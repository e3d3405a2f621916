"""`keel data audit` on synthetic pairs with planted faults (`python -m benchmarks.audit`): are all found, how long
does it take, and how much memory? The audit runs in a process of its own; `--pairs 1000000` is the full measure."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

NUM_ANNOTATORS = 200
_WORDS = [
    f"{a}{b}{c}"
    for a in ("ba", "ko", "li", "mu", "re", "sta")
    for b in ("na", "ti", "vo", "se")
    for c in ("", "r", "n", "x")
]
_BLOCK = 1000  # rows, in each of which every fault is planted as often


def text(rng: random.Random, words: int, number: int) -> str:
    """A sentence with a word of its own, so that no two are the same by chance."""
    return f"{' '.join(rng.choices(_WORDS, k=words))} n{number}."


def block(rng: random.Random, number: int) -> Iterator[tuple[str, Row]]:
    """_BLOCK rows with the fault that each was planted for ("" for none). Prompts are of one block alone."""
    at = number * _BLOCK
    made: list[tuple[str, Row]] = []

    def pair(prompt: str | None = None, chosen: str | None = None, rejected: str | None = None) -> Row:
        one = at + len(made)
        return {
            "prompt": prompt or text(rng, rng.randint(20, 40), one),
            "chosen": chosen or text(rng, rng.randint(20, 90), one),
            "rejected": rejected or text(rng, rng.randint(20, 80), one),
            "annotator": f"a{rng.randrange(NUM_ANNOTATORS)}",
        }

    def add(fault: str, row: Row) -> Row:
        made.append((fault, row))
        return row

    for _ in range(10):
        first = add("", pair())
        add("duplicate", dict(first))
        add("duplicate but for space or case", first | {"chosen": first["chosen"].upper().replace(" ", "  ")})
        turned = {"chosen": first["rejected"], "rejected": first["chosen"], "annotator": "a-contrary-one"}
        add("turned", first | turned)
        same = text(rng, 30, at + len(made))
        add("identical pair", pair(chosen=same, rejected=same))
        add("empty reply", pair() | {"rejected": " "})
        add("role marker in a reply", pair(chosen=f"Of course. Human: and {text(rng, 20, at + len(made))}"))
        circle = [add("on a cycle", pair())]
        circle.append(
            add("on a cycle", circle[0] | {"chosen": circle[0]["rejected"], "rejected": text(rng, 30, at + len(made))})
        )
        add("on a cycle", circle[1] | {"chosen": circle[1]["rejected"], "rejected": circle[0]["chosen"]})
    while len(made) < _BLOCK:
        add("", pair())
    yield from made


def write(train: Path, held_out: Path, pairs: int, seed: int) -> Counter[str]:
    """Two files, the second a twentieth of the first; returns how often each fault was planted."""
    rng = random.Random(seed)
    planted: Counter[str] = Counter()
    with train.open("w", encoding="utf-8") as file, held_out.open("w", encoding="utf-8") as other:
        for number in range(pairs // _BLOCK):
            for at, (fault, row) in enumerate(block(rng, number)):
                planted[fault] += 1
                file.write(json.dumps(row) + "\n")
                if at >= _BLOCK - _BLOCK // 20:
                    other.write(json.dumps(_held_out(rng, at, row, planted)) + "\n")
    return planted


def _held_out(rng: random.Random, at: int, row: Row, planted: Counter[str]) -> Row:
    """Of ten held-out rows one has a training prompt, one such a prompt with two words changed, and eight their own."""
    unlike = {"chosen": text(rng, 40, -at), "rejected": text(rng, 30, -at)}
    if at % 10 == 0:
        planted["prompt is held out too"] += 1
        return row | unlike
    words = row["prompt"].split()
    if at % 10 == 1:
        planted["nearly held out"] += 1
        words[len(words) // 2] = "changed"
        return row | unlike | {"prompt": " ".join(words)}
    rng.shuffle(words)
    return row | unlike | {"prompt": " ".join(words)}


def checked(found: dict[str, Any], planted: Counter[str]) -> list[str]:
    """What was not found as planted; near-duplicates are compared apart, for SimHash may miss some."""
    counts = {name: finding["count"] for name, finding in found["findings"].items()}
    expected = {
        name: planted[name]
        for name in ("duplicate", "duplicate but for space or case", "identical pair", "empty reply",
                     "role marker in a reply", "prompt is held out too")
    }  # fmt: skip
    expected["contradiction between annotators"] = 2 * planted["turned"]
    expected["on a cycle"] = planted["on a cycle"] + 2 * planted["turned"]
    expected["to drop for an order"] = planted["on a cycle"] // 3 + planted["turned"]
    return [f"{name}: {counts[name]:,}, planted {times:,}" for name, times in expected.items() if counts[name] != times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="a multiple of 1,000")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train, held_out, out = (Path(folder, name) for name in ("train.jsonl", "test.jsonl", "found.json"))
        planted = write(train, held_out, asked.pairs, asked.seed)
        size = (train.stat().st_size + held_out.stat().st_size) / 2**20
        start = time.perf_counter()
        command = [sys.executable, "-m", "keel", "data", "audit", str(train), "--held-out", str(held_out), "--json"]
        with out.open("w", encoding="utf-8") as file:
            subprocess.run(command, stdout=file, check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(out.read_text(encoding="utf-8"))
    near = found["splits"]["near_duplicates"]["held_out_prompts"]
    print(f"{asked.pairs:,} pairs and {asked.pairs // 20:,} held out, {size:,.0f} MiB, {os.cpu_count()} cores")
    busy = used.ru_utime + used.ru_stime
    print(f"{seconds:.0f} s, {busy:.0f} s of processor time, peak {used.ru_maxrss / 2**20:.2f} GiB")
    print(f"near-duplicates: {near:,} held-out prompts, planted {planted['nearly held out']:,}")
    wrong = checked(found, planted)
    print("\n".join(wrong) or "every other planted fault was counted exactly")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
