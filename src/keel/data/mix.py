"""Several sources as one: how often the rows of each are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from keel.seeds import Draws


class OfKind(Protocol):
    """Anything that knows what its source calls its kind."""

    @property
    def kind(self) -> str | None: ...


K = TypeVar("K", bound=OfKind)


def by_kind(items: Sequence[K]) -> dict[str | None, list[K]]:
    """The items of each kind, in their order; None is the kind of those whose source names none."""
    kinds: dict[str | None, list[K]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item)
    return kinds


@dataclass(frozen=True)
class Mixture:
    """Sources of `sizes` rows, one after another, each row met `weights` times an epoch.

    A source of n rows and weight w gives round(w * n) rows to every epoch, one at least. They are taken in turn from
    an endless sequence of its rows, each pass in a fresh drawn order: any two rows of a source have been met equally
    often, to within one, at the end of any epoch. At weight 1 an epoch holds every row once.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def whole(cls, size: int) -> Mixture:
        """One source, every row once an epoch."""
        return cls((size,), (1.0,))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many rows each source gives to an epoch."""
        return tuple(max(1, round(w * n)) for n, w in zip(self.sizes, self.weights, strict=True))

    @property
    def epoch_size(self) -> int:
        """Rows an epoch."""
        return sum(self.counts)

    def epoch(self, draws: Draws, purpose: str, number: int) -> list[int]:
        """The row numbers of one epoch, source after source; they count through all sources."""
        rows: list[int] = []
        first = 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            taken = (
                range(size)
                if count == size
                else draws.batch_indices(f"{purpose} source {source}", size, batch=count, start=number * count)
            )
            rows += [first + row for row in taken]
            first += size
        return rows

    def batch(self, draws: Draws, purpose: str, *, batch: int, start: int) -> list[int]:
        """`batch` row numbers from position `start` of the endless sequence of epochs, each in a fresh drawn order."""
        size = self.epoch_size
        slots = draws.batch_indices(purpose, size, batch=batch, start=start)
        if self.counts == self.sizes:
            return slots
        numbers = [position // size for position in range(start, start + batch)]
        epochs = {number: self.epoch(draws, purpose, number) for number in sorted(set(numbers))}
        return [epochs[number][slot] for number, slot in zip(numbers, slots, strict=True)]
