"""The small writing tools that everything else in `runs` stands on."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from keel.errors import UserError
from keel.runs import files


def test_a_failed_rewrite_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "done.json"
    files.write_json(path, {"old": 1})

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"new": 2}
    assert os.listdir(tmp_path) == ["done.json"]


def test_json_has_no_nan() -> None:
    assert files.to_json({"a": [math.nan, (math.inf, 1)], "b": -math.inf}) == '{"a": [null, [null, 1]], "b": null}'


@pytest.mark.parametrize(("content", "problem"), [("{", "is not readable JSON"), ("[1]", "holds no JSON object")])
def test_a_damaged_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "run.json"
    assert files.read_json(path) is None
    path.write_text(content)
    with pytest.raises(UserError, match=f"run.json {problem}"):
        files.read_json(path)


def test_discard_copes_with_an_earlier_one_that_was_killed(tmp_path: Path) -> None:
    for name in ("model", ".model.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    files.discard(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".clock.json.tmp").write_text("half")
    (tmp_path / ".model.gone").mkdir()
    (tmp_path / ".model.gone" / "weights").write_text("old")
    kept = [tmp_path / ".lock", tmp_path / "notes.tmp", tmp_path / "model.gone"]
    for path in kept:
        path.write_text("mine")
    files.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk under runs/x is full"),
        (errno.EDQUOT, "the disk under runs/x is full"),
        (errno.EROFS, "runs/x/file cannot be written (Read-only file system)"),
        (errno.EACCES, "runs/x/file cannot be written (Permission denied)"),
        (errno.EIO, "the disk under runs/x/file fails (Input/output error)"),
    ],
)
def test_what_the_disk_refuses_is_a_sentence(code: int, said: str) -> None:
    with pytest.raises(UserError) as raised, files.disk_trouble(Path("runs/x")):
        raise OSError(code, os.strerror(code), "runs/x/file")
    assert str(raised.value).startswith(said)
    assert "last" in str(raised.value)  # checkpoint: that nothing else is lost


def test_other_errors_are_not_the_disks() -> None:
    with pytest.raises(OSError, match="pipe"), files.disk_trouble(Path("runs/x")):
        raise BrokenPipeError(errno.EPIPE, "a pipe")
    with pytest.raises(SafetensorError, match="header"), files.disk_trouble(Path("runs/x")):
        raise SafetensorError("a header")
    with pytest.raises(UserError, match="is full"), files.disk_trouble(Path("runs/x")):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
