"""Checkpoints: tensors and plain state in a directory that is whole, or is not taken for a checkpoint.

    step-00000042/
        shard-00001-….safetensors   tensors: what each process held of them (`keel.dist.shards`)
        state.json                  {"step": 42, "state": everything else}
        manifest.json               size and SHA-256 of the others, written last

It is written beside (`.step-00000042.tmp-PID`), flushed to the disk and renamed. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.runs import files
from keel.runs.identity import hash_file

MANIFEST = "manifest.json"
STATE = "state.json"
_FINAL = re.compile(r"step-(\d{8,})(\.new)?")
_LEFTOVER = re.compile(r"\.step-\d+.*\.(?:gone|tmp-(\d+))")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint: `state` exactly as it was saved, its tensors in files under `path`."""

    step: int
    state: Mapping[str, Any]
    path: Path


def save(folder: Path, step: int, state: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> Path:
    """Write checkpoint `step` into `folder` and return its path; `write` puts its tensors into the directory given.

    A checkpoint of the same step is replaced without a moment in which neither is whole. Checkpoints of later
    steps belong to a line that this one replaces (they were damaged, and skipped) and are removed, as are the
    unfinished ones of dead processes.

    Raises ValueError if `state` is not plain JSON (dicts with string keys, lists, strings, finite numbers, booleans,
    None), because then it would not come back as it was.
    """
    if step < 0:
        raise ValueError(f"step {step} is negative")
    _refuse_unless_plain("state", state)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    final = step_path(folder, step)
    beside = folder / f".{final.name}.tmp-{os.getpid()}"
    try:
        beside.mkdir()
        if write is not None:
            write(beside.absolute())
        (beside / STATE).write_text(json.dumps({"step": step, "state": state}, allow_nan=False), encoding="utf-8")
        _write_manifest(beside)
        files.sync_tree(beside)
    except Exception:  # of a full disk it would keep what others may need
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _put_in_place(beside, final)
    for path in _newest_first(folder):
        if _step(path) > step:
            files.discard(path)
    return final


def latest(folder: Path, warn: Callable[[str], None], before: int | None = None) -> Path | None:
    """The newest whole checkpoint (of a step below `before`), or None; newer ones that are not whole get a sentence."""
    damaged: list[tuple[Path, str]] = []
    found = None
    for path in _newest_first(folder):
        if before is not None and _step(path) >= before:
            continue
        problem = verify(path)
        if problem is None:
            found = path
            break
        damaged.append((path, problem))
    instead = f"{found.name} is used instead" if found else "no whole one is left to use instead"
    for path, problem in damaged:
        warn(f"Checkpoint {path.name} in {folder} is not whole ({problem}); {instead}.")
    return found


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file has the size and SHA-256 of its manifest."""
    try:
        listed = json.loads((path / MANIFEST).read_bytes())["files"]
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    if any(name != Path(name).name for name in expected):
        return f"{MANIFEST} names files outside the checkpoint"
    for name, (size, _) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    for name, digest in _hashes(path / name for name in expected).items():
        if digest != expected[name][1]:
            return f"{name} is not what was written: its SHA-256 differs"
    return None if STATE in expected else f"{MANIFEST} does not list {STATE}"


def load(path: Path) -> Snapshot:
    """Read a checkpoint. Raises ValueError if it is not whole."""
    problem = verify(path)
    if problem is not None:
        raise ValueError(f"checkpoint {path} is not whole: {problem}")
    content = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Snapshot(step=content["step"], state=content["state"], path=path.absolute())


def prune(folder: Path, *, keep_last: int, keep: Collection[int] = ()) -> None:
    """Remove all checkpoints but the newest `keep_last` (at least 1) and those of the steps in `keep`."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, which must be ≥ 1")
    for path in _newest_first(folder)[keep_last:]:
        if _step(path) not in keep:
            files.discard(path)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, in order."""
    return sorted({_step(path) for path in _newest_first(folder)})


def step_path(folder: Path, step: int) -> Path:
    """Where checkpoint `step` lies in `folder`."""
    return folder / f"step-{step:08d}"


def _refuse_unless_plain(where: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}, which is not a string")
            _refuse_unless_plain(f"{where}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unless_plain(f"{where}.{index}", item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
    elif not isinstance(value, str | int | None):
        raise ValueError(f"{where} is of type {type(value).__name__}, which JSON would not give back")


def _write_manifest(path: Path) -> None:
    hashes = _hashes(sorted(path.iterdir()))
    entries = {name: {"size": (path / name).stat().st_size, "sha256": digest} for name, digest in hashes.items()}
    (path / MANIFEST).write_text(json.dumps({"files": entries}, indent=2), encoding="utf-8")


def _hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by file name. Several at a time, for large checkpoints have many files and hashing leaves the lock."""
    paths = list(paths)
    with ThreadPoolExecutor() as threads:
        return dict(zip([path.name for path in paths], threads.map(hash_file, paths), strict=True))


def _put_in_place(beside: Path, final: Path) -> None:
    """A directory cannot be renamed onto another, so a replacement waits as `.new` until the old one is gone."""
    if not final.exists():
        files.move(beside, final)
        return
    waiting = final.with_name(f"{final.name}.new")
    files.move(beside, waiting)
    files.discard(final)
    files.move(waiting, final)


def _sweep(folder: Path) -> None:
    """Finish what a killed process left: removals, unfinished checkpoints, and a replacement that waits."""
    for path in folder.iterdir():
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover and not (leftover[1] and _alive(int(leftover[1]))):
            shutil.rmtree(path)
    for waiting in folder.glob("step-*.new"):
        final = waiting.with_suffix("")
        if final.exists():
            files.discard(final)
        files.move(waiting, final)


def _alive(pid: int) -> bool:
    """Whether another process runs under this id; what this process left behind is no longer being written."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _newest_first(folder: Path) -> list[Path]:
    """By step, a waiting replacement before what it replaces."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _FINAL.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.suffix == ".new"), reverse=True)


def _step(path: Path) -> int:
    match = _FINAL.fullmatch(path.name)
    assert match, path
    return int(match[1])
