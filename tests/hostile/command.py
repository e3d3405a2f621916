"""The command line as a stranger meets it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from keel.cli import main

Keel = Callable[..., "Said"]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    error: str


def keel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keel:
    """Runs `keel ARGUMENTS`; no traceback may come of it, and a mistake is one line."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["keel", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, error = capsys.readouterr()
        assert "Traceback" not in out + error
        assert "\x1b" not in out + error
        if error.startswith("keel: "):
            assert code == 2
            assert error.count("\n") == 1
        return Said(code, out, error)

    return run
