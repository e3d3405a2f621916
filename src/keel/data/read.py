"""Files, data sets on the hub and Python functions to rows. A bad row never stops the reading."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from keel.config.data import DataConfig
from keel.data.files import ENDINGS, LONGEST_ROW, Format, data_files, format_of, in_words, lines_of, opened
from keel.data.json_text import array_values, parse_row
from keel.data.reasons import Reason, Unusable
from keel.data.tables import table_rows, text_rows
from keel.errors import UserError, first_line
from keel.references import resolve

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_UNPACKED = 2**29  # bytes
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_COLUMN = "file"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: either its value, or the problem that keeps it from having one.

    `number` counts from 0: in JSON lines it counts lines, blank ones included, so that line `number + 1` is the row's;
    elsewhere it counts rows.
    """

    file: str
    number: int
    value: dict[str, Any] | None
    problem: Reason | None = None
    detail: str = ""


def read_rows(config: DataConfig) -> Iterator[Row]:
    """The rows of a source, in order, read as they are asked for, and passed through `map` if there is one.

    The rows of a folder or glob have a column `file`, the name of the file without its endings, unless they bring one
    themselves; those of a single file only where `fields` asks for it.
    Raises UserError if the source itself cannot be read: no such file, a format that is unknown or damaged, no such
    data set on the hub, a function that is not found, fails, or returns nothing to iterate over.
    """
    rows = _rows_of_source(config)
    return rows if config.map is None else _mapped(rows, config.map)


def _rows_of_source(config: DataConfig) -> Iterator[Row]:
    if config.function is not None:
        return _rows_of_function(config.function)
    files = data_files(config.name)
    if files is not None:
        if config.split != "train":
            raise UserError(f"{config.name} is on disk, where split: {config.split} has no effect; leave it out.")
        single = files == [Path(config.name).expanduser()]
        named = not single or FILE_COLUMN in config.fields.values()
        return (row for file in files for row in _rows_of_file(config.name if single else str(file), file, named=named))
    if _HUB_NAME.fullmatch(config.name) and not config.name.endswith(ENDINGS) and "*" not in config.name:
        return _rows_of_hub(config.name, config.split)
    what = "file that matches" if set(config.name) & set("*?[") else "file"
    raise UserError(f"There is no {what} {config.name} (looked for it from {Path.cwd()}).")


def _rows_of_file(name: str, path: Path, *, named: bool) -> Iterator[Row]:
    format = format_of(path)
    if format in (Format.TABLE, Format.TEXT):
        rows = _rows_of_text(name, path, format)
    elif format is Format.PARQUET:
        rows = _rows_of_parquet(name, path)
    else:
        rows = _rows_of_json(name, path, format)
    return _with_file(rows, path) if named else rows


def _with_file(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    for row in rows:
        yield row if row.value is None else replace(row, value={FILE_COLUMN: stem} | row.value)


def _rows_of_json(name: str, path: Path, format: Format) -> Iterator[Row]:
    with opened(path) as file:
        if format is Format.JSON_ARRAY:
            yield from _rows_of_values(name, array_values(file, name))
            return
        for number, line in enumerate(lines_of(file)):
            if line is None:
                yield Row(name, number, None, Reason.NOT_JSON, f"longer than {in_words(LONGEST_ROW)}")
            elif line.strip():
                yield _row(name, number, line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line)


def _rows_of_text(name: str, path: Path, format: Format) -> Iterator[Row]:
    def lines() -> Iterator[str]:
        with opened(path) as file:
            for number, line in enumerate(lines_of(file)):
                if line is None:
                    raise UserError(
                        f"{name}: line {number + 1} is longer than {in_words(LONGEST_ROW)}, which no row may be; mend "
                        "the ends of its lines."
                    )
                line = line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
                yield line.decode("utf-8", errors="surrogateescape")

    values = table_rows(lines, name) if format is Format.TABLE else text_rows(lines, name)
    for number, value in enumerate(values):
        if isinstance(value, Unusable):
            yield Row(name, number, None, value.reason, value.detail)
        else:
            yield Row(name, number, value)


def _rows_of_parquet(name: str, path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile  # only here: other files do without

    with opened(path) as file, _damaged_parquet(name, pyarrow.ArrowException):
        seekable: BinaryIO = file if isinstance(file, io.BufferedReader) else _unpacked(name, file)
        batches = ParquetFile(seekable).iter_batches(batch_size=1024)
        yield from _rows_of_values(name, (value for batch in batches for value in batch.to_pylist()))


def _unpacked(name: str, file: BinaryIO) -> BinaryIO:
    content = file.read(_MOST_UNPACKED + 1)
    if len(content) > _MOST_UNPACKED:
        raise UserError(
            f"{name} is Parquet inside gzip, and of that only {in_words(_MOST_UNPACKED)} are unpacked in memory; "
            "unpack it yourself (gunzip), since Parquet is compressed as it is."
        )
    return io.BytesIO(content)


@contextmanager
def _damaged_parquet(name: str, damage: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (damage, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{name} is damaged Parquet ({first_line(error)}); fetch it again.") from error


def _row(file: str, number: int, line: bytes) -> Row:
    try:
        return Row(file, number, parse_row(line))
    except Unusable as problem:
        return Row(file, number, None, problem.reason, problem.detail)


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
    return (_row_of_value(source, number, value) for number, value in enumerate(values))


def _row_of_value(source: str, number: int, value: Any) -> Row:
    """A row that comes as a Python object is taken as it would lie on disk: as JSON, times in ISO 8601."""
    if isinstance(value, Unusable):
        return Row(source, number, None, value.reason, value.detail)
    try:
        line = json.dumps(value, default=_time_as_text)
    except (TypeError, ValueError, RecursionError) as error:
        return Row(source, number, None, Reason.NOT_JSON, str(error))
    return _row(source, number, line.encode())


def _time_as_text(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"a value of type {type(value).__name__} is not JSON serializable")


def _mapped(rows: Iterable[Row], reference: str) -> Iterator[Row]:
    """The rows that the user's function makes of each."""
    function = resolve(reference)
    for row in rows:
        if row.value is None:
            yield row
            continue
        place = f"row {row.number} of {row.file}"
        try:
            result = function(row.value)
        except Exception as error:
            raise UserError(
                f"the function {reference} raised {type(error).__name__}: {error} ({place}); mend the function"
            ) from error
        if result is None or result == []:
            yield replace(row, value=None, problem=Reason.SKIPPED)
            continue
        values = result if isinstance(result, list) else [result]
        wrong = next((value for value in values if not isinstance(value, dict)), None)
        if wrong is not None:
            found = f"a {type(wrong).__name__}"
            raise UserError(f"the function {reference} returned {found} ({place}); return a dict, several, or None")
        yield from (_row_of_value(row.file, row.number, value) for value in values)
