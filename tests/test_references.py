from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keel.errors import UserError
from keel.references import resolve


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a module and a package of the user's; forgotten again afterwards."""
    (tmp_path / "kl_rules.py").write_text("LIMIT = 3\ndef polite(text): return 'please' in text\n")
    (tmp_path / "kl_pack").mkdir()
    (tmp_path / "kl_pack" / "__init__.py").touch()
    (tmp_path / "kl_pack" / "inner.py").write_text("def f(): return 'inner'\n")
    (tmp_path / "kl_broken.py").write_text("import kl_absent\n")
    (tmp_path / "kl_crash.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_of_a_module_in_the_current_directory() -> None:
    assert resolve("kl_rules:polite")("yes please") is True
    assert resolve("kl_pack.inner:f")() == "inner"


def test_a_function_of_an_installed_module() -> None:
    assert resolve("math:sqrt")(9.0) == 3.0


def test_the_path_is_left_as_it_was() -> None:
    before = list(sys.path)
    resolve("kl_rules:polite")
    assert sys.path == before


def test_a_module_written_after_the_first_look_is_found(folder: Path) -> None:
    with pytest.raises(UserError):
        resolve("kl_late:f")
    seen = folder.stat()
    (folder / "kl_late.py").write_text("def f(): return 1\n")
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as if within one tick of the file system's clock
    assert resolve("kl_late:f")() == 1


@pytest.mark.parametrize("reference", ["kl_rules", "kl_rules:", ":polite", "kl_rules.polite:", "a b:c", "a:b.c", ""])
def test_malformed(reference: str) -> None:
    with pytest.raises(UserError, match="write module:function, such as my_rules:polite"):
        resolve(reference)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("kl_ruels:polite", r'there is no module "kl_ruels".*Did you mean "kl_rules"\?'),
        ("kl_pack.iner:f", r'there is no module "kl_pack.iner".*Did you mean "kl_pack.inner"\?'),
        ("kl_nowhere_at_all.x:f", r'there is no module "kl_nowhere_at_all.x"'),
        ("kl_rules:polit", r'has no function "polit"\. Did you mean "polite"\?'),
        ("kl_rules:LIMIT", "is a int, not a function"),
        ("kl_broken:f", r"importing kl_broken failed: No module named 'kl_absent'"),
        ("kl_crash:f", "importing kl_crash failed: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_resolved_is_said_in_one_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(reference)
