from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from keel.report.figures import Curve, Panel
from keel.verify import registry
from keel.verify.result import Bound, Check, Finding, Group, Level, Table
from keel.verify.run import run_checks, write

SCHEMA = {
    "type": "object",
    "required": ["passed", "seconds", "keel", "torch", "python", "checks"],
    "additionalProperties": False,
    "properties": {
        "passed": {"type": "boolean"},
        "seconds": {"type": "number"},
        "keel": {"type": "string"},
        "torch": {"type": "string"},
        "python": {"type": "string"},
        "checks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "group", "claim", "level", "passed", "seconds", "error", "bounds", "numbers"],
                "properties": {
                    "level": {"enum": ["quick", "default", "full"]},
                    "passed": {"type": "boolean"},
                    "error": {"type": ["string", "null"]},
                    "bounds": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["what", "value", "low", "high", "holds"],
                            "additionalProperties": False,
                            "properties": {
                                "what": {"type": "string"},
                                "value": {"type": ["number", "null"]},
                                "low": {"type": ["number", "null"]},
                                "high": {"type": ["number", "null"]},
                                "holds": {"type": "boolean"},
                            },
                        },
                    },
                    "numbers": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
                },
            },
        },
    },
}


def within(value: float, high: float = 1.0) -> Finding:
    panel = Panel("A picture", "of nothing", [Curve((1, 2), (0.1, 0.2))], log_y=True)
    table = Table("A table", ("who", "what"), (("<b>", "2"),))
    return Finding((Bound("number", value, high=high),), {"beside": 3.0}, (table,), (panel,))


def crash() -> Finding:
    raise RuntimeError("it broke")


def die() -> Finding:
    os._exit(3)


def check(name: str, measure: Any) -> Check:
    return Check(name, Group.OPTIMUM, "A claim.", Level.QUICK, measure)


GOOD = check("good", partial(within, 0.5))
BAD = check("bad", partial(within, 2.0))


@pytest.mark.parametrize(
    ("bound", "holds"),
    [
        (Bound("x", 1.0, high=1.0), True),
        (Bound("x", 1.1, high=1.0), False),
        (Bound("x", 0.9, low=1.0), False),
        (Bound("x", math.nan), False),
        (Bound("x", math.inf, high=1.0), False),
    ],
)
def test_a_bound_holds_within_its_ends_and_never_for_nan(bound: Bound, holds: bool) -> None:
    assert bound.holds is holds


def test_a_crash_is_a_miss_that_the_command_names_and_not_the_end_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "CHECKS", (GOOD, check("broken", crash), BAD))
    result = CliRunner().invoke(app, ["verify", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "Missed: broken, bad." in result.output
    assert "number 2 ≤ 1" in result.output
    assert "RuntimeError: it broke" in result.output
    written = json.loads((tmp_path / "verify.json").read_text())
    jsonschema: Any = pytest.importorskip("jsonschema")
    jsonschema.validate(written, SCHEMA)
    assert [one["passed"] for one in written["checks"]] == [True, False, False]
    assert written["checks"][0]["bounds"] == [{"what": "number", "value": 0.5, "low": None, "high": 1.0, "holds": True}]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 of 3 checks missed" in html
    assert "Missed: broken, bad." in html
    assert "&lt;b&gt;" in html
    assert "<svg" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_a_process_that_dies_is_a_miss() -> None:
    heard: list[str] = []
    (result,) = run_checks([check("dead", die)], lambda result: heard.append(result.name), processes=1)
    assert not result.passed
    assert "BrokenProcessPool" in result.error
    assert heard == ["dead"]


def test_the_shortest_proof_holds(tmp_path: Path) -> None:
    """`keel verify --quick` as users run it."""
    result = CliRunner().invoke(app, ["verify", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "verify.json").read_text())
    assert written["passed"]
    assert {one["level"] for one in written["checks"]} == {"quick"}
    print(f"keel verify --quick: {written['seconds']:.0f} s")


def test_names_and_levels_that_contradict_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean identity-0"):
        registry.named(["identity05"])
    for arguments in (["--quick", "--full"], ["--full", "--only", "identity-0.5"]):
        result = CliRunner().invoke(app, ["verify", *arguments])
        assert isinstance(result.exception, UserError)


def test_every_check_has_a_name_of_its_own_and_can_be_named() -> None:
    names = [check.name for check in registry.CHECKS]
    assert len(set(names)) == len(names)
    assert registry.named(["*"]) == list(registry.CHECKS)
    assert registry.of_level(Level.FULL) == list(registry.CHECKS)


def test_out_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another --out"):
        write([], tmp_path / "file", seconds=0.0)
