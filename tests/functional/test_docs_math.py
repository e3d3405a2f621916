"""docs/math names functions and tests; this finds the ones that are not there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import keel.functional

TESTS = Path(__file__).parent
PAGES = TESTS.parents[1] / "docs" / "math"


def named_functions() -> set[str]:
    return set(re.findall(r"`(keel\.functional\.\w+\.\w+)`", (PAGES / "README.md").read_text(encoding="utf-8")))


def public_functions() -> set[str]:
    """Full names of the functions and classes that the modules of keel.functional define for others."""
    found = set()
    for module_info in pkgutil.iter_modules(keel.functional.__path__, "keel.functional."):
        module = importlib.import_module(module_info.name)
        for name, member in inspect.getmembers(module, lambda m: inspect.isfunction(m) or inspect.isclass(m)):
            if member.__module__ == module.__name__ and not name.startswith("_"):
                found.add(f"{module.__name__}.{name}")
    return found


def test_the_table_names_every_public_function_and_no_other() -> None:
    assert named_functions() == public_functions()


def test_every_test_named_on_the_pages_exists() -> None:
    named = set()
    for page in ("README.md", "errata.md"):
        named |= set(re.findall(r"`(test_\w+)::(test_\w+)`", (PAGES / page).read_text(encoding="utf-8")))
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if f"def {test}(" not in (TESTS / f"{file}.py").read_text(encoding="utf-8")
    ]
    assert len(named) > 40
    assert missing == []


def test_every_erratum_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", (PAGES / "errata.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted({int(row) for row in rows}) == list(range(1, 12))
