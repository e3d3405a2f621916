"""What makes a stage the same stage: its settings, and the contents of what it reads."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.errors import UserError
from keel.runs import files
from keel.runs.layout import IDENTITY

ABSENT = "(absent)"
_SETTLED = 2_000_000_000  # nanoseconds after which a second write must show in the time of change


@dataclass(frozen=True)
class Identity:
    """The settings (dotted key → JSON value, see `flatten`) and inputs (name → hash) that decide a stage's result."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over settings and inputs, independent of their order."""
        return hashlib.sha256(_canonical(self.to_dict()).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; `from_dict` reads it back."""
        return {"config": dict(self.config), "inputs": dict(self.inputs)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Identity:
        try:
            return cls(config=dict(content["config"]), inputs=dict(content["inputs"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"an {IDENTITY} does not say what its stage was made with; it was changed since.") from None

    @classmethod
    def read(cls, stage: Path) -> Identity:
        """What the stage in that directory was made with. Raises UserError if nothing says so."""
        content = files.read_json(stage / IDENTITY)
        if content is None:
            raise UserError(
                f"{stage} is finished but has no {IDENTITY}; it was not made by keel, or was changed since."
            )
        return cls.from_dict(content)


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{"ppo": {"reward": [{"weight": 1.0}]}} → {"ppo.reward.0.weight": 1.0}; empty ones stay as values."""
    return dict(_leaves("", nested))


def differences(old: Identity, new: Identity) -> list[str]:
    """One "key: old → new" for each setting, then for each input, that differs; empty if the stages are the same."""
    settings = [f"{key}: {before} → {after}" for key, before, after in _changed(old.config, new.config)]
    inputs = [
        f"input {name}: {_short(before)} → {_short(after)}" for name, before, after in _changed(old.inputs, new.inputs)
    ]
    return settings + inputs


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; one that has not changed since it was last asked for is not read."""
    status = path.stat()
    if time.time_ns() - status.st_mtime_ns < _SETTLED:
        return _read_digest(path)
    return _digest(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


def _read_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _node: int, _size: int, _changed: int) -> str:
    return _read_digest(path)


def hash_directory(path: Path) -> str:
    """SHA-256 over the names, sizes and contents of all files below `path`; where `path` lies plays no part.

    Links are followed. Raises ValueError if `path` is no directory or holds no file.
    """
    files = sorted(Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    if not files:
        raise ValueError(f"{path} is no directory with files in it")
    rows = sorted([file.relative_to(path).as_posix(), file.stat().st_size, hash_file(file)] for file in files)
    return hashlib.sha256(_canonical(rows).encode()).hexdigest()


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, Mapping) and value:
        items = iter(value.items())
    elif isinstance(value, list | tuple) and value:
        items = iter(enumerate(value))
    else:
        yield prefix, value
        return
    for key, item in items:
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), item)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Compared as JSON, because one side comes from a file (tuples are lists there)."""
    for key in [*new, *(key for key in old if key not in new)]:
        before = _canonical(old[key]) if key in old else ABSENT
        after = _canonical(new[key]) if key in new else ABSENT
        if before != after:
            yield key, before, after


def _short(text: str) -> str:
    return text if text == ABSENT else text.strip('"')[:12]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
