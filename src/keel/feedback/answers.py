"""What can be said of a task in each way of judging.

An answer speaks of responses by number: by the place where each was shown as it comes from a browser, by its position
in the task as it is kept. `placed` turns the one into the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from keel.config.base import Config
from keel.feedback.projects import MOST_RESPONSES, Settings, clean_text
from keel.feedback.refused import Refused, not_valid
from keel.feedback.tables import Kind

Strength = Literal["clear", "slight", "tie", "both_bad"]
ROOM = 100_000
"""Characters that a replacement may have beyond those of its response."""
_Number = Annotated[StrictInt, Field(ge=0, lt=MOST_RESPONSES)]


class Compared(Config):
    """Which of two responses is better, and how clearly; `best` is None in a tie, or where both are bad."""

    best: _Number | None
    strength: Strength

    def contradictions(self) -> Iterator[str]:
        if (self.best is None) != (self.strength in ("tie", "both_bad")):
            yield "best is a response where one is better, and null in a tie or where both are bad"

    def placed(self, order: Sequence[int]) -> Self:
        return self if self.best is None else self.model_copy(update={"best": order[self.best]})

    @property
    def leaning(self) -> float:
        """1 for the first, −1 for the second, half of it where the difference is slight."""
        if self.best is None:
            return 0.0
        return (1.0 if self.best == 0 else -1.0) * (0.5 if self.strength == "slight" else 1.0)

    def distance(self, other: Self, scale: tuple[int, int]) -> float:
        return abs(self.leaning - other.leaning) / 2

    def agrees(self, expected: Self) -> bool:
        return self.best == expected.best


class Ranked(Config):
    """`ranks[k]` is the rank of response k: 1 is best, equal ranks are a tie."""

    ranks: tuple[Annotated[StrictInt, Field(ge=1, le=MOST_RESPONSES)], ...] = Field(min_length=2)

    def placed(self, order: Sequence[int]) -> Self:
        return self.model_copy(update={"ranks": _placed(self.ranks, order)})

    def distance(self, other: Self, scale: tuple[int, int]) -> float:
        """Of all pairs of responses, how far they are apart on average: 1 if turned round, 1/2 if tied by one."""
        pairs = list(combinations(range(len(self.ranks)), 2))
        return sum(abs(_sign(self.ranks, a, b) - _sign(other.ranks, a, b)) / 2 for a, b in pairs) / len(pairs)

    def agrees(self, expected: Self) -> bool:
        return self.distance(expected, (0, 1)) == 0


class Rated(Config):
    """`ratings[k]` is the rating of response k on the project's scale."""

    ratings: tuple[StrictInt, ...] = Field(min_length=1)

    def placed(self, order: Sequence[int]) -> Self:
        return self.model_copy(update={"ratings": _placed(self.ratings, order)})

    def distance(self, other: Self, scale: tuple[int, int]) -> float:
        apart = [abs(a - b) for a, b in zip(self.ratings, other.ratings, strict=True)]
        return sum(apart) / len(apart) / (scale[1] - scale[0])

    def agrees(self, expected: Self) -> bool:
        """To within one step: nobody can know the exact number."""
        return all(abs(a - b) <= 1 for a, b in zip(self.ratings, expected.ratings, strict=True))


class Reviewed(Config):
    """Whether the response is accepted; one that is not may come with its replacement."""

    accepted: StrictBool
    edited: StrictStr | None = None

    def contradictions(self) -> Iterator[str]:
        if self.accepted and self.edited is not None:
            yield "an accepted response needs no replacement"

    def placed(self, order: Sequence[int]) -> Self:
        return self

    def distance(self, other: Self, scale: tuple[int, int]) -> float:
        return float(self.accepted != other.accepted)

    def agrees(self, expected: Self) -> bool:
        return self.accepted == expected.accepted


Answer = Compared | Ranked | Rated | Reviewed
_KINDS: dict[Kind, type[Answer]] = {"compare": Compared, "rank": Ranked, "rate": Rated, "review": Reviewed}
RESPONSES: dict[Kind, tuple[int, int]] = {
    "compare": (2, 2),
    "rank": (2, MOST_RESPONSES),
    "rate": (1, MOST_RESPONSES),
    "review": (1, 1),
}
"""How many responses a task has, at least and at most."""


def read_answer(kind: Kind, given: object, *, responses: int, settings: Settings, length: int = 0) -> Answer:
    """An answer in the numbering it came in; `length` is that of the response where it may be replaced.

    Raises Refused where it does not fit the project or the task.
    """
    try:
        answer = _KINDS[kind].model_validate(given)
    except ValidationError as error:
        raise not_valid(error, "answer", within=("answer",)) from None
    match answer:
        case Compared(best=int(best)) if best >= responses:
            raise Refused("invalid", f"answer.best: {best} is none of {responses} responses", field="answer.best")
        case Ranked(ranks=values) | Rated(ratings=values) if len(values) != responses:
            raise Refused("invalid", f"answer: {len(values)} numbers for {responses} responses", field="answer")
        case Rated(ratings=values) if not all(settings.scale[0] <= value <= settings.scale[1] for value in values):
            lowest, highest = settings.scale
            raise Refused("invalid", f"answer.ratings: give numbers from {lowest} to {highest}", field="answer.ratings")
        case Reviewed(edited=str(text)) if len(text) > length + ROOM:
            most = f"answer.edited: give {length + ROOM} characters or fewer"
            raise Refused("invalid", most, field="answer.edited")
        case Reviewed(edited=str(text)):
            clean_text(text, "answer.edited")
    return answer


def kept_answer(kind: Kind, kept: dict[str, Any]) -> Answer:
    """An answer as the database holds it."""
    return _KINDS[kind].model_validate(kept)


def read_criteria(
    kind: Kind, given: dict[str, Any], *, order: Sequence[int], settings: Settings
) -> dict[str, int | str | None]:
    """The answers to a project's criteria, by position where they name a response. Raises Refused."""
    known = {criterion.name: criterion for criterion in settings.criteria}
    read: dict[str, int | str | None] = {}
    for name, value in given.items():
        criterion = known.get(name)
        if criterion is None:
            raise Refused("invalid", f"criteria: this project does not ask for {name!r}", field="criteria")
        if kind in ("rate", "review"):
            if value not in criterion.options:
                raise Refused("invalid", f"criteria: {name} is one of {', '.join(criterion.options)}", field="criteria")
            read[name] = value
        elif value is None:
            read[name] = None
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(order):
            read[name] = order[value]
        else:
            raise Refused("invalid", f"criteria: {name} is the number of a response, or null", field="criteria")
    return read


def disagreement(answers: Sequence[Answer], scale: tuple[int, int]) -> float:
    """How far two of these answers are apart on average, in [0, 1]; 0 for fewer than two."""
    of_one_kind: Sequence[Any] = answers
    pairs = list(combinations(of_one_kind, 2))
    return sum(float(one.distance(other, scale)) for one, other in pairs) / len(pairs) if pairs else 0.0


def _placed(values: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """What was said of the k-th shown, at the position of that response."""
    by_position = dict(zip(order, values, strict=True))
    return tuple(by_position[position] for position in range(len(order)))


def _sign(ranks: Sequence[int], a: int, b: int) -> int:
    return (ranks[a] > ranks[b]) - (ranks[a] < ranks[b])
