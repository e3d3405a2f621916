"""Tables (CSV, TSV) and plain text: lines to rows."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from keel.data.reasons import Reason, Unusable
from keel.errors import UserError

Lines = Callable[[], Iterator[str]]
"""The lines of a file from its start, with their ends, bytes that are not UTF-8 as lone surrogates."""

DOCUMENT_END = "<|endoftext|>"

_QUOTED_CELL = r'"[^"]*(?:""[^"]*)*"'


def table_rows(lines: Lines, name: str) -> Iterator[dict[str, str] | Unusable]:
    """The rows of a table whose first line names the columns; a row that cannot be read comes as what is wrong.

    The delimiter (tab, comma, semicolon, bar) is the header's. Quotes are the table's own where the whole file keeps
    to RFC 4180: around a whole cell, doubled inside one. Otherwise they are characters like any other.
    Raises UserError if two columns bear one name.
    """
    header = next((line for line in lines() if line.strip("\r\n")), "")
    delimiter = _delimiter(header)
    rows = _quoted_rows(lines(), delimiter) if _has_quoting(lines, header, delimiter) else _plain(lines(), delimiter)
    columns: list[str] | None = None
    for cells in rows:
        if columns is None:
            columns = _columns(cells, name)
        elif isinstance(cells, Unusable):
            yield cells
        elif len(cells) != len(columns):
            yield Unusable(Reason.BROKEN_ROW, f"{len(cells)} cells under {len(columns)} columns")
        elif not all(map(_is_text, cells)):
            yield Unusable(Reason.BROKEN_ROW, "not UTF-8")
        else:
            yield dict(zip(columns, cells, strict=True))


def _delimiter(header: str) -> str:
    """The one that the header has most of, quoted names apart; a tab beats all, for no name contains one."""
    if "\t" in header:
        return "\t"
    unquoted = re.sub(_QUOTED_CELL, "", header)
    best = max(",;|", key=unquoted.count)
    return best if best in unquoted else "\t"


def _columns(cells: list[str] | Unusable, name: str) -> list[str]:
    if isinstance(cells, Unusable):
        raise UserError(f"{name}: the header cannot be read ({cells.detail}); mend its quotes.")
    columns = [cell.strip() for cell in cells]
    columns[0] = columns[0].removeprefix("#").lstrip()
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{name}: its first line should name the columns, and names “{twice}” twice; mend the header.")
    if not all(map(_is_text, columns)):
        raise UserError(f"{name}: its header is not UTF-8; save the file as UTF-8.")
    return columns


def _has_quoting(lines: Lines, header: str, delimiter: str) -> bool:
    """Whether quotes are the table's own, judged by the whole file."""
    if _keeps_to_quoting(lines(), delimiter):
        return True
    if delimiter == "\t":
        return False
    width = header.count(delimiter)
    return any(line.count(delimiter) != width for line in lines() if line.strip())


def _keeps_to_quoting(lines: Iterable[str], delimiter: str) -> bool:
    """Whether each cell with a quote in it is quoted as RFC 4180 has it; a quoted cell may run over lines."""
    cell = f'(?:{_QUOTED_CELL}|[^"{re.escape(delimiter)}]*)'
    row = re.compile(f"{cell}(?:{re.escape(delimiter)}{cell})*")
    begun: list[str] = []
    for line in lines:
        is_open = bool(begun) != bool(line.count('"') % 2)
        begun.append(line)
        if is_open:
            continue
        whole = "".join(begun)
        begun = []
        if '"' in whole and not row.fullmatch(whole.rstrip("\r\n")):
            return False
    return not begun


def _quoted_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | Unusable]:
    csv.field_size_limit(sys.maxsize)  # of the whole process, and no limit that anybody asked for: 128 KiB a cell
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            yield Unusable(Reason.BROKEN_ROW, str(error))
        else:
            if cells:
                yield cells


def _plain(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return (line.rstrip("\r\n").split(delimiter) for line in lines if line.strip("\r\n"))


def text_rows(lines: Lines) -> Iterator[dict[str, str] | Unusable]:
    """{"text": …} for each document of a text, white space around it apart.

    Documents end at <|endoftext|> if the file has it anywhere, else at empty lines, as paragraphs do.
    """
    has_ends = any(DOCUMENT_END in line for line in lines())
    for document in _split(lines(), DOCUMENT_END) if has_ends else _paragraphs(lines()):
        text = document.strip()
        if text:
            yield {"text": text} if _is_text(text) else Unusable(Reason.BROKEN_ROW, "not UTF-8")


def _split(lines: Iterable[str], end: str) -> Iterator[str]:
    begun: list[str] = []
    for line in lines:
        first, *others = line.split(end)
        begun.append(first)
        for other in others:
            yield "".join(begun)
            begun = [other]
    yield "".join(begun)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for line in lines:
        if line.strip():
            begun.append(line)
        else:
            yield "".join(begun)
            begun = []
    yield "".join(begun)


def _is_text(text: str) -> bool:
    """False where bytes that are not UTF-8 left lone surrogates."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
