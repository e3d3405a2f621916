from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from keel.cli.data import data_app
from keel.errors import UserError

GOOD = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def keel_data(*arguments: str) -> Result:
    app = typer.Typer()
    app.add_typer(data_app)
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "200"})


def test_the_table_counts_by_reason_and_lists_the_rows(tmp_path: Path) -> None:
    rows = [GOOD] * 97 + [GOOD | {"chosen": ""}] * 2 + [GOOD | {"chosen": "So. Human: And [b]you[/b]?"}]
    result = keel_data("check", save(tmp_path / "pairs.jsonl", rows), "--rows", "1")
    assert result.exit_code == 0
    assert "pairs.jsonl: 100 rows read as comparisons, 2 unusable, 2.00%" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["empty", "response", "2", "97,", "…", "A", "response", "is", "empty.", "Row", "97:", "chosen."] in lines
    assert any(line[:4] == ["role", "marker", "1", "99"] for line in lines)
    assert result.output.index("empty response") < result.output.index("Warnings") < result.output.index("role marker")


def test_a_clean_file_needs_no_table(tmp_path: Path) -> None:
    result = keel_data("check", save(tmp_path / "p.jsonl", [{"prompt": "Hi"}]))
    assert result.exit_code == 0
    assert result.output.strip().endswith("p.jsonl: 1 rows read as prompts, 0 unusable")


@pytest.mark.parametrize(("bad", "code"), [(5, 0), (6, 1), (100, 1)])
def test_more_than_five_percent_fail(tmp_path: Path, bad: int, code: int) -> None:
    rows = [GOOD | {"rejected": ""}] * bad + [GOOD] * (100 - bad)
    assert keel_data("check", save(tmp_path / "pairs.jsonl", rows)).exit_code == code


def test_one_bad_file_of_several_fails(tmp_path: Path) -> None:
    good, empty = save(tmp_path / "good.jsonl", [GOOD]), save(tmp_path / "empty.jsonl", [])
    assert keel_data("check", good, good).exit_code == 0
    assert keel_data("check", empty, good).exit_code == 1


def test_json_lists_every_row_with_its_detail(tmp_path: Path) -> None:
    path = save(tmp_path / "pairs.jsonl", [GOOD, {"prompt": "Hi"}, GOOD, {"prompt": "Ho"}])
    result = keel_data("check", path, "--json", "--rows", "1")
    assert result.exit_code == 1
    detail = "no chosen; the row has prompt"
    assert json.loads(result.output) == [
        {
            "file": path,
            "kind": "comparisons",
            "total": 4,
            "usable": 2,
            "unusable": {"missing field": [{"row": 1, "detail": detail}, {"row": 3, "detail": detail}]},
            "warnings": {},
        }
    ]


def test_fields_and_kind_can_be_given(tmp_path: Path) -> None:
    path = save(tmp_path / "pairs.jsonl", [{"q": "Hi", "better": "Hello!", "worse": "What?"}])
    fields = ["--field", "prompt=q", "--field", "chosen=better", "--field", "rejected=worse"]
    assert "1 rows read as comparisons, 0 unusable" in keel_data("check", path, *fields).output
    as_prompts = keel_data("check", path, "--field", "prompt=q", "--kind", "prompts")
    assert "1 rows read as prompts, 0 unusable" in as_prompts.output


def test_mistakes_are_answered_with_the_mend(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [{"text": "Hi"}])
    assert "did you mean chosen?" in keel_data("check", path, "--field", "choosen=x").output
    assert "should look like chosen=better" in keel_data("check", path, "--field", "chosen").output
    unknown = keel_data("check", path).exception
    assert isinstance(unknown, UserError)
    assert "has the columns text, which fit no kind of record" in str(unknown)


def test_a_file_without_a_readable_row_is_reported_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("[\n{\n")
    result = keel_data("check", str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 1
    assert "Row 0: a JSON array, where each line should be one object." in result.output


def test_help_has_an_example() -> None:
    assert "keel data check comparisons.jsonl --field chosen=better" in keel_data("check", "--help").output
