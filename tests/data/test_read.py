from __future__ import annotations

import datetime
import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
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
        (b"{", "an object over several lines"),
        (b'"text"', "a str, not an object"),
        (b"null", "a NoneType, not an object"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a": "\\ud83d"}', "half a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": ' * 100_000, "200 deep"),
        (b"\x00\x01", "NUL bytes"),
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


def test_no_such_file_and_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file data/absent.jsonl"):
        rows_of("data/absent.jsonl")
    with pytest.raises(UserError, match=r"no file that matches data/\*.csv"):
        rows_of("data/*.csv")
    with pytest.raises(UserError, match="holds no data files"):
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


VALUES: list[dict[str, Any]] = [{"a": "é\u2028", "b": [1, {"c": None}]}, {"a": "", "b": []}]


def in_format(path: Path, ending: str) -> str:
    """VALUES, or what is nearest to them, in a file of that ending."""
    file = path / f"rows{ending}"
    if ending.startswith(".jsonl"):
        content = "\n".join(json.dumps(value, ensure_ascii=False) for value in VALUES).encode()
    elif ending.startswith(".json"):
        content = b"\xef\xbb\xbf" + json.dumps(VALUES, indent=2, ensure_ascii=False).encode()
    else:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([v | {"b": json.dumps(v["b"])} for v in VALUES]), sink)
        content = sink.getvalue().to_pybytes()
    file.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return str(file)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".parquet.gz"])
def test_one_set_of_rows_in_every_format(tmp_path: Path, ending: str) -> None:
    path = in_format(tmp_path, ending)
    values = [v | {"b": json.dumps(v["b"])} for v in VALUES] if "parquet" in ending else VALUES
    assert rows_of(path) == [Row(path, number, value) for number, value in enumerate(values)]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_table_and_its_broken_rows(tmp_path: Path, ending: str) -> None:
    content = b"\xef\xbb\xbfa;b\r\n1;2\r\n\r\n1\r\n\xe9;2\r\n3;\xc3\xa9\r\n"
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert rows_of(str(path)) == [
        Row(str(path), 0, {"a": "1", "b": "2"}),
        Row(str(path), 1, None, Reason.BROKEN_ROW, "1 cells under 2 columns"),
        Row(str(path), 2, None, Reason.BROKEN_ROW, "not UTF-8"),
        Row(str(path), 3, {"a": "3", "b": "é"}),
    ]


def test_a_text(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    assert [row.value for row in rows_of(str(tmp_path / "poem.txt"))] == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_an_empty_file_has_no_rows(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"rows{ending}").write_bytes(b"")
    assert rows_of(str(tmp_path / f"rows{ending}")) == []


def test_values_of_parquet_that_json_has_not(tmp_path: Path) -> None:
    table = pyarrow.table({"at": [datetime.datetime(2024, 5, 1, 12)], "day": [datetime.date(2024, 5, 1)]})
    pyarrow.parquet.write_table(table, tmp_path / "times.parquet")
    (row,) = rows_of(str(tmp_path / "times.parquet"))
    assert row.value == {"at": "2024-05-01T12:00:00", "day": "2024-05-01"}
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"\xff"]}), tmp_path / "images.parquet")
    (row,) = rows_of(str(tmp_path / "images.parquet"))
    assert (row.problem, row.detail) == (Reason.NOT_JSON, "a value of type bytes is not JSON serializable")


@pytest.mark.parametrize(
    ("ending", "damage", "sentence"),
    [
        (".json", lambda whole: whole[:-3], r"rows.json is no whole JSON array \(.* line \d+ column \d+"),
        (".json", lambda whole: whole.replace(b"\xc3", b"\xff"), r"rows.json is not UTF-8 \(at byte 16\)"),
        (".parquet", lambda whole: whole[:-20], "rows.parquet is damaged Parquet"),
        (".parquet", lambda whole: whole[:4] + b"\x00" * 40 + whole[44:], "rows.parquet is damaged Parquet"),
        (".parquet.gz", lambda whole: whole[:-20], "rows.parquet.gz is damaged gzip"),
        (".json.gz", lambda whole: whole[:-12], "rows.json.gz is damaged gzip"),
    ],
)
def test_damaged_files(tmp_path: Path, ending: str, damage: Any, sentence: str) -> None:
    path = Path(in_format(tmp_path, ending))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=sentence):
        rows_of(str(path))


def test_the_rows_of_a_folder_name_their_file(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("x\n1\n")
    (tmp_path / "a.tea.jsonl").write_text('{"x": 2}\n{"x": 3, "file": "own"}\n{\n')
    folder = rows_of(str(tmp_path))
    assert [(Path(row.file).name, row.number, row.value) for row in folder] == [
        ("a.tea.jsonl", 0, {"file": "a.tea", "x": 2}),
        ("a.tea.jsonl", 1, {"file": "own", "x": 3}),
        ("a.tea.jsonl", 2, None),
        ("b.csv", 0, {"file": "b", "x": "1"}),
    ]
    assert rows_of(str(tmp_path / "*.csv")) == folder[3:]
    assert [row.value for row in rows_of(str(tmp_path / "b.csv"))] == [{"x": "1"}]
    (row,) = read_rows(DataConfig(path=str(tmp_path / "b.csv"), fields={"prompt": "file"}))
    assert row.value == {"file": "b", "x": "1"}


def test_json_lines_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """The damage at the end is met by nobody who stops before it."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000)[:-12])
    reading = read_rows(DataConfig(path=str(path)))
    assert next(reading).value == {"a": 1}


def doubled(row: dict[str, Any]) -> Any:
    number = row["number"]
    if number == 0:
        return None
    if number == 1:
        return []
    if number == 2:
        row["number"] = (4, 5)
        return row
    if number == 3:
        return [{"number": 6}, {"when": object()}]
    return "no row"


def test_a_function_makes_rows_of_each_row(write: Write) -> None:
    path = write({"number": 0}, {"number": 1}, b"{", {"number": 2}, {"number": 3})
    config = DataConfig(path=path, map=f"{__name__}:doubled")
    skipped, empty, bad, changed, first, second = read_rows(config)
    assert [row.problem for row in (skipped, empty, bad)] == [Reason.SKIPPED, Reason.SKIPPED, Reason.NOT_JSON]
    assert changed == Row(path, 3, {"number": [4, 5]})
    assert first == Row(path, 4, {"number": 6})
    assert (second.number, second.problem) == (4, Reason.NOT_JSON)


def test_a_function_of_rows_that_fails_ends_the_reading_with_the_row(write: Write) -> None:
    config = DataConfig(path=write({"number": 9}), map=f"{__name__}:doubled")
    with pytest.raises(UserError, match=r"doubled returned a str \(row 0 of .*rows.jsonl\); return a dict, several"):
        list(read_rows(config))
    config = DataConfig(path=write({"number": 0}, {"n": 9}), map=f"{__name__}:doubled")
    with pytest.raises(UserError, match=r"doubled raised KeyError: 'number' \(row 1 of .*; mend the function"):
        list(read_rows(config))
