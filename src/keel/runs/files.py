"""Writing that survives a kill: under its final name a file or directory is whole, or it is not there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keel.errors import UserError, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` every file and directory below and including `path`."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def move(source: Path, target: Path) -> None:
    """Rename within one file system, and wait until the new name is on the disk."""
    os.replace(source, target)
    sync(target.parent)


def discard(path: Path) -> None:
    """Remove a directory so that its name is gone at once, even if the removal is killed half-way."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left directly in `folder` under a temporary name."""
    for path in folder.glob(".*.tmp"):
        path.unlink()
    for path in folder.glob(".*.gone"):
        shutil.rmtree(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content` in one step. One writer at a time."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(content)
        sync(beside)
        move(beside, path)
    except BaseException:  # Ctrl-C too: nothing half-written is left where no run sweeps
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step; NaN and infinities become null."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises UserError if it cannot be read as one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it or remove it.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore it or remove it.")
    return value


@contextmanager
def disk_trouble(out: Path) -> Iterator[None]:
    """Say what the disk refuses in a sentence: a run in `out` has lost nothing but what came after its last checkpoint.

    Raises UserError for a full, read-only or failing disk, and for missing rights.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or out
        if error.errno in _FULL:
            raise _full(out, error) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(
                f"{where} cannot be written ({error.strerror}); mend that, or give another --out, and start again: a "
                "run goes on from its last checkpoint"
            ) from error
        if error.errno == errno.EIO:
            raise UserError(
                f"the disk under {where} fails ({error.strerror}); start again when it is mended: a run goes on from "
                "its last whole checkpoint"
            ) from error
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error):
            raise _full(out, error) from error
        raise


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Say in a sentence that a result cannot be written to `out`. Raises UserError for whatever the system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); mend that, or write elsewhere") from error


def _full(out: Path, error: Exception) -> UserError:
    return UserError(
        f"the disk under {out} is full ({first_line(error)}); free some of it: the same command, without --fresh-from, "
        "goes on from the last checkpoint. ppo.keep_checkpoints, and so in the other stages, says how many stay"
    )


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Valid JSON (which has no NaN and no infinity: they become null); finite floats survive exactly."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
