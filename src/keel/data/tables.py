"""Tables (CSV, TSV) and plain text: lines to rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator

from keel.data.files import LONGEST_ROW, in_words
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
    Raises UserError if two columns bear one name, or the lines do not end as lines do.
    """
    header = next((line for line in lines() if line.strip("\r\n")), "")
    if "\r" in re.sub(_QUOTED_CELL, "", header).rstrip("\r\n"):
        raise UserError(f"{name}: its lines end in a bare carriage return; save it with line feeds (\\n or \\r\\n).")
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
    if any("\0" in column for column in columns):
        raise UserError(f"{name}: NUL bytes in its header, as UTF-16 and binary files have them; save it as UTF-8.")
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
    length = 0
    for line in lines:
        is_open = bool(begun) != bool(line.count('"') % 2)
        begun.append(line)
        length += len(line)
        if is_open and length <= LONGEST_ROW:
            continue
        if is_open:
            return False
        whole = "".join(begun)
        begun, length = [], 0
        if '"' in whole and not row.fullmatch(whole.rstrip("\r\n")):
            return False
    return not begun


def _quoted_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | Unusable]:
    csv.field_size_limit(LONGEST_ROW)  # of the whole process, in place of 128 KiB a cell
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


def text_rows(lines: Lines, name: str) -> Iterator[dict[str, str] | Unusable]:
    """{"text": …} for each document of a text, white space around it apart.

    Documents end at <|endoftext|> if the file has it anywhere, else at empty lines, as paragraphs do.
    Raises UserError for one that is longer than a row may be.
    """
    has_ends = any(DOCUMENT_END in line for line in lines())
    for document in _documents(_pieces(lines(), has_ends), name):
        text = document.strip()
        if text:
            yield {"text": text} if _is_text(text) else Unusable(Reason.BROKEN_ROW, "not UTF-8")


def _pieces(lines: Iterable[str], has_ends: bool) -> Iterator[tuple[str, bool]]:
    """(a piece of a document, whether the document ends with it)"""
    for line in lines:
        if has_ends:
            *ended, rest = line.split(DOCUMENT_END)
            yield from ((one, True) for one in ended)
            yield rest, False
        else:
            yield line, not line.strip()


def _documents(pieces: Iterable[tuple[str, bool]], name: str) -> Iterator[str]:
    begun: list[str] = []
    length = 0
    for piece, ends in pieces:
        begun.append(piece)
        length += len(piece)
        if length > LONGEST_ROW:
            raise UserError(
                f"{name}: a document longer than {in_words(LONGEST_ROW)}; end documents with {DOCUMENT_END} or, where "
                "the file has none of these, with empty lines."
            )
        if ends:
            yield "".join(begun)
            begun, length = [], 0
    yield "".join(begun)


def _is_text(text: str) -> bool:
    """False where bytes that are not UTF-8 left lone surrogates."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
