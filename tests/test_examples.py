"""Each example runs as a script does, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from keel.runs.metrics import read_lines

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the two examples that start from the same supervised model: it is trained once."""
    return tmp_path_factory.mktemp("examples")


def script(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", [name, str(out)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_custom_reward(shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained = script("custom_reward.py", shared, monkeypatch)["trained"]
    first, last = trained.metrics()[0], trained.metrics()[-1]
    assert last["eval/length"] < 0.7 * first["eval/length"]
    assert last["eval/scores"] > first["eval/scores"] + 0.5
    assert last["reward/__main__.brief/missing"] == 0
    assert (trained.model / "model.safetensors").exists()
    assert str(trained.model) in capsys.readouterr().out


def test_custom_annotator(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = script("custom_annotator.py", shared, monkeypatch)
    rows = read_lines(names["feedback"].comparisons)
    assert len(rows) == names["feedback"].summary["comparisons"] > 500
    assert all(len(row["chosen"].split()) <= len(row["rejected"].split()) for row in rows)
    assert {row["annotator"] for row in rows} == {"brief"}
    assert not any("first_probability" in row or "utility_gap" in row for row in rows)  # it says neither
    assert names["feedback"].summary["noise_ceiling"] is None
    assert names["reward"].summary["noise_ceiling"] is None
    assert names["reward"].summary["accuracy_interval"][0] > 0.5


def test_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = script("callback.py", tmp_path, monkeypatch)
    seen = names["callback"].seen
    assert seen[-1] < 3.0 < min(seen[:-1])
    assert names["result"].summary["steps"] == 20 * len(seen) < 500  # of the steps of ten epochs
    assert f"sft ended after {20 * len(seen)} steps" in capsys.readouterr().out
