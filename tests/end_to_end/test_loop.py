"""The whole loop, where people judge through the store; in real browsers it is in `tests/browser/test_loop.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from keel.feedback.database import Database
from keel.pipeline import people
from tests.end_to_end.looping import PROJECT, go_round
from tests.feedback.judging import annotator, judge_all


def test_two_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "_POLL_SECONDS", 0.05)
    database = Database(tmp_path / "feedback.db")
    both = [annotator(database, name) for name in ("ann", "ben")]

    def judging(tasks: int) -> None:
        assert [judge_all(database, PROJECT, person) for person in both] == [tasks, tasks]

    go_round(tmp_path, database, judging)
