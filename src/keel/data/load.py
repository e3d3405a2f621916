"""From a configured source to records, checked and split: what every stage calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, PROMPTS, Kind
from keel.data.reading import Reading
from keel.data.reasons import Check
from keel.data.split import in_validation
from keel.errors import UserError
from keel.schema import Comparison, Demonstration, Dialogue, Prompt

R = TypeVar("R", bound=Prompt | Demonstration | Comparison)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """The usable records of a source, in its order, and what was found in it."""

    train: tuple[R, ...]
    validation: tuple[R, ...]
    check: Check


def load_prompts(config: DataConfig, *, fits: Callable[[Prompt], bool] | None = None) -> Loaded[Prompt]:
    """Prompts; those for which `fits` is False are left out as too long.

    Raises UserError if the source cannot be read, too many of its rows are unusable, or nothing is left to train on.
    """
    return _load(config, PROMPTS, fits)


def load_demonstrations(
    config: DataConfig, *, fits: Callable[[Demonstration], bool] | None = None
) -> Loaded[Demonstration]:
    """Demonstrations; see `load_prompts`."""
    return _load(config, DEMONSTRATIONS, fits)


def load_comparisons(config: DataConfig, *, fits: Callable[[Comparison], bool] | None = None) -> Loaded[Comparison]:
    """Comparisons; see `load_prompts`."""
    return _load(config, COMPARISONS, fits)


def read_records(
    config: DataConfig, kind: Kind[R], fits: Callable[[R], bool] | None = None
) -> tuple[tuple[R, ...], Check]:
    """All usable records of a source, up to its `limit`, and the tally of the rows read, however bad it is.

    Raises UserError if the source cannot be read or a field is mapped that this kind of record has not.
    """
    reading = Reading(config, kind, fits)
    return tuple(reading), reading.check


def _load(config: DataConfig, kind: Kind[R], fits: Callable[[R], bool] | None) -> Loaded[R]:
    records, check = read_records(config, kind, fits)
    check.enforce(config.max_unusable, config.name)
    held_out = [in_validation(told_by(record), config.validation) for record in records]
    train = tuple(record for record, held in zip(records, held_out, strict=True) if not held)
    validation = tuple(record for record, held in zip(records, held_out, strict=True) if held)
    if not train:
        raise UserError(
            f"{config.name}: every one of its {len(records)} usable rows has a prompt that is held out; "
            "give more prompts, or set validation: 0."
        )
    return Loaded(train, validation, check)


def told_by(record: Prompt | Demonstration | Comparison) -> Dialogue:
    """What decides a record's side: its prompt, and of plain text, which has none, the text."""
    return record.response if isinstance(record, Demonstration) and not record.prompt else record.prompt
