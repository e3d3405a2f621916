"""From a configured source to records, checked and split: what every stage calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from keel.config.data import DataConfig, sources_of
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, LABELS, PROMPTS, RANKINGS, RATINGS, Kind, guess_kind
from keel.data.dialogues import without_system
from keel.data.mix import Mixture
from keel.data.read import read_rows
from keel.data.reading import Reading
from keel.data.reasons import Check
from keel.data.split import in_validation
from keel.errors import UserError
from keel.schema import AnyRecord, Comparison, Demonstration, Dialogue, Label, Prompt

R = TypeVar("R", bound=AnyRecord)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """The usable records of a source, in its order, and what was found in it."""

    train: tuple[R, ...]
    validation: tuple[R, ...]
    check: Check


@dataclass(frozen=True, slots=True)
class Labelled(Generic[R]):
    """A record, and where it is from."""

    record: R
    kind: str | None  # what its source calls it
    source: int = 0  # the number of that source


@dataclass(frozen=True, slots=True)
class Mixed(Generic[R]):
    """The usable records of several sources, source after source."""

    sources: tuple[tuple[DataConfig, Loaded[R]], ...]

    @property
    def train(self) -> tuple[Labelled[R], ...]:
        return tuple(row for number in range(len(self.sources)) for row in self._labelled(number, "train"))

    @property
    def validation(self) -> tuple[Labelled[R], ...]:
        return tuple(row for number in range(len(self.sources)) for row in self._labelled(number, "validation"))

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(data.weight for data, _ in self.sources)

    @property
    def mixture(self) -> Mixture:
        """How often each record of `train` is met."""
        return Mixture(tuple(len(loaded.train) for _, loaded in self.sources), self.weights)

    def _labelled(self, number: int, part: Literal["train", "validation"]) -> list[Labelled[R]]:
        data, loaded = self.sources[number]
        records = loaded.train if part == "train" else loaded.validation
        return [Labelled(record, data.kind, number) for record in records]

    def whole(self) -> Mixed[R]:
        """The same with nothing held out."""
        return Mixed(
            tuple(
                (data, replace(loaded, train=(*loaded.train, *loaded.validation), validation=()))
                for data, loaded in self.sources
            )
        )


def labels_or_comparisons(data: DataConfig) -> Kind[Label] | Kind[Comparison]:
    """What a source holds, by the first of its rows that can be read; comparisons where that is no label."""
    return LABELS if _seen(data) is LABELS else COMPARISONS


def feedback_kind(data: DataConfig) -> Kind[Any]:
    """Comparisons, rankings, ratings or labels, by the first row; comparisons where that is none of them."""
    seen = _seen(data)
    return seen if seen in (RANKINGS, RATINGS, LABELS) else COMPARISONS


def _seen(data: DataConfig) -> Kind[Any] | None:
    first = next((row.value for row in read_rows(data) if row.value is not None), {})
    return guess_kind(first, data)


def load_mixed(data: DataConfig | tuple[DataConfig, ...], kind: Kind[R]) -> Mixed[R]:
    """The records of one kind in one source or several; see `load_prompts`."""
    return Mixed(tuple((source, load(source, kind)) for source in sources_of(data)))


def load_prompts(config: DataConfig, *, fits: Callable[[Prompt], bool] | None = None) -> Loaded[Prompt]:
    """Prompts; those for which `fits` is False are left out as too long.

    Raises UserError if the source cannot be read, too many of its rows are unusable, or nothing is left to train on.
    """
    return load(config, PROMPTS, fits)


def load_demonstrations(
    config: DataConfig, *, fits: Callable[[Demonstration], bool] | None = None
) -> Loaded[Demonstration]:
    """Demonstrations; see `load_prompts`."""
    return load(config, DEMONSTRATIONS, fits)


def load_comparisons(config: DataConfig, *, fits: Callable[[Comparison], bool] | None = None) -> Loaded[Comparison]:
    """Comparisons; see `load_prompts`."""
    return load(config, COMPARISONS, fits)


def read_records(
    config: DataConfig, kind: Kind[R], fits: Callable[[R], bool] | None = None
) -> tuple[tuple[R, ...], Check]:
    """All usable records of a source, up to its `limit`, and the tally of the rows read, however bad it is.

    Raises UserError if the source cannot be read or a field is mapped that this kind of record has not.
    """
    reading = Reading(config, kind, fits)
    return tuple(reading), reading.check


def load(config: DataConfig, kind: Kind[R], fits: Callable[[R], bool] | None = None) -> Loaded[R]:
    """The records of one kind in a source; see `load_prompts`."""
    records, check = read_records(config, kind, fits)
    check.enforce(config.max_unusable, config.name)
    held_out = [in_validation(told_by(record, config.system), config.validation, config.together) for record in records]
    train = tuple(record for record, held in zip(records, held_out, strict=True) if not held)
    validation = tuple(record for record, held in zip(records, held_out, strict=True) if held)
    if not train:
        raise UserError(
            f"{config.name}: every one of its {len(records)} usable rows has a prompt that is held out; "
            "give more prompts, or set validation: 0."
        )
    return Loaded(train, validation, check)


def told_by(record: AnyRecord, system: str | None = None) -> Dialogue:
    """What decides a record's side: its prompt as it was read, and of plain text, which has none, the text."""
    if isinstance(record, Demonstration) and not record.prompt:
        return record.response
    return without_system(record.prompt, system)
