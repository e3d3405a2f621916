"""A source's usable records as they are read, and the tally once they have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic

from keel.config.data import DataConfig
from keel.data.convert import Converted, Kind, R, convert
from keel.data.dialogues import with_system
from keel.data.read import Row, read_rows
from keel.data.reasons import Check, Finding, Reason
from keel.errors import UserError

_GIVE_UP_AFTER = 100_000  # rows


class Reading(Generic[R]):
    """Iterate over it once: the records come in the source's order, up to its `limit`, and `check` tallies them.

    Those for which `fits` is False are left out as too long. Raises UserError if the source cannot be read or a field
    is mapped that this kind of record has not.
    """

    def __init__(self, config: DataConfig, kind: Kind[R], fits: Callable[[R], bool] | None = None) -> None:
        unknown = sorted(config.fields.keys() - set(kind.reads))
        if unknown:
            raise UserError(f"{config.name}: fields maps {unknown[0]}, but {kind.name} have {', '.join(kind.reads)}.")
        self._config, self._kind, self._fits = config, kind, fits
        self._findings: list[Finding] = []
        self._layouts: Counter[str] = Counter()
        self._rows = self._total = self._usable = 0

    def __iter__(self) -> Iterator[R]:
        return (record for _, record in self.with_rows())

    def with_rows(self) -> Iterator[tuple[Row, R]]:
        """The records, each beside the row that it was read from."""
        for row in read_rows(self._config):
            if self._rows == _GIVE_UP_AFTER:
                self._refuse_if_all_are_unusable()
            self._rows += 1
            for converted in convert(row, self._kind, self._config):
                record = self._tallied(row, converted)
                if record is not None:
                    yield row, record
                    if self._usable == self._config.limit:
                        return

    @property
    def check(self) -> Check:
        """The tally of what has been read so far."""
        return Check(self._total, self._usable, tuple(self._findings), self._rows, dict(self._layouts))

    def _refuse_if_all_are_unusable(self) -> None:
        """What is no data at all, however long, should neither be read to its end nor kept row by row."""
        so_far = self.check
        if so_far.unusable == so_far.total:
            so_far.enforce(1.0, f"{self._config.name}, read so far")

    def _tallied(self, row: Row, converted: Converted[R]) -> R | None:
        self._total += 1
        self._findings.extend(converted.findings)
        if converted.layout is not None:
            self._layouts[converted.layout] += 1
        record = converted.record
        if record is not None and self._config.system is not None:
            record = replace(record, prompt=with_system(record.prompt, self._config.system))
        if record is not None and self._fits is not None and not self._fits(record):
            self._findings.append(Finding(Reason.TOO_LONG, row.file, row.number))
            return None
        self._usable += record is not None
        return record
