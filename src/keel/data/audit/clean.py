"""What is fit to use, written as it was read, and beside it what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.data.audit.audit import Audit
from keel.data.audit.faults import Fault, Place
from keel.data.audit.gather import Gathered, Source
from keel.data.write import write_jsonl, write_rows
from keel.errors import UserError
from keel.schema import AnyRecord


@dataclass(frozen=True)
class Cleaned:
    """What was written where, and how many records were left out for which fault.

    `unsure`: prompts of it that may yet be nearly held out (`Splits.unsure`).
    """

    kept: int
    left_out: Mapping[Fault, int]
    out: Path
    beside: Path
    unsure: int


def beside(out: Path) -> Path:
    """Where the rows that are left out of `out` go: clean.jsonl → clean.left-out.jsonl."""
    return out.with_name(f"{out.stem}.left-out.jsonl")


def clean(audit: Audit, out: Path) -> Cleaned:
    """Write what is fit to use of the sources that are not held out; of rankings the comparisons they stand for.

    A record is left out for the first fault that makes it unfit, in the order of `Fault`; one line of JSON says so:
    reason, meaning, file, row. Ties are listed too, for a comparison cannot say them. Each file appears whole or not
    at all. Raises UserError if nothing would be left, the sources hold different kinds of record, or have changed since
    they were audited.
    """
    sources = [(number, source) for number, source in enumerate(audit.gathered.sources) if not source.held_out]
    if len({source.rated and source.kind.name for _, source in sources}) > 1:
        raise UserError("a file holds one kind of record, and these are of several; clean them apart.")
    left_out = _left_out(audit, [number for number, _ in sources])
    unfit = {(place.source, place.position) for _, place in left_out}
    total = sum(audit.gathered.checks[number].usable for number, _ in sources)
    kept = total - sum(place.position is not None for _, place in left_out)
    if not kept:
        raise UserError(f"--clean {out}: no row is fit to use, so nothing was written.")
    write_jsonl(out, _fit(audit.gathered, sources, unfit))
    write_rows(beside(out), (_row(fault, place) for fault, place in left_out))
    unsure = audit.splits.unsure if audit.splits.by_file else 0
    counts = Counter(fault for fault, _ in left_out)
    return Cleaned(kept, {fault: counts[fault] for fault in Fault if counts[fault]}, out, beside(out), unsure)


def _left_out(audit: Audit, sources: Sequence[int]) -> list[tuple[Fault, Place]]:
    """Each record or refused row once, by source and row."""
    found: dict[tuple[int, int | None, str, int, int], tuple[Fault, Place]] = {}
    for one in audit.found:
        if one.fault.unfit(audit.splits.by_file) or one.fault is Fault.TIE:
            for number, place in enumerate(one.places(audit.gathered)):
                # A row of a ranking may be refused for several of its pairs, and each is a record of its own.
                apart = number if place.position is None else -1
                if place.source in sources:
                    found.setdefault((place.source, place.position, place.file, place.row, apart), (one.fault, place))
    order = {file: number for number, file in enumerate(audit.gathered.files)}
    return sorted(found.values(), key=lambda each: (each[1].source, order.get(each[1].file, -1), each[1].row))


def _row(fault: Fault, place: Place) -> dict[str, Any]:
    reason = f"{fault.value}: {place.detail}" if place.detail else fault.value
    return {"reason": reason, "meaning": fault.sentence, "file": place.file, "row": place.row}


def _fit(
    gathered: Gathered, sources: Sequence[tuple[int, Source]], unfit: set[tuple[int, int | None]]
) -> Iterator[AnyRecord]:
    """The second reading: the same records in the same order."""
    for number, source in sources:
        count = 0
        for position, record in enumerate(source.reading):
            count += 1
            if (number, position) not in unfit:
                yield record
        if count != gathered.checks[number].usable:
            raise UserError(f"{source.name} has changed while it was audited; nothing was written. Audit it again.")
