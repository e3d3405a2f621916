from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from keel.data.files import Format, data_files, format_of
from keel.errors import UserError


def names(files: list[Path] | None) -> list[str]:
    assert files is not None
    return [file.name for file in files]


def test_a_folder_stands_for_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    others = ("b.csv", "a.jsonl.gz", "c.txt", "README.txt", "LICENSE", "licence.csv", ".a.csv", "_a.csv", "notes.md")
    for name in others:
        (tmp_path / name).write_text("x")
    (tmp_path / "deeper.csv").mkdir()
    (tmp_path / "deeper.csv" / "d.csv").write_text("x")
    assert names(data_files(str(tmp_path))) == ["a.jsonl.gz", "b.csv", "c.txt"]
    assert names(data_files(str(tmp_path / "b.csv"))) == ["b.csv"]
    assert names(data_files(str(tmp_path / "*.csv"))) == [".a.csv", "_a.csv", "b.csv", "licence.csv"][1:]
    assert names(data_files(str(tmp_path / "**" / "*.csv"))) == ["_a.csv", "b.csv", "d.csv", "licence.csv"]


def test_what_stands_for_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_files("absent.csv") is None
    assert data_files("*.csv") is None
    (tmp_path / "odd[1].csv").write_text("x")
    assert data_files("odd[1].csv") == [Path("odd[1].csv")]
    (tmp_path / "sub").mkdir()
    with pytest.raises(
        UserError, match=r"the folder sub holds no data files itself .*a glob such as sub/\*\*/\*.jsonl"
    ):
        data_files("sub")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", b'{"a": 1}\n', Format.JSON_LINES),
        ("a.json", b'\n {"a": 1}\n', Format.JSON_LINES),
        ("a.json", b'{\n  "a": 1}\n', Format.JSON_LINES),
        ("a.json", b'\xef\xbb\xbf \n[{"a": 1}]', Format.JSON_ARRAY),
        ("a.jsonl", b'[{"a": 1}]', Format.JSON_ARRAY),
        ("a", b'[{"a": 1}]', Format.JSON_ARRAY),
        ("a.data", b'{"a": 1}\n', Format.JSON_LINES),
        ("a.csv", b'{"a": 1}\n', Format.JSON_LINES),
        ("a.CSV", b"[a],b\n", Format.TABLE),
        ("a.tsv", b"a\tb\n", Format.TABLE),
        ("a.txt", b"[Enter Hamlet]\n", Format.TEXT),
        ("a.txt", b"", Format.TEXT),
        ("a", b"", Format.JSON_LINES),
        ("a.csv", b"PAR1...", Format.PARQUET),
    ],
)
def test_formats(tmp_path: Path, name: str, content: bytes, format: Format, compress: bool) -> None:
    path = tmp_path / (name + ".gz" if compress else name)
    path.write_bytes(gzip.compress(content) if compress else content)
    assert format_of(path) is format


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "a,b\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", b"PK\x03\x04", r"is a zip archive \(or a spreadsheet\), which Keel does not read"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
        ("a.parquet", b"<xml>", "is no Parquet file"),
        ("a.parquet", b"", "is no Parquet file"),
        ("a.data", b"a,b\n", "cannot be told; give its name the ending"),
    ],
)
def test_what_is_not_read(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{sentence}|{name} {sentence}"):
        format_of(tmp_path / name)
