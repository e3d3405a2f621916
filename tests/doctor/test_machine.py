from __future__ import annotations

import fcntl
import os
import re
from importlib import metadata
from pathlib import Path

import pytest

from keel.doctor import machine
from keel.doctor.finding import Finding, Mark
from keel.doctor.machine import (
    check_disk,
    check_file_system,
    check_libraries,
    check_machine,
    check_optional,
    check_python,
    check_threads,
    nearest_folder,
)


def test_this_machine_is_well(tmp_path: Path) -> None:
    """The suite runs on it."""
    findings = check_machine(tmp_path / "runs" / "mine")
    assert [finding for finding in findings if finding.mark is Mark.BAD] == []
    said = {finding.what: finding.said for finding in findings}
    assert f"torch {metadata.version('torch')}" in said["libraries"]
    assert str(tmp_path) in said["disk"]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize(("version", "mark"), [("3.10.14", Mark.BAD), ("3.11.0", Mark.GOOD), ("3.14.0rc1", Mark.GOOD)])
def test_python_is_held_to_the_package(version: str, mark: Mark) -> None:
    assert check_python(version).mark is mark


def test_a_library_that_is_missing_or_too_old_is_named_with_its_mend() -> None:
    findings = check_libraries(["typer", "pydantic>=999", "no-such-library>=2", 'pytest>=999; extra == "dev"'])
    assert [(finding.what, finding.mark) for finding in findings] == [
        ("pydantic", Mark.BAD),
        ("no-such-library", Mark.BAD),
    ]
    assert findings[0].said == f"{metadata.version('pydantic')}, where pydantic>=999 is needed"
    assert findings[1].said.startswith("missing")
    assert findings[1].mend == 'pip install --upgrade "no-such-library>=2"'
    (well,) = check_libraries(["typer", "pydantic>=2"])
    assert (well.mark, well.said) == (
        Mark.GOOD,
        f"typer {metadata.version('typer')}, pydantic {metadata.version('pydantic')}",
    )


def test_what_is_optional_never_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_version", lambda name: "1.0" if name == "wandb" else None)
    assert {finding.what: finding.mark for finding in check_optional()} == {
        "tensorboard": Mark.NOTE,
        "wandb": Mark.GOOD,
    }


def test_a_full_disk_is_bad() -> None:
    assert check_disk(Path("/"), 0.9).mark is Mark.BAD
    assert check_disk(Path("/"), 1.1).mark is Mark.GOOD


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_to_is_bad(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert check_file_system(tmp_path).mark is Mark.BAD
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_that_does_not_sync_or_lock_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert check_file_system(tmp_path).mark is Mark.BAD
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        assert check_file_system(tmp_path).mark is Mark.BAD
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)  # says yes to everybody
        assert "does not keep a second one out" in check_file_system(tmp_path).said
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_directory_is_found_upwards(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "a").mkdir()
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path / "a"


def test_a_mend_belongs_to_what_is_bad() -> None:
    with pytest.raises(AssertionError):
        Finding("a", Mark.BAD, "b")
    with pytest.raises(AssertionError):
        Finding("a", Mark.NOTE, "b", "c")


def test_more_threads_than_cores_are_too_many() -> None:
    cores = os.cpu_count() or 1
    assert check_threads({}).said == f"as many as cores ({cores})"
    assert check_threads({"OMP_NUM_THREADS": "1"}).mark is Mark.NOTE
    found = check_threads({"OMP_NUM_THREADS": str(cores + 1), "MKL_NUM_THREADS": ""})
    assert found.mark is Mark.BAD
    assert found.mend == f"unset OMP_NUM_THREADS, or give at most {cores}"


def test_free_memory_is_no_more_than_there_is() -> None:
    said = next(finding.said for finding in check_machine(Path.cwd()) if finding.what == "cores")
    total, free = (float(number) for number in re.findall(r"(\d+\.\d) ", said))
    assert 0 < free <= total
