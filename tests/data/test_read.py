from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from keel.config.data import DataConfig
from keel.data.read import Row, read_rows
from keel.data.reasons import Reason
from keel.errors import UserError
from tests.data.conftest import Write


def rows_of(path: str) -> list[Row]:
    return list(read_rows(DataConfig(path=path)))


def test_rows_keep_the_number_of_their_line(write: Write) -> None:
    path = write({"a": 1}, b"", b"  \t", {"a": 2}, b"")
    assert rows_of(path) == [Row(path, 0, {"a": 1}), Row(path, 3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"{'a': 1}", "Expecting property name"),
        (b'{"a": 1', "column 8"),
        (b"[1, 2]", "a JSON array"),
        (b'"text"', "a str, not an object"),
        (b"null", "a NoneType, not an object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a": "\\ud83d"}', "half a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": ' * 100_000, "recursion"),
        (b"\x00\x01", "Expecting value"),
    ],
)
def test_a_bad_line_is_a_row_with_a_problem_and_the_next_is_read(write: Write, line: bytes, detail: str) -> None:
    # UTF-16 holds no line end here, so each of these is one line.
    path = write({"a": 1}, line, {"a": 2})
    first, bad, last = rows_of(path)
    assert (first.value, last.value) == ({"a": 1}, {"a": 2})
    assert (bad.number, bad.value, bad.problem) == (1, None, Reason.NOT_JSON)
    assert detail in bad.detail


def test_what_is_unusual_and_still_json(write: Write) -> None:
    path = write(b'\xef\xbb\xbf{"a": "first"}\r', '{"a": "\u2028 \u0085"}'.encode(), b'{"a": "\\ud83d\\ude00"}')
    assert [row.value for row in rows_of(path)] == [{"a": "first"}, {"a": "\u2028 \u0085"}, {"a": "😀"}]


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}')
    assert len(rows_of(str(tmp_path / "a.jsonl"))) == 2


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl"])
def test_gzip_is_known_by_its_first_bytes_not_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert [row.value for row in rows_of(str(path))] == [{"a": 1}]
    path.write_bytes(b'{"a": 2}\n')
    assert [row.value for row in rows_of(str(path))] == [{"a": 2}]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    whole = bytearray(gzip.compress(b'{"a": 1}\n' * 1000))
    whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole if damage == "flipped" else gzip.compress(b'{"a": 1}\n')[:-12])
    with pytest.raises(UserError, match=r"rows.jsonl.gz is damaged gzip"):
        rows_of(str(path))


def test_no_such_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file data/absent.jsonl"):
        rows_of("data/absent.jsonl")
    with pytest.raises(UserError, match="is a directory"):
        rows_of(str(tmp_path))


def test_a_split_means_nothing_for_a_file(write: Write) -> None:
    with pytest.raises(UserError, match="split: test has no effect"):
        list(read_rows(DataConfig(path=write({"a": 1}), split="test")))


def test_a_hub_name_is_read_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        assert (name, split) == ("owner/name", "test")
        return [{"a": 1}, {"when": object()}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    first, second = read_rows(DataConfig(path="owner/name", split="test"))
    assert first == Row("owner/name", 0, {"a": 1})
    assert second.problem is Reason.NOT_JSON
    assert "object is not JSON serializable" in second.detail


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        raise ConnectionError("no network\nmore")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"owner/name is no file here, and the train split .*: no network$"):
        list(read_rows(DataConfig(path="owner/name")))


def rows() -> list[Any]:
    return [{"a": (1, 2)}, "text"]


def endless() -> Any:
    number = 0
    while True:
        yield {"number": number}
        number += 1


def failing() -> Any:
    yield {"a": 1}
    raise KeyError("b")


def test_rows_of_a_function() -> None:
    first, second = read_rows(DataConfig(function=f"{__name__}:rows"))
    assert first == Row(f"{__name__}:rows", 0, {"a": [1, 2]})
    assert (second.problem, second.detail) == (Reason.NOT_JSON, "a str, not an object")


def test_rows_are_read_as_they_are_asked_for() -> None:
    reading = read_rows(DataConfig(function=f"{__name__}:endless"))
    assert [next(reading).value for _ in range(3)] == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_function_that_fails() -> None:
    with pytest.raises(UserError, match=r"failing failed: KeyError: 'b'"):
        list(read_rows(DataConfig(function=f"{__name__}:failing")))
    with pytest.raises(UserError, match=r"math:pi.*not a function"):
        list(read_rows(DataConfig(function="math:pi")))
