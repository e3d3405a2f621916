"""`keel data audit` from the outside."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from keel.errors import UserError
from tests.cli.test_data import keel_data, save

PAIRS = [
    {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "annotator": "ann"},
    {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "annotator": "ann"},
    {"prompt": "Tea?", "chosen": "No.", "rejected": "Yes.", "annotator": "[b]bob[/b]\x1b[31m"},
    {"prompt": "Milk?", "chosen": "Yes.", "rejected": "", "annotator": "bob"},
]


def test_the_tables(tmp_path: Path) -> None:
    result = keel_data("audit", save(tmp_path / "pairs.jsonl", PAIRS))
    assert result.exit_code == 0
    assert "pairs.jsonl: 4 rows, 3 comparisons on 1 prompts" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["✕", "duplicate", "1", "1"] in [line[:4] for line in lines]
    assert ["✕", "empty", "reply", "1", "3"] in [line[:5] for line in lines]
    assert ["contradiction", "between", "annotators", "2", "0,", "2"] in [line[:6] for line in lines]
    assert ["least", "labels", "to", "drop", "1"] in [line[:5] for line in lines]
    assert "[b]bob[/b]\ufffd[31m" in result.output


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("keel.data.write.sync", refuse)
    given, out = save(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "new.jsonl"
    refused = keel_data("audit", given, "--clean", str(out)).exception
    assert isinstance(refused, UserError)
    assert f"{out} cannot be written (Read-only file system)" in str(refused)


def test_json_has_every_row_and_every_figure(tmp_path: Path) -> None:
    path = save(tmp_path / "pairs.jsonl", PAIRS)
    found = json.loads(keel_data("audit", path, "--json", "--rows", "1").output)
    assert found["labels"] == 3
    assert found["findings"]["duplicate"] == {
        "count": 1,
        "unfit": True,
        "meaning": "The same label by the same annotator (or nobody named) stands in an earlier row.",
        "rows": [{"file": path, "row": 1}],
    }
    assert found["findings"]["contradiction between annotators"]["rows"] == [
        {"file": path, "row": row} for row in (0, 2)
    ]
    assert found["order"]["least_labels_to_drop"] == [1, 1]
    assert found["annotators"]["pairwise_agreement"]["value"] == 0.0
    assert found["annotators"]["votes_per_pair"] == {"2": 1}
    assert found["length"]["longer_wins"]["total"] == 2
    assert found["position"]["first_wins"]["share"] is None


def test_fields_held_out_files_a_page_and_what_is_fit(tmp_path: Path) -> None:
    train = save(
        tmp_path / "train.jsonl", [{"q": "Tea?", "a": "Yes.", "b": "No."}, {"q": "Jam?", "a": "Yes.", "b": "No."}]
    )
    test = save(tmp_path / "test.jsonl", [{"q": "tea?", "a": "Well.", "b": "No."}])
    fields = [part for field in ("prompt=q", "chosen=a", "rejected=b") for part in ("--field", field)]
    out, page = tmp_path / "fit.jsonl", tmp_path / "page.html"
    arguments = ["audit", train, "--held-out", test, *fields, "--clean", str(out), "--html", str(page)]
    result = keel_data(*arguments)
    assert result.exit_code == 0
    assert "✕ prompt is held out too" in result.output
    assert "1 fit to use written to" in result.output
    assert json.loads(out.read_text()) == {"prompt": "Jam?", "chosen": "Yes.", "rejected": "No."}
    assert json.loads((tmp_path / "fit.left-out.jsonl").read_text())["row"] == 0
    assert "prompt is held out too" in page.read_text()
    again = keel_data(*arguments)
    assert isinstance(again.exception, UserError)
    assert "fit.jsonl is there already; give --force" in str(again.exception)
    assert keel_data(*arguments, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("row", "arguments", "sentence"),
    [
        ({"prompt": "Hi"}, [], "holds prompts, and what is audited is preferences"),
        ({"prompt": "Hi", "response": "Ho"}, [], "holds demonstrations, and what is audited is preferences"),
        (PAIRS[0], ["--clean", "x.csv"], "--clean x.csv: what is written is JSON lines"),
        ({"prompt": "Hi", "chosen": "", "rejected": "x"}, [], "no row says which of two replies is better"),
    ],
)
def test_what_is_refused(tmp_path: Path, row: dict[str, str], arguments: list[str], sentence: str) -> None:
    result = keel_data("audit", save(tmp_path / "rows.jsonl", [row]), *arguments)
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)


@pytest.mark.parametrize("content", ["", "\n\n", "no JSON\n"])
def test_a_file_without_a_row_holds_nothing_rather_than_prompts(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    result = keel_data("audit", str(file))
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"{file} holds no row that can be read; `keel data check {file}` says why"


def test_a_pattern_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    result = keel_data("audit", save(tmp_path / "pairs.jsonl", PAIRS), "--together", "(")
    assert result.exit_code == 2
    assert "is no regular expression" in result.output
