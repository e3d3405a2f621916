"""An audit in words, as a page, and in the report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keel.errors import UserError
from keel.report import audit_section
from keel.report.audit import render, write_audit
from keel.report.audit_words import figures, findings, people, summary
from keel.report.page import write_report
from keel.runs.read import read_run
from tests.data.audit.support import audit_of, pair, save
from tests.report.support import HOSTILE, make_run

ROWS = [
    *(pair(f"p{n}", "longer", "short", "ann") for n in range(3)),
    pair("p0", "short", "longer", "bob"),
    pair("p0", "short", "longer", "bob"),
    pair("p1", "longer", "short", HOSTILE.replace("\ud800", "")),
]


def test_the_words(tmp_path: Path) -> None:
    found = audit_of(tmp_path, ROWS)
    assert summary(found) == f"{tmp_path / 'rows.jsonl'}: 6 rows, 6 comparisons on 3 prompts"
    said = {line.name: (line.value, line.which) for line in findings(found, 2)}
    assert said["duplicate"] == ("1", "4")
    assert said["contradiction between annotators"] == ("2", "0, 3")
    shown = {line.name: line.value for line in figures(found)}
    assert shown["least labels to drop"] == "1"
    assert shown["longer wins"].startswith("80.0% [")
    assert shown["longer wins"].endswith("of 5")
    assert shown["pairs by number of votes"] == "1: 1, 2: 2"
    assert shown["two votes agree"].startswith("50% [")
    assert shown["ceiling of a reward model"] == "50.0%–50.0%"
    assert "first wins" not in shown
    assert people(found)[0][:2] == ("ann", "3")


def test_rows_of_several_files_are_named_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("one", "two"):
        save(folder / f"{name}.jsonl", [pair("p", "x", "y")] * 2)
    from keel.data.audit.audit import audit
    from tests.data.audit.support import source

    (line,) = findings(audit([source(str(folder))]), 5)
    assert line.which == "one.jsonl: 1; two.jsonl: 0, 1"


def test_the_page_escapes_what_comes_from_the_data(tmp_path: Path) -> None:
    page = render(audit_of(tmp_path, ROWS))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    out = write_audit(audit_of(tmp_path, ROWS), tmp_path / "new" / "audit.html")
    assert out.read_text(encoding="utf-8") == page
    with pytest.raises(UserError, match="give another --html"):
        write_audit(audit_of(tmp_path, ROWS), tmp_path / "rows.jsonl" / "audit.html")


def with_comparisons(folder: Path) -> Path:
    """A run whose collect stage wrote ROWS."""
    path = make_run(folder / "run")
    comparisons = path / "collect" / "comparisons"
    comparisons.mkdir(parents=True, exist_ok=True)
    save(comparisons / "comparisons.jsonl", ROWS)
    return path


def test_a_runs_report_shows_the_audit_of_its_comparisons(tmp_path: Path) -> None:
    path = with_comparisons(tmp_path)
    notes, rows = audit_section.of_runs([read_run(path)])
    assert notes == []
    assert {row.label: row.values for row in rows}["duplicate"] == ("1",)
    page = write_report([path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Preference data</h2>" in page
    assert "<dt>least labels to drop</dt><dd>1</dd>" in page


def test_without_data_there_is_no_section_and_with_broken_data_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path / "run")
    assert audit_section.of_runs([read_run(path)]) == ([], [])
    page = write_report([path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Preference data" not in page
    other = with_comparisons(tmp_path / "other")
    monkeypatch.setattr(audit_section, "_MOST_BYTES", 10)
    (note,), rows = audit_section.of_runs([read_run(other)])
    assert "to do it here; use keel data audit" in note
    assert rows == []


def test_a_recipes_own_data_are_audited(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    recipe = json.loads((path / "recipe.json").read_text())
    data = {"path": save(tmp_path / "own.jsonl", ROWS), "validation": 0.1}
    (path / "recipe.json").write_text(json.dumps(recipe | {"reward": {"data": [data]}}))
    _, rows = audit_section.of_runs([read_run(path)])
    assert {row.label: row.values for row in rows}["duplicate"] == ("1",)
