"""Which files a name stands for, what they hold, and their bytes without gzip."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, cast

from keel.errors import UserError

_JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
_TABLE_ENDINGS = (".csv", ".tsv", ".tab")
_TEXT_ENDINGS = (".txt", ".text")
ENDINGS = (*_JSON_ENDINGS, *_TABLE_ENDINGS, *_TEXT_ENDINGS, ".parquet", ".gz")
_NO_DATA = ("readme", "license", "licence", "notice", "copying")

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "compressed twice",
    b"\x80\x04\x95": "a pickle, which can run code",
    b"\x80\x05\x95": "a pickle, which can run code",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html")

LONGEST_ROW = 2**26  # bytes of a row, so that a file without line ends, or a gzip bomb, cannot fill the memory


class Format(Enum):
    JSON_LINES = auto()
    JSON_ARRAY = auto()
    TABLE = auto()
    TEXT = auto()
    PARQUET = auto()


def data_files(name: str) -> list[Path] | None:
    """The files that a path on disk stands for: itself, a folder's data files, a glob's; None if nothing lies there.

    In the order of their names. Of a folder's files those count that end as data do, but for a README and a licence.
    Raises UserError for a folder without data files.
    """
    try:
        return _data_files(name, Path(name).expanduser())
    except (OSError, RuntimeError) as error:  # a name too long, a user that is not there
        raise UserError(f"{name[:80]} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _data_files(name: str, path: Path) -> list[Path] | None:
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if _is_data(file)]
        if not files:
            raise UserError(
                f"the folder {name} holds no data files itself ({', '.join(ENDINGS)}); name a file, or a glob such as "
                f"{path / '**' / '*.jsonl'}."
            )
        return files
    if path.exists():
        if not path.is_file():
            raise UserError(
                f"{name} is no ordinary file but a pipe or device, and Keel reads some twice; save it first."
            )
        return [path]
    if path.is_symlink():
        raise UserError(f"{name} is a symbolic link to {path.readlink()}, where there is nothing; mend the link.")
    return [file for file in map(Path, sorted(_matches(str(path)))) if file.is_file()] or None


def _matches(pattern: str) -> set[str]:
    """What a glob matches; below `**` a folder is looked into once, however many symbolic links lead to it."""
    head, stars, tail = pattern.partition("**")
    if not stars or (head and not head.endswith("/")) or not (tail or "/").startswith("/"):
        return set(glob.glob(pattern))
    rest = tail.lstrip("/") or "*"
    folders = (folder for start in (glob.glob(head) if head else ["."]) for folder in _folders_below(start))
    return {match for folder in folders for match in _matches(f"{glob.escape(folder)}/{rest}")}


def _folders_below(start: str) -> Iterator[str]:
    """The folder itself and those in it, hidden ones apart."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) not in seen:
            seen.add(real)
            yield folder
            inside = (os.path.join(folder, name) for name in os.listdir(folder) if not name.startswith("."))
            waiting += filter(os.path.isdir, inside)


def _is_data(file: Path) -> bool:
    name = file.name.lower()
    return file.is_file() and not name.startswith((".", "_", *_NO_DATA)) and name.endswith(ENDINGS)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where its first bytes say gzip.

    Raises UserError, here or while it is read, if it cannot be read or is damaged gzip.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == _GZIP:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    yield cast(BinaryIO, unzipped)
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged gzip ({error}); fetch or compress it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def lines_of(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file with their ends; None in the place of one that is longer than any row may be."""
    while line := file.readline(LONGEST_ROW + 1):
        if len(line) <= LONGEST_ROW:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_ROW)
        yield None


def in_words(size: int) -> str:
    """A limit as sentences say it."""
    return f"{size / 2**20:,.0f} MiB"


def format_of(path: Path) -> Format:
    """What a file holds, by its first bytes, and where they leave it open by the ending of its name.

    Raises UserError for what Keel does not read.
    """
    with opened(path) as file:
        start = file.read(4096)
    if start.startswith(_PARQUET):
        return Format.PARQUET
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise UserError(
                f"{path} is {what}, which Keel does not read; save its rows as JSON lines, CSV or Parquet, "
                "with gzip if you like."
            )
    if start.startswith(_POINTER):
        raise UserError(f"{path} is a pointer to a file in Git LFS; fetch the file itself with `git lfs pull`.")
    if start.lstrip()[:14].lower().startswith(_WEB_PAGE) and path.suffix.lower() not in _TEXT_ENDINGS:
        raise UserError(f"{path} is a web page, such as one that asks to log in; fetch the data again.")
    if start.startswith(_UTF16):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8.")
    ending = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return _format_of_text(path, ending.lower(), start.removeprefix(b"\xef\xbb\xbf").lstrip())


def _format_of_text(path: Path, ending: str, start: bytes) -> Format:
    if start.startswith(b'{"'):
        return Format.JSON_LINES
    if ending in _TABLE_ENDINGS:
        return Format.TABLE
    if ending in _TEXT_ENDINGS:
        return Format.TEXT
    if ending == ".parquet":
        raise UserError(f"{path} is no Parquet file, whatever its name says; fetch it again.")
    if start.startswith(b"["):
        return Format.JSON_ARRAY
    if ending in _JSON_ENDINGS or start.startswith(b"{") or not start:
        return Format.JSON_LINES
    raise UserError(f"what {path} holds cannot be told; give its name the ending that it means ({', '.join(ENDINGS)}).")
