from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from keel.cli import app
from tests.end_to_end.tiny import tiny_recipe


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe().model_dump(mode="json")))


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)


def test_a_line_for_each_finding() -> None:
    result = doctor()
    assert result.exit_code == 0
    assert {line[:2] for line in result.output.splitlines()} <= {"✓ ", "– "}
    for what in ("python", "libraries", "cores", "disk", "file system", "hub", "device", "bf16", "training step"):
        assert f" {what}: " in result.output, what
    assert "– hub: offline" in result.output  # as every test is


def test_what_would_stop_a_run_ends_with_1_and_its_mend() -> None:
    well = doctor("tiny.yaml", "--processes", "2")
    assert well.exit_code == 0
    told = [line for line in well.output.splitlines() if line.startswith("✓ memory of ")]
    assert [line.split()[3] for line in told] == ["sft:", "reward:", "direct:", "ppo:"]
    assert all(line.endswith(" for 2 processes") for line in told)
    result = doctor("tiny.yaml", "--set", "ppo.reward=[{function: 'keel.demo:plite'}]")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.startswith("✗"))
    assert 'Did you mean "polite"?' in lines[at]
    assert lines[at + 1].startswith("    → name a function that is there")


def test_json_holds_the_same() -> None:
    result = doctor("tiny.yaml", "--set", "sft.data=gone.jsonl", "--json")
    assert result.exit_code == 1
    findings = json.loads(result.output)
    assert all(set(finding) == {"what", "mark", "said", "mend"} for finding in findings)
    assert [finding["what"] for finding in findings if finding["mark"] == "bad"] == ["sft.data"]
