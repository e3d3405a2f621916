from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.compare import run as runs
from keel.demo.recipe import RECIPE
from tests.compare.test_findings import made


@pytest.mark.parametrize(("refused", "shown"), [("ppo-0", []), ("", ["ppo"])])
def test_a_run_that_is_refused_shows_no_old_figures(
    refused: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "ppo-0", stage="ppo", kl=1.0, truth=1.0, course=[(0.0, 0.5), (1.0, 1.0)])

    def execute(recipe: dict[str, Any], out: Path, name: str, *, threads: int) -> str:
        return "it was made otherwise" if name == refused else ""

    monkeypatch.setattr(runs, "execute", execute)
    arguments = ["compare", str(RECIPE), "--algorithms", "ppo", "--seeds", "0", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == bool(refused), result.output
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert [row["algorithm"] for row in rows] == shown
