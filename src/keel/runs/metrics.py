"""Metrics and samples on disk: lines of JSON, numbered by iteration.

Keys that start with `time/` are times: they differ from run to run and are left out of exact comparisons.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keel.runs import files


class JsonLines:
    """A file of lines {"iteration": n, …} in order of iteration. One writer at a time; NaN, ±inf become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate_after(self, iteration: int) -> None:
        """Drop, in one step, the lines of later iterations and a last line that a kill has torn."""
        if not self.path.exists():
            return
        kept = [line for line, row in _whole_lines(self.path) if row.get("iteration", math.inf) <= iteration]
        files.write_bytes(self.path, b"".join(kept))

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        if self.path.exists():
            files.sync(self.path)

    def _append(self, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows in one write, so that a kill tears the last line at worst."""
        if iteration < 0:
            raise ValueError(f"iteration {iteration} is negative")
        if any("iteration" in row for row in rows):
            raise ValueError("a row has a field named 'iteration', which is the name of the line's own")
        text = "".join(files.to_json({"iteration": iteration, **row}) + "\n" for row in rows)
        rest = memoryview(text.encode())
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)


class MetricsLog(JsonLines):
    """`metrics.jsonl`: one line an iteration."""

    def append(self, iteration: int, values: Mapping[str, float]) -> None:
        self._append(iteration, [{name: float(value) for name, value in values.items()}])


class SamplesLog(JsonLines):
    """`samples.jsonl`: any number of lines an iteration, each one sample."""

    def append(self, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._append(iteration, rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics or samples file, also while it is being written; empty if there is no file."""
    return [row for _, row in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn by a power cut: the space was there before the bytes
            continue
        if isinstance(row, dict):
            yield line, row
