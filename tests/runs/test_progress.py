"""How far a stage is, as it is kept for those who watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.runs.progress import KeptProgress
from tests.pipeline.support import Heard, begin_stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr("keel.runs.progress.time.monotonic", lambda: now[0])
    return now


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return found


def test_the_rest_follows_from_the_pace_of_this_start(tmp_path: Path, clock: list[float]) -> None:
    """It goes on at 10 of 100; 5 more take 20 seconds, so 85 take 340."""
    console = KeptProgress(Heard(), tmp_path)
    console.progress("sft", 10, 100, {})
    assert kept(tmp_path) == {"of": "sft", "done": 10, "total": 100, "seconds_left": None}
    clock[0] += 20
    console.progress("sft", 15, 100, {"sft/loss": 1.0})
    assert kept(tmp_path) == {"of": "sft", "done": 15, "total": 100, "seconds_left": 340}
    clock[0] += 3600
    console.progress("people", 0, 8, {"ann": 1, "minutes left": 2.5})
    assert kept(tmp_path) == {"of": "people", "done": 0, "total": 8, "seconds_left": 150}


def test_it_is_written_once_a_second_at_most(tmp_path: Path, clock: list[float]) -> None:
    console = KeptProgress(Heard(), tmp_path)
    written = []
    for done in range(1, 41):
        console.progress("sft", done, 40, {})
        clock[0] += 0.125
        written.append(kept(tmp_path)["done"])
    assert written == [1 + done // 8 * 8 for done in range(40)]


def test_the_console_hears_everything(tmp_path: Path) -> None:
    heard = Heard()
    console = KeptProgress(heard, tmp_path)
    console.say("a sentence")
    console.samples("ppo", [{"response": "a"}])
    for done in (1, 2, 3):
        console.progress("ppo", done, 3, {})
    assert (heard.said, heard.shown) == (["a sentence"], [{"response": "a"}])
    assert heard.progressed == [("ppo", 1, 3), ("ppo", 2, 3), ("ppo", 3, 3)]


def test_a_disk_that_refuses_ends_nothing(tmp_path: Path) -> None:
    heard = Heard()
    KeptProgress(heard, tmp_path / "gone").progress("ppo", 1, 3, {})
    assert heard.progressed == [("ppo", 1, 3)]


def test_it_is_gone_where_a_stage_begins_anew_and_where_it_is_finished(tmp_path: Path) -> None:
    for finishes in (False, True):
        stage = begin_stage(tmp_path, "sft")
        assert not (tmp_path / "sft" / "progress.json").exists()
        KeptProgress(Heard(), stage.path).progress("sft", 1, 3, {})
        assert (tmp_path / "sft" / "progress.json").exists()
        if finishes:
            stage.finish({})
    assert not (tmp_path / "sft" / "progress.json").exists()
