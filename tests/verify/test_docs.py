"""The checks that docs/math names exist."""

from __future__ import annotations

import re
from pathlib import Path

from keel.verify.registry import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "math" / "README.md"


def test_every_check_named_beside_the_equations_exists() -> None:
    named = set(re.findall(r"\*([a-z][a-z0-9.-]+)\*", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named - {check.name for check in CHECKS} == set()
