"""Bytes to rows: JSON lines (gzip too), data sets on the hub, Python functions. A bad row never stops the reading."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.config.data import DataConfig
from keel.data.reasons import Reason, Unusable
from keel.errors import UserError
from keel.references import resolve

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_ENDINGS = (".jsonl", ".json", ".gz")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: either its value, or the problem that keeps it from having one.

    `number` counts from 0; in a file it counts lines, blank ones included, so that line `number + 1` is the row's.
    """

    file: str
    number: int
    value: dict[str, Any] | None
    problem: Reason | None = None
    detail: str = ""


def read_rows(config: DataConfig) -> Iterator[Row]:
    """The rows of a source, in order, read as they are asked for.

    Raises UserError if the source itself cannot be read: no such file, a directory, damaged gzip, no such data set
    on the hub, a function that is not found, fails, or returns nothing to iterate over.
    """
    if config.function is not None:
        return _rows_of_function(config.function)
    path = Path(config.name).expanduser()
    if path.exists():
        if config.split != "train":
            raise UserError(f"{config.name} is on disk, where split: {config.split} has no effect; leave it out.")
        return _rows_of_file(config.name, path)
    if _HUB_NAME.fullmatch(config.name) and not config.name.endswith(_FILE_ENDINGS):
        return _rows_of_hub(config.name, config.split)
    raise UserError(f"There is no file {config.name} (looked for it from {Path.cwd()}).")


def _rows_of_file(name: str, path: Path) -> Iterator[Row]:
    if path.is_dir():
        raise UserError(f"{name} is a directory; name a .jsonl file in it.")
    try:
        with path.open("rb") as file:
            compressed = file.peek(2)[:2] == _GZIP_MAGIC
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=file) if compressed else file
            for number, line in enumerate(lines):
                if number == 0:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.strip():
                    yield _row(name, number, line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name} is damaged gzip ({error}); fetch or compress it again.") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def _row(file: str, number: int, line: bytes) -> Row:
    try:
        return Row(file, number, _parse(line))
    except Unusable as problem:
        return Row(file, number, None, problem.reason, problem.detail)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").rstrip()  # so that a column in a message lies on the line
    except UnicodeDecodeError as error:
        raise Unusable(Reason.NOT_JSON, f"not UTF-8 at byte {error.start}") from None
    if text.lstrip().startswith("["):
        raise Unusable(Reason.NOT_JSON, "a JSON array, where each line should be one object")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(Reason.NOT_JSON, f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise Unusable(Reason.NOT_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise Unusable(Reason.NOT_JSON, f"a {type(value).__name__}, not an object")
    if "\\ud" in text.lower() and _has_lone_surrogate(value):
        raise Unusable(Reason.NOT_JSON, "half a surrogate pair, which is no character")
    return value


def _has_lone_surrogate(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _rows_of_function(reference: str) -> Iterator[Row]:
    function = resolve(reference)
    try:
        yield from _rows_of_values(reference, function())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{reference} failed: {type(error).__name__}: {error}") from error


def _rows_of_hub(name: str, split: str) -> Iterator[Row]:
    import datasets  # only here: it takes seconds to import, and files do not need it

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds, for no network, no such data set, no such split
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{name} is no file here, and the {split} split of a data set of that name cannot be read from the hub: "
            f"{reason}"
        ) from error
    yield from _rows_of_values(name, rows)


def _rows_of_values(source: str, values: Iterable[Any]) -> Iterator[Row]:
    """Rows that come as Python objects. Each is taken as it would lie on disk: as JSON."""
    for number, value in enumerate(values):
        try:
            line = json.dumps(value)
        except (TypeError, ValueError) as error:
            yield Row(source, number, None, Reason.NOT_JSON, str(error))
        else:
            yield _row(source, number, line.encode())
