from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (objects as JSON, bytes as they are), one a line, and gives the file's path."""

    def _write(*rows: dict[str, Any] | bytes, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
        return str(path)

    return _write
