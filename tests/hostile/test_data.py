"""Data that a stranger may hand to `keel data check`, each with its sentence and exit code.

What single lines of JSON and single cells of a table may be is asked in tests/data; here stand whole sources, and rows
that are well formed and still no data.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from keel.data import files, json_text, read, reading, tables
from keel.data.reasons import Unusable
from keel.errors import UserError
from tests.hostile.command import Keel
from tests.hostile.command import keel as _keel
from tests.hostile.valid import FILES

Make = Callable[[Path], object]
GOOD = b'{"prompt": "Hi", "response": "Hello"}\n'


@pytest.fixture
def keel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keel:
    return _keel(capsys, monkeypatch)


def holding(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def parquet(**columns: list[object]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def text_that_is_no_utf8(path: Path) -> None:
    array = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": array}), path)


def folder_of(*names: str) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(GOOD)

    return make


REFUSED: dict[str, tuple[str, Make, str]] = {
    # nothing there, or nothing that is a file
    "no file": ("a.jsonl", lambda path: None, "There is no file "),
    "a name beyond any file's": ("x" * 300, lambda path: None, "cannot be read: File name too long."),
    "an empty folder": ("a", folder_of(), "holds no data files itself"),
    "a folder under a file's name": ("a.jsonl", folder_of("notes.md"), "holds no data files itself"),
    "a named pipe": ("a.jsonl", os.mkfifo, "is no ordinary file but a pipe or device, and Keel reads some twice; save"),
    "a link to itself": ("a.jsonl", lambda path: path.symlink_to("a.jsonl"), "is a symbolic link to a.jsonl, where"),
    "a link to nothing": (
        "a.jsonl",
        lambda path: path.symlink_to("gone"),
        "is a symbolic link to gone, where there is",
    ),
    # of another format
    "a zip archive": ("a.jsonl", holding(b"PK\x03\x04" + bytes(99)), "is a zip archive (or a spreadsheet), which"),
    "a pickle": ("a.jsonl", holding(b"\x80\x04\x95" + bytes(99)), "is a pickle, which can run code, which Keel does"),
    "an LFS pointer": ("a.csv", holding(b"version https://git-lfs.github.com/spec/v1\n"), "with `git lfs pull`."),
    "a web page": ("a.jsonl", holding(b"\n<!DOCTYPE html>\n<html>"), "is a web page, such as one that asks to log in"),
    "UTF-16": ("a.jsonl", holding(GOOD.decode().encode("utf-16")), "is UTF-16 text; save it as UTF-8."),
    "a table in UTF-16 without its mark": ("a.csv", holding("a,b\n".encode("utf-16-le")), "NUL bytes in its header"),
    "noise under no ending": ("a", holding(bytes(range(128, 256))), "cannot be told; give its name the ending"),
    "noise as a table": ("a.csv", holding(bytes(range(128, 256)) + b"\n1\n"), "its header is not UTF-8"),
    "noise as Parquet": ("a.parquet", holding(bytes(range(128, 256))), "is no Parquet file, whatever its name says"),
    "lines of old Macs": ("a.csv", holding(b'a,b\r"1,1",2\r'), "its lines end in a bare carriage return; save it"),
    # damaged
    "half a gzip": ("a.jsonl.gz", holding(gzip.compress(GOOD)[:-6]), "is damaged gzip (Compressed file ended before"),
    "two bytes of gzip": ("a.jsonl.gz", holding(b"\x1f\x8b"), "is damaged gzip"),
    "gzip with a tail": ("a.jsonl.gz", holding(gzip.compress(GOOD) + b"tail"), "is damaged gzip (Not a gzipped file"),
    "gzip in gzip": ("a.jsonl.gz", holding(gzip.compress(gzip.compress(GOOD))), "is compressed twice"),
    "Parquet without its end": ("a.parquet", holding(FILES["rows.parquet"][:-9]), "is damaged Parquet ("),
    "Parquet's marks alone": ("a.parquet", holding(b"PAR1" + bytes(20) + b"PAR1"), "is damaged Parquet ("),
    "Parquet's text in another encoding": ("a.parquet", text_that_is_no_utf8, "is damaged Parquet ("),
    # JSON arrays
    "an array that breaks off": ("a.json", holding(b'[{"prompt": "a"},\n {"pro'), "starting at: line 2 column 3)"),
    "an array without commas": ("a.json", holding(b'[{"prompt": "a"} {"prompt": "b"}]'), "',' expected: line 1"),
    "an array with a tail": ("a.json", holding(b'[{"prompt": "a"}] and more'), "something stands behind its end"),
    "an array in Latin-1": ("a.json", holding('[{"prompt": "é"}]'.encode("latin-1")), "is not UTF-8 (at byte 13)"),
    "an array too deep": ("a.json", holding(b"[" * 100_000), "brackets more than 200 deep: line 1 column 2"),
    "an array with an endless number": (
        "a.json",
        holding(b"[" + b"9" * 5000 + b"]"),
        "Exceeds the limit (4300 digits)",
    ),
    # of another schema
    "columns of no kind": ("a.jsonl", holding(b'{"q": "a"}\n'), "the columns q, which fit no kind of record; say what"),
    "Parquet of another schema": ("a.parquet", holding(parquet(x=[1.0], y=[2])), "has the columns x, y, which fit no"),
    "columns in capitals": (
        "a.csv",
        holding(b"Prompt,Response\na,b\n"),
        "--field 'prompt=Prompt' --field 'response=Res",
    ),
    "a column that stands twice": ("a.csv", holding(b"prompt,prompt\na,b\n"), "names “prompt” twice; mend the header"),
    "rows below a key": ("a.json", holding(b'{"data": [{"prompt": "a"}]}'), "has the columns data, which fit no kind"),
    "a name that steers the terminal": ("a\x1b[31m", holding(b"?"), "cannot be told; give its name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_source_that_is_refused_whole(what: str, keel: Keel, tmp_path: Path) -> None:
    name, make, sentence = REFUSED[what]
    make(tmp_path / name)
    said = keel("data", "check", str(tmp_path / name))
    assert (said.code, said.out) == (2, "")
    assert sentence in said.error


def test_a_name_that_is_no_name(keel: Keel) -> None:
    said = keel("data", "check", "")
    assert said.code == 2
    assert "the path or function is empty" in said.error
    assert "There is no file" in keel("data", "check", "a\0b").error


def test_links_in_a_circle_are_walked_once(keel: Keel, tmp_path: Path) -> None:
    """Two links to the folder that they lie in have 2 ** 40 paths before the system stops."""
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "three").symlink_to("three")
    (tmp_path / "deep[er]" / "est").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for place in ("a", "deep[er]/b", "deep[er]/est/c", ".hidden/d"):
        (tmp_path / f"{place}.jsonl").write_bytes(GOOD)
    for pattern, rows in (
        ("**/*.jsonl", 3),
        ("**", 3),
        ("deep*/**/*.jsonl", 2),
        ("**/est/**/*.jsonl", 1),
        ("*.jsonl", 1),
    ):
        said = keel("data", "check", str(tmp_path / pattern), "--json")
        assert (said.code, json.loads(said.out)[0]["rows"]) == (0, rows), pattern


def row(**columns: object) -> bytes:
    return json.dumps(columns).encode() + b"\n"


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "nothing but NULs": ("a.jsonl", bytes(100), "NUL bytes, as UTF-16 and binary files have them; save it as UTF-8"),
    "UTF-16 without its mark": ("a.jsonl", GOOD.decode().encode("utf-16-le"), "NUL bytes, as UTF-16"),
    "a key that stands twice": ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "the key “prompt” stands twice"),
    "such a key further in": ("a.jsonl", b'{"prompt": "a", "x": [{"y": 1, "y": 2}]}\n', "the key “y” stands twice"),
    "such a key in an array": ("a.json", b'[{"prompt": "a", "prompt": "b"}]', "the key “prompt” stands twice"),
    "brackets 201 deep": ("a.jsonl", b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}\n", "brackets more than 200 deep"),
    "half a surrogate pair": ("a.json", b'[{"prompt": "\\udc00"}]', "half a surrogate pair, which is no character"),
    "a number for an object": ("a.json", b"[1]", "a int, not an object"),
    "a margin that is no number": ("a.jsonl", row(**PAIR, margin=float("nan")), "margin is nan, not a number of 0"),
    "a margin beyond floats": ("a.jsonl", row(**PAIR)[:-2] + b', "margin": 1e999}\n', "margin is inf, not a number"),
    "a weight in words": ("a.jsonl", row(**PAIR, weight="much"), "weight is 'much', not a number above 0"),
    "a prompt that is a number": ("a.jsonl", row(prompt=3), "prompt is a int, neither text nor a list of messages"),
    "a message that is text": ("a.jsonl", row(prompt=["Hi"]), 'prompt: a message is {"role": …, "content": …}'),
    "a message of pictures": ("a.jsonl", row(prompt=[{"role": "user", "content": [{}]}]), "of a message is not text"),
    "a role that nobody has": ("a.jsonl", row(prompt=[{"role": "x\x1b[2J", "content": ""}]), "is none of system, user"),
    "ranks of lists": ("a.jsonl", row(prompt="a", responses=["b", "c"], ranks=[[1], 2]), "not a list of 2 whole numb"),
    "no rows": ("a.jsonl", b"", ""),
    "a header alone": ("a.csv", b"prompt,response\n", ""),
    "a quote that never closes": ("a.csv", b'prompt,response\n"a, a",b\n"c,d\ne,f\n', "unexpected end of data"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_row_that_cannot_be_used(what: str, keel: Keel, tmp_path: Path) -> None:
    name, content, detail = UNUSABLE[what]
    (tmp_path / name).write_bytes(content)
    said = keel("data", "check", str(tmp_path / name), "--json")
    assert (said.code, said.error) == (1, "")
    (found,) = json.loads(said.out)
    details = [finding["detail"] for findings in found["unusable"].values() for finding in findings]
    assert found["usable"] == found["total"] - len(details)
    assert details == [] if not detail else any(detail in one for one in details)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + GOOD, "demonstrations"),
        ("a.csv", b"\xef\xbb\xbfprompt,response\r\na\x00,b\r\n", "demonstrations"),
        ("a.jsonl", row(**PAIR, margin="0.5", weight="2"), "comparisons"),
        ("a.jsonl", row(prompt="a", response="b") + row(instruction="a", output="b"), "demonstrations"),
        ("a.jsonl", row(prompt="x" * 2**22), "prompts"),
        ("a.jsonl", b'{"prompt": "a", "note": NaN}\n', "prompts"),
    ],
    ids=["a mark in front", "a NUL in a cell", "numbers as text", "layouts mixed", "a line of 4 MiB", "NaN beside"],
)
def test_odd_and_still_data(name: str, content: bytes, kind: str, keel: Keel, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    said = keel("data", "check", str(tmp_path / name), "--json")
    assert said.code == 0
    (found,) = json.loads(said.out)
    assert (found["kind"], found["unusable"]) == (kind, {})


def test_nan_beside_the_fields_is_written_as_null(keel: Keel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a", "note": [NaN, -Infinity, 1.5]}\n')
    assert keel("data", "convert", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b.jsonl")).code == 0
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {"prompt": "a", "note": [None, None, 1.5]}


# What would fill the memory. The limits are made small here; what they are is said in docs/guides/bad-input.md.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, json_text, read, tables):
        monkeypatch.setattr(module, "LONGEST_ROW", 2**20)
    monkeypatch.setattr(json_text, "_CHUNK", 2**10)


def test_a_line_beyond_the_limit_is_one_bad_row(small: None, tmp_path: Path, keel: Keel) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'{"prompt": "' + b"x" * 2**20 + b'"}\n' + GOOD)
    found = json.loads(keel("data", "check", str(tmp_path / "a.jsonl"), "--json").out)[0]
    assert (found["total"], found["usable"]) == (3, 2)
    assert found["unusable"]["not JSON"][0] | {"file": ""} == {"file": "", "row": 1, "detail": "longer than 1 MiB"}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"prompt,response\n" + b"x" * 2**21, "line 2 is longer than 1 MiB, which no row may be; mend"),
        ("a.txt", b"x" * 2**21, "line 1 is longer than 1 MiB, which no row may be; mend the ends of its lines."),
        ("a.txt", (b"x" * 999 + b"\n") * 2000, "a document longer than 1 MiB; end documents with <|endoftext|>"),
        ("a.json", b'["' + b"x" * 2**21, "a value longer than 1 MiB: line 1 column 2"),
    ],
)
def test_what_never_ends_is_refused(
    name: str, content: bytes, sentence: str, small: None, tmp_path: Path, keel: Keel
) -> None:
    (tmp_path / name).write_bytes(content)
    said = keel("data", "check", str(tmp_path / name))
    assert said.code == 2
    assert sentence in said.error


def bomb(path: Path, start: bytes, again: bytes, mebibytes: int) -> None:
    """Gzip of many times what it weighs, written a piece at a time."""
    squeeze = zlib.compressobj(9, wbits=31)
    piece = again * (2**20 // len(again))
    with path.open("wb") as file:
        file.write(squeeze.compress(start))
        for _ in range(mebibytes):
            file.write(squeeze.compress(piece))
        file.write(squeeze.flush())


@pytest.mark.parametrize(
    ("name", "start", "again"),
    [
        ("a.jsonl.gz", b'{"prompt": "', b"x"),
        ("a.json.gz", b'["', b"x"),
        ("a.csv.gz", b'prompt,response\n"a, b",1\n"', b"x" * 2**14 + b",\n"),
        ("a.txt.gz", b"", b"x"),
    ],
)
def test_a_gzip_bomb_is_never_held(
    name: str, start: bytes, again: bytes, small: None, tmp_path: Path, keel: Keel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 MiB no more than the limit is asked for at once, and the file weighs a thousandth of it."""
    import tracemalloc

    bomb(tmp_path / name, start, again, 20)
    assert (tmp_path / name).stat().st_size < 2**17
    tracemalloc.start()
    said = keel("data", "check", str(tmp_path / name))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said.code in (1, 2)
    assert peak < 12 * 2**20


def test_parquet_in_gzip_is_unpacked_up_to_a_limit(tmp_path: Path, keel: Keel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(FILES["rows.parquet.gz"])
    assert keel("data", "check", str(tmp_path / "a.parquet.gz")).code == 0
    monkeypatch.setattr(read, "_MOST_UNPACKED", 1000)
    said = keel("data", "check", str(tmp_path / "a.parquet.gz"))
    assert said.code == 2
    assert "is Parquet inside gzip" in said.error
    assert "unpack it yourself (gunzip)" in said.error


def test_what_is_no_data_at_all_is_not_read_to_its_end(
    tmp_path: Path, keel: Keel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_GIVE_UP_AFTER", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n" * 1000)
    assert "a.jsonl, read so far: none of its 100 rows can be used" in keel("data", "check", str(path)).error
    path.write_bytes(GOOD + b"{\n" * 1000)
    assert keel("data", "check", str(path)).code == 1


def test_an_array_is_read_value_by_value(small: None, tmp_path: Path) -> None:
    """Values longer than a piece, on borders of pieces, and numbers that a piece cuts in two."""
    values = [{"prompt": "é😀" * (37 * n), "n": n} for n in range(40)] + [{"prompt": "x" * 5000, "n": 10**30}]
    for indent in (None, 3):
        (tmp_path / "a.json").write_bytes(
            b"\xef\xbb\xbf" + json.dumps(values, indent=indent, ensure_ascii=False).encode()
        )
        with (tmp_path / "a.json").open("rb") as file:
            assert list(json_text.array_values(file, "a.json")) == values
    (tmp_path / "a.json").write_text(" [ ] ")
    with (tmp_path / "a.json").open("rb") as file:
        assert list(json_text.array_values(file, "a.json")) == []
    numbers = list(range(10**9, 10**9 + 3000))
    (tmp_path / "a.json").write_text(json.dumps(numbers))
    with (tmp_path / "a.json").open("rb") as file:
        assert list(json_text.array_values(file, "a.json")) == numbers


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"prompt": "a" "n": 1}', "Expecting ',' delimiter: line 2 column 16"),
        ('{"prompt": tea}', "Expecting value: line 2 column 12"),
        ('{"prompt": "a\tb"}', "Invalid control character at: line 2 column 14"),
        ('{"prompt": "a}', "Invalid control character at: line 2 column 16"),  # its text goes on into the next line
    ],
)
def test_a_broken_value_is_named_however_much_comes_after_it(row: str, fault: str, small: None, tmp_path: Path) -> None:
    good = '{"prompt": "a"}'
    (tmp_path / "a.json").write_text(f"[{good},\n{row}" + f",\n{good}" * 2**17 + "]")
    with (tmp_path / "a.json").open("rb") as file, pytest.raises(UserError) as raised:
        list(json_text.array_values(file, "a.json"))
    assert str(raised.value).startswith(f"a.json is no whole JSON array ({fault}); mend it there")
    assert raised.traceback[-1].locals["self"]._bytes < 2**14  # the rest is not read


def test_many_keys_one_of_them_twice_are_read_in_a_moment() -> None:
    """Each looked for among all would take hours."""
    keys = [f'"{number}": 1' for number in range(200_000)]
    with pytest.raises(Unusable, match="the key “7” stands twice"):
        json_text.parse_row(("{" + ", ".join([*keys, keys[7]]) + "}").encode())
