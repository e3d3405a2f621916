"""The end of a run in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from keel.cli.console import TerminalConsole
from keel.cli.summary import print_summary
from keel.runs.read import read_run
from tests.report.support import HOSTILE, evaluation, make_run


def printed(*runs: Path) -> str:
    file = io.StringIO()
    print_summary(TerminalConsole(Console(file=file, width=100, highlight=False)), [read_run(run) for run in runs])
    return file.getvalue()


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip("│ ").startswith(label))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_two_runs_beside_their_reference(tmp_path: Path) -> None:
    text = printed(make_run(tmp_path / "a", "polite"), make_run(tmp_path / "b", "terse", policy_text="sew it ."))
    assert row(text, "true utility") == ["true utility", "1.11", "2.35", "2.35"]
    assert row(text, "wins by true utility") == ["wins by true utility", "", "87% [84, 90]", "87% [84, 90]"]
    assert row(text, "reached")[2] == "91%"
    assert row(text, "time: ppo")[2] == "2 min 10 s"
    assert "polite: It worked" in text
    assert "reliable at this KL." in text
    assert "question 0" in text
    assert "after: terse" in text
    assert "sew it ." in text
    assert "question 3" not in text  # three samples are enough


def test_an_unreliable_frontier_is_called_so(tmp_path: Path) -> None:
    changed = evaluation()
    changed["frontier"]["reliable"] = False
    text = printed(make_run(tmp_path / "run", summaries={"evaluate": changed}))
    assert row(text, "reached")[2] == "91% (unreliable)"
    assert "not reliable" in " ".join(text.split())


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    text = printed(make_run(tmp_path / "run", stages=("sft",), finished=()))
    assert text.strip() == "polite: Not judged yet. The sft stage is not finished: 80 steps so far."


def test_a_response_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = printed(make_run(tmp_path / "run", policy_text=HOSTILE + "[bold]x"))
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "<script>alert(1)</script>" in text
    assert "[bold]x" in "".join(text.split())
    text.encode()  # half a surrogate pair could not be printed
