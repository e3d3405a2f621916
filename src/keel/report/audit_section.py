"""The audit of a run's preference data, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pydantic import ValidationError

from keel.config.data import DataConfig
from keel.data.audit.audit import Audit, audit
from keel.data.audit.gather import Source
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, PROMPTS, guess_kind
from keel.data.files import data_files
from keel.data.read import read_rows
from keel.errors import UserError
from keel.report import audit_words
from keel.report.facts import Row, labels
from keel.report.numbers import ABSENT, dig
from keel.runs.read import RunView

_MOST_BYTES = 64 * 2**20  # of data that are audited while a page is made
_GUESSED_FROM = 100  # rows


def of_runs(runs: Sequence[RunView]) -> tuple[list[str], list[Row]]:
    """What is worth saying, and a row for every finding and figure of any run."""
    notes: list[str] = []
    found: list[dict[str, str]] = []
    for run, name in zip(runs, labels(runs), strict=True):
        lines: dict[str, str] = {}
        try:
            sources = _sources(run)
            if sources:
                lines = _lines(audit(sources))
        except (UserError, ValidationError) as error:
            notes.append(f"{name + ': ' if len(runs) > 1 else ''}Not audited: {error}")
        found.append(lines)
    names = dict.fromkeys(name for lines in found for name in lines)
    return notes, [Row(name, "", tuple(lines.get(name, ABSENT) for lines in found)) for name in names]


def _lines(found: Audit) -> dict[str, str]:
    lines = [*audit_words.findings(found, rows=0), *audit_words.figures(found)]
    return {line.name: line.value for line in lines}


def _sources(run: RunView) -> list[Source]:
    """What was collected, else the files that the recipe's stages learn preferences from; none that has gone."""
    collected = run.path / "collect" / "comparisons" / "comparisons.jsonl"
    if collected.is_file():
        configs = [DataConfig(path=str(collected))]
    else:
        given = dig(run.recipe, "reward", "data") or dig(run.recipe, "direct", "data")
        listed = given if isinstance(given, list) else [given]
        configs = [DataConfig.model_validate(one) for one in listed if isinstance(one, dict)]
    return [source for config in configs if (source := _source(config)) is not None]


def _source(config: DataConfig) -> Source | None:
    files = data_files(config.path) if config.path is not None else None
    if not files or config.map is not None:
        return None
    size = sum(file.stat().st_size for file in files)
    if size > _MOST_BYTES:
        raise UserError(f"{config.name} is too large ({size / 2**20:,.0f} MiB) to do it here; use keel data audit.")
    rows = [row.value for row in islice(read_rows(config), _GUESSED_FROM) if row.value is not None]
    kind = next((found for row in rows if (found := guess_kind(row, config)) is not None), COMPARISONS)
    return None if kind in (PROMPTS, DEMONSTRATIONS) else Source(config, kind)
