"""`keel run --smoke` in the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from keel.build.forecast import Forecast
from keel.cli import main
from keel.runs.console import Console
from tests.end_to_end.tiny import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe().model_dump(mode="json")))
    return str(path)


def test_the_table(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def smoke(recipe: object, console: Console) -> list[Forecast]:
        return [
            Forecast("sft", "step", 0.25, 1071, 300.0, 2**29),
            Forecast("ppo", "iteration", 2.0, 60, 125.0, 3 * 2**30, {"sampling": 1.25, "update": 0.75}),
        ]

    monkeypatch.setattr("keel.build.smoke.smoke", smoke)
    monkeypatch.setattr("sys.argv", ["keel", "run", recipe, "--smoke", "--set", "ppo.iterations=60"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert re.search(r"sft\W+0\.50 GiB\W+0\.25 s a step\W+1071\W+5 min", text)
    assert re.search(r"ppo\W+3\.00 GiB\W+2\.0 s an iteration\W+60\W+2 min", text)
    assert "ppo, of each iteration: sampling 1.2 s, update 0.75 s." in text
    assert "In all about 7 min" in text


@pytest.mark.parametrize("option", [["--out", "somewhere"], ["--extend"]], ids=lambda option: option[0])
def test_options_that_keep_something_are_refused(
    option: list[str], recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["keel", "run", recipe, "--smoke", *option])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == f"keel: {option[0]} has no effect with --smoke, which keeps nothing; leave it out\n"
    )
