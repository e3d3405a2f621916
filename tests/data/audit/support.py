"""Small preference files, and the audit of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keel.config.data import DataConfig
from keel.data.audit.audit import Audit, audit
from keel.data.audit.faults import Fault
from keel.data.audit.gather import Source
from keel.data.convert import COMPARISONS, Kind

Row = dict[str, Any]


def pair(prompt: str, chosen: str, rejected: str, annotator: str | None = None, **more: Any) -> Row:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
    return row if annotator is None else row | {"annotator": annotator}


def save(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def source(path: str, kind: Kind[Any] = COMPARISONS, held_out: bool | None = None, **config: Any) -> Source:
    return Source(DataConfig(path=path, **config), kind, held_out)


def audit_of(folder: Path, rows: Sequence[Row], kind: Kind[Any] = COMPARISONS, **config: Any) -> Audit:
    return audit([source(save(folder / "rows.jsonl", rows), kind, **{"validation": 0.0} | config)])


def rows_of(found: Audit, fault: Fault) -> list[int]:
    """The rows of a fault, in order."""
    (one,) = [one for one in found.found if one.fault is fault]
    return [place.row for place in one.places(found.gathered)]


def counts(found: Audit) -> dict[str, int]:
    """The faults that were found at all."""
    return {one.fault.value: len(one) for one in found.found if len(one)}
