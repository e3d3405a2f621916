"""Records to JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from keel.runs.files import move, sync, to_json
from keel.schema import Record


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line, in one step: the file is whole, or is not there. Reads back as the same records."""
    write_rows(path, (record.to_row() for record in records))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for rows that are JSON-ready already; they are written as they come, NaN and infinities as null."""
    with in_one_step(path) as file:
        for row in rows:
            file.write(line_of(row))


@contextmanager
def in_one_step(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that bears its name once it is written to the end, and is on the disk; an error leaves nothing behind."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.unlink(missing_ok=True)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        sync(beside)
        move(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def line_of(row: Mapping[str, Any]) -> bytes:
    """The row's line, with its end."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a NaN or infinity in a column of the user's, which no JSON holds
        text = to_json(row)
    return text.encode("utf-8") + b"\n"
