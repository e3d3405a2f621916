"""Runs are read to their end at each look, however slow the machine."""

from __future__ import annotations

import pytest

from keel.feedback.watch import runs


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_READING", 60.0)
