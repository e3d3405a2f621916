from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner, Result

from keel.cli.data import KindName, Layout, data_app
from keel.config.data import LayoutName
from keel.data.convert import KINDS
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
    assert "pairs.jsonl: 100 rows read as comparisons (layout keel), 2 unusable, 2.00%" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["empty", "response", "2", "97,", "…", "A", "response", "is", "empty.", "Row", "97:", "chosen."] in lines
    assert any(line[:4] == ["role", "marker", "1", "99"] for line in lines)
    assert result.output.index("empty response") < result.output.index("Warnings") < result.output.index("role marker")


def test_a_clean_file_needs_no_table(tmp_path: Path) -> None:
    result = keel_data("check", save(tmp_path / "p.jsonl", [{"prompt": "Hi"}]))
    assert result.exit_code == 0
    assert result.output.strip().endswith("p.jsonl: 1 rows read as prompts (layout keel), 0 unusable")


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
            "layouts": {"keel": 4},
            "rows": 4,
            "total": 4,
            "usable": 2,
            "unusable": {
                "missing field": [
                    {"file": path, "row": 1, "detail": detail},
                    {"file": path, "row": 3, "detail": detail},
                ]
            },
            "left out on purpose": {},
            "warnings": {},
        }
    ]


def test_fields_and_kind_can_be_given(tmp_path: Path) -> None:
    path = save(tmp_path / "pairs.jsonl", [{"q": "Hi", "better": "Hello!", "worse": "What?"}])
    fields = ["--field", "prompt=q", "--field", "chosen=better", "--field", "rejected=worse"]
    assert "1 rows read as comparisons (layout keel), 0 unusable" in keel_data("check", path, *fields).output
    as_prompts = keel_data("check", path, "--field", "prompt=q", "--kind", "prompts")
    assert "1 rows read as prompts (layout keel), 0 unusable" in as_prompts.output


def test_mistakes_are_answered_with_the_mend(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [{"body": "Hi"}])
    assert "did you mean chosen?" in keel_data("check", path, "--field", "choosen=x").output
    assert "should look like chosen=better" in keel_data("check", path, "--field", "chosen").output
    unknown = keel_data("check", path).exception
    assert isinstance(unknown, UserError)
    assert "has the columns body, which fit no kind of record" in str(unknown)


def test_a_file_without_a_readable_row_is_reported_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n[\n")
    result = keel_data("check", str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 1
    assert "Row 0: an object over several lines, where each line should be one." in result.output


def test_help_has_an_example() -> None:
    assert "keel data check comparisons.jsonl --field chosen=better" in keel_data("check", "--help").output


ARGUMENTS = ["--field", "prompt=file", "--field", "responses=a1,a2", "--field", "preferred=label"]


def test_a_folder_of_tables(tmp_path: Path) -> None:
    (tmp_path / "tea.csv").write_text("#id\tlabel\ta1\ta2\n1\ta1\tYes.\tNo.\n2\ta1\tSo.\n3\ta2\tSo.\tSo.\n")
    (tmp_path / "ale.csv").write_text("#id\tlabel\ta1\ta2\n1\tequal\tYes.\tNo.\n")
    (tmp_path / "readme.txt").write_text("About.")
    result = keel_data("check", str(tmp_path), *ARGUMENTS, "--outcome", "equal=tie")
    assert result.exit_code == 1
    assert "4 rows read as comparisons (layout pairs), 2 unusable, 50.00%, 1 left out on purpose" in result.output
    for place in ("tea.csv:1", "tea.csv:2", "ale.csv:0"):
        assert place in result.output
    assert "Row tea.csv:1: 3 cells under 4 columns." in result.output


def test_the_kind_may_be_seen_only_in_a_later_row(tmp_path: Path) -> None:
    rows = [{"note": "a header of sorts"}, {"instruction": "Hi", "output": "Hello!"}]
    result = keel_data("check", save(tmp_path / "rows.jsonl", rows))
    assert "2 rows read as demonstrations (layouts keel 1, alpaca 1), 1 unusable" in result.output


def test_several_records_a_row(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]}]
    path = save(tmp_path / "ranked.jsonl", rows)
    assert "1 rows read as rankings (layout keel), 0 unusable" in keel_data("check", path).output
    result = keel_data("check", path, "--kind", "comparisons")
    assert "1 rows read as 3 comparisons (layout keel), 0 unusable, 1 left out on purpose" in result.output
    assert "Row 0: responses 2 and 3." in result.output


def test_convert_writes_what_can_be_used_and_says_what_was_left_out(tmp_path: Path) -> None:
    chats = [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": said}]} for said in ("Ho", "")
    ]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    more = save(tmp_path / "more.jsonl", [{"prompt": "Hi", "completion": "Hu", "id": 7}])
    out = tmp_path / "demos.jsonl"
    result = keel_data("convert", str(tmp_path / "chats.json"), more, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "2 rows read as demonstrations (layout sharegpt), 1 unusable, 50.00%" in result.output
    assert f"2 demonstrations written to {out}" in result.output
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": [{"role": "user", "content": "Hi"}], "response": "Ho"},
        {"prompt": "Hi", "response": "Hu", "id": 7},
    ]


def test_convert_maps_rows_and_takes_a_kind(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [{"q": "Hi", "ok": 1}, {"q": "Ho", "ok": 0}])
    result = keel_data("convert", path, "--out", str(tmp_path / "x.jsonl"), "--map", f"{__name__}:tidy")
    assert "1 left out on purpose" in result.output
    assert (tmp_path / "x.jsonl").read_text() == '{"prompt": "Hi"}\n'


def tidy(row: dict[str, Any]) -> dict[str, Any] | None:
    return {"prompt": row["q"]} if row["ok"] else None


@pytest.mark.parametrize(
    ("rows", "out", "sentence"),
    [
        ([GOOD], "there.jsonl", "there.jsonl is there already; give --force to replace it"),
        ([GOOD], "x.csv", "what is written is JSON lines; end the name in .jsonl"),
        ([GOOD], "nowhere/x.jsonl", "there is no folder .*nowhere; make it first"),
        ([GOOD | {"chosen": ""}], "x.jsonl", "none of its 1 rows can be used, most often “empty response”"),
    ],
)
def test_convert_refuses(tmp_path: Path, rows: list[dict[str, Any]], out: str, sentence: str) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    path = save(tmp_path / "rows.json", rows)
    before = sorted(tmp_path.iterdir())
    failure = keel_data("convert", path, "--out", str(tmp_path / out)).exception
    assert isinstance(failure, UserError)
    assert re.search(sentence, str(failure))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_convert_with_force_replaces_even_its_own_source(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "Ho"}])
    assert keel_data("convert", path, "--out", path, "--force").exit_code == 0
    assert Path(path).read_text() == '{"prompt": "Hi", "response": "Ho"}\n'


def test_convert_leaves_no_half_file_where_a_later_source_fails(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jsonl", [{"prompt": "Hi"}] * 100)
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "Hi"}\n' * 10_000)[:-12])
    out = tmp_path / "x.jsonl"
    failure = keel_data("convert", good, str(tmp_path / "bad.jsonl.gz"), "--out", str(out)).exception
    assert isinstance(failure, UserError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl.gz", "good.jsonl"]


def test_convert_writes_one_kind(tmp_path: Path) -> None:
    one, other = save(tmp_path / "a.jsonl", [GOOD]), save(tmp_path / "b.jsonl", [{"prompt": "Hi"}])
    failure = keel_data("convert", one, other, "--out", str(tmp_path / "x.jsonl")).exception
    assert "holds comparisons and" in str(failure)
    assert keel_data("convert", one, other, "--out", str(tmp_path / "x.jsonl"), "--kind", "prompts").exit_code == 0


def test_the_options_offer_every_layout_and_kind() -> None:
    assert [layout.value for layout in Layout] == list(get_args(LayoutName))
    assert [kind.value for kind in KindName] == list(KINDS)


def test_options_that_say_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [GOOD])
    assert "should look like 1=first" in keel_data("check", path, "--outcome", "1=left").output
    assert (
        "outcomes has no effect with layout: hh"
        in keel_data("check", path, "--outcome", "1=tie", "--layout", "hh").output
    )
