"""Preference data into columns: a few numbers a label, fingerprints in place of texts. Bounded: some 100 bytes a label
and 400 a prompt, whatever the texts' lengths."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keel.config.data import DataConfig
from keel.data.audit.simhash import Sketches, sketches
from keel.data.audit.texts import fingerprint, normal, oddities, prompt_text
from keel.data.convert import COMPARISONS, LABELS, RATINGS, Kind
from keel.data.judgements import from_ratings
from keel.data.load import told_by
from keel.data.reading import Reading
from keel.data.reasons import Check
from keel.data.split import in_validation
from keel.schema import CHOSEN_ENDED, CHOSEN_FIRST, REJECTED_ENDED, Comparison, Label, Rating

_SKETCHED_AT_ONCE = 2048  # prompts
_TOLD_EVERY = 2048  # records
_COMPARED = 200  # ratings of one prompt, each two of which are a comparison

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
Progress = Callable[[str, int], None]
"""Told what is being done and how many records have been read."""


@dataclass(frozen=True)
class Source:
    """One source of comparisons, rankings, ratings or labels.

    `held_out`: whether all of it is judged on and none of it trained on; where that is None, its prompts are split by
    their hash as every stage splits them.
    """

    config: DataConfig
    kind: Kind[Any]
    held_out: bool | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def reading(self) -> Reading[Any]:
        """Rankings are read as the comparisons they stand for."""
        return Reading(self.config, self.kind if self.rated else COMPARISONS)

    @property
    def rated(self) -> bool:
        """Whether each reply was judged by itself."""
        return self.kind in (RATINGS, LABELS)

    def holds_out(self, record: Comparison | Rating | Label) -> bool:
        """Whether the record is judged on and not trained on."""
        if self.held_out is not None:
            return self.held_out
        return in_validation(told_by(record, self.config.system), self.config.validation, self.config.together)


@dataclass(frozen=True)
class Labels:
    """n labels "this reply rather than that one", each column [n]. Fingerprints of replies know no white space or case.

    `first` is 1 where the chosen reply stood first, 0 where second, -1 where no order is known. `position` counts the
    records of the label's source; where the label follows from two ratings it is -1, and `row` that of the better one.
    """

    prompt: Int64s  # index into Prompts
    chosen: UInt64s
    rejected: UInt64s
    exact: UInt64s  # of prompt and replies to the last character
    annotator: Int64s  # index into `Gathered.annotators`, -1 where nobody is named
    chosen_length: Int64s  # characters
    rejected_length: Int64s
    chosen_odd: NDArray[np.uint8]  # Oddity
    rejected_odd: NDArray[np.uint8]
    first: NDArray[np.int8]
    first_probability: NDArray[np.float64]  # NaN where it is not known
    source: Int64s
    file: Int64s  # index into `Gathered.files`
    row: Int64s
    position: Int64s

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Ratings:
    """m ratings or labels of single replies, each column [m]; see Labels."""

    prompt: Int64s
    reply: UInt64s
    exact: UInt64s
    annotator: Int64s
    number: NDArray[np.float64]  # what it was given; 1 accepted, 0 not
    scale: Int64s  # equal numbers are on equal scales
    length: Int64s
    odd: NDArray[np.uint8]
    source: Int64s
    file: Int64s
    row: Int64s
    position: Int64s


@dataclass(frozen=True)
class Prompts:
    """Every prompt of every source once, as it is written; `key` knows no white space or case.

    `file` and `row` are those it was first met in.
    """

    key: UInt64s
    held_out: NDArray[np.bool_]
    source: Int64s
    file: Int64s
    row: Int64s
    sketches: Sketches


@dataclass(frozen=True)
class Gathered:
    """All that the audit looks at."""

    sources: Sequence[Source]
    checks: Sequence[Check]
    labels: Labels
    ratings: Ratings
    prompts: Prompts
    annotators: Sequence[str]
    files: Sequence[str]
    not_compared: int  # ratings beyond the first _COMPARED of their prompt

    @property
    def prompt_keys(self) -> UInt64s:
        """The prompt's key, a label [n]."""
        return self.prompts.key[self.labels.prompt]


class _Numbers(dict[Any, int]):
    """Numbers things in the order in which they are met."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]


_PLACE = {"prompt": "q", "annotator": "q", "source": "q", "file": "q", "row": "q", "position": "q"}
_LABEL_TYPES = _PLACE | {
    "chosen": "Q",
    "rejected": "Q",
    "exact": "Q",
    "chosen_length": "q",
    "rejected_length": "q",
    "chosen_odd": "B",
    "rejected_odd": "B",
    "first": "b",
    "first_probability": "d",
}
_RATING_TYPES = _PLACE | {"reply": "Q", "exact": "Q", "number": "d", "scale": "q", "length": "q", "odd": "B"}


class _Table:
    """Columns that grow."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in types.items()}

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self._columns[name].append(value)

    def done(self) -> dict[str, Any]:
        """The columns as numpy's, without a copy."""
        return {name: np.frombuffer(column, column.typecode) for name, column in self._columns.items()}


class _Prompts:
    """The prompts as they are met; their texts are sketched some at a time, and forgotten."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._columns = _Table({"key": "Q", "held_out": "b", "source": "q", "file": "q", "row": "q"})
        self._waiting: list[str] = []
        self._sketches: list[Sketches] = []

    def number(
        self, record: Comparison | Rating | Label, written: str, place: Mapping[str, int], source: Source
    ) -> int:
        """The prompt's number; `written` is its text."""
        known = fingerprint(written) + (place["source"] << 64)
        number = self._known.get(known)
        if number is None:
            number = self._known[known] = len(self._known)
            plain = normal(written)
            self._columns.add(
                key=fingerprint(plain),
                held_out=source.holds_out(record),
                **{name: place[name] for name in ("source", "file", "row")},
            )
            self._waiting.append(plain)
            if len(self._waiting) == _SKETCHED_AT_ONCE:
                self._sketch()
        return number

    def _sketch(self) -> None:
        self._sketches.append(sketches(self._waiting))
        self._waiting = []

    def done(self) -> Prompts:
        self._sketch()
        self._known.clear()
        columns = self._columns.done()
        return Prompts(**columns | {"held_out": columns["held_out"] > 0}, sketches=Sketches.joined(self._sketches))


class Gatherer:
    """Reads sources one after another into columns."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._labels, self._ratings = _Table(_LABEL_TYPES), _Table(_RATING_TYPES)
        self._prompts = _Prompts()
        self._annotators, self._files, self._scales = _Numbers(), _Numbers(), _Numbers()
        self._read = 0

    def gather(self, sources: Sequence[Source]) -> Gathered:
        """Raises UserError where a source cannot be read."""
        checks = []
        for number, source in enumerate(sources):
            reading = source.reading
            for position, (row, record) in enumerate(self._told(reading.with_rows(), source.name)):
                prompt = prompt_text(record.prompt)
                place = {
                    "annotator": -1 if record.annotator is None else self._annotators[record.annotator],
                    "source": number,
                    "file": self._files[row.file],
                    "row": row.number,
                    "position": position,
                }
                place["prompt"] = self._prompts.number(record, prompt, place, source)
                if isinstance(record, Comparison):
                    self._compared(record, prompt, place)
                else:
                    self._rated(record, prompt, place)
            checks.append(reading.check)
        ratings = Ratings(**self._ratings.done())
        not_compared = self._imply(ratings)
        return Gathered(
            sources, checks, Labels(**self._labels.done()), ratings, self._prompts.done(), list(self._annotators),
            list(self._files), not_compared,
        )  # fmt: skip

    def _told(self, records: Iterator[Any], name: str) -> Iterator[Any]:
        for record in records:
            self._read += 1
            if self._read % _TOLD_EVERY == 0:
                self._progress(f"reading {name}", self._read)
            yield record

    def _compared(self, pair: Comparison, prompt: str, place: Mapping[str, int]) -> None:
        self._labels.add(
            chosen=fingerprint(normal(pair.chosen)),
            rejected=fingerprint(normal(pair.rejected)),
            exact=fingerprint("\0".join((prompt, pair.chosen, pair.rejected))),
            chosen_length=len(pair.chosen),
            rejected_length=len(pair.rejected),
            chosen_odd=oddities(pair.chosen, pair.extra.get(CHOSEN_ENDED)),
            rejected_odd=oddities(pair.rejected, pair.extra.get(REJECTED_ENDED)),
            first=_order(pair.extra.get(CHOSEN_FIRST)),
            first_probability=float("nan") if pair.first_probability is None else pair.first_probability,
            **place,
        )

    def _rated(self, record: Rating | Label, prompt: str, place: Mapping[str, int]) -> None:
        number, scale = (
            (record.rating, record.scale) if isinstance(record, Rating) else (float(record.accepted), "accepted")
        )
        self._ratings.add(
            reply=fingerprint(normal(record.response)),
            exact=fingerprint("\0".join((prompt, record.response, repr(number)))),
            number=number,
            scale=self._scales[scale],
            length=len(record.response),
            odd=oddities(record.response),
            **place,
        )

    def _imply(self, ratings: Ratings) -> int:
        """The comparisons that ratings of one prompt stand for, by `from_ratings`; a text is its fingerprint there.

        Their number grows with the square of the ratings, so only the first _COMPARED of a prompt meet. Returns how
        many ratings are left.
        """
        order = np.argsort(ratings.prompt, kind="stable")
        left = 0
        for whole in np.split(order, np.flatnonzero(np.diff(ratings.prompt[order])) + 1):
            group = whole[:_COMPARED]
            left += len(whole) - len(group)
            if len(group) < 2:
                continue
            place_of = {str(ratings.reply[at]): at for at in group.tolist()[::-1]}
            light = [
                Rating("", str(ratings.reply[at]), float(ratings.number[at]), None, f"{judge} {scale}")
                for at, judge, scale in zip(
                    group.tolist(), ratings.annotator[group].tolist(), ratings.scale[group].tolist(), strict=True
                )
            ]
            for pair in from_ratings(light, "drop"):
                self._implied(ratings, place_of[pair.chosen], place_of[pair.rejected], str(pair.annotator))
        return left

    def _implied(self, ratings: Ratings, chosen: int, rejected: int, judge: str) -> None:
        replies = int(ratings.reply[chosen]), int(ratings.reply[rejected])
        self._labels.add(
            prompt=ratings.prompt[chosen],
            chosen=replies[0],
            rejected=replies[1],
            exact=fingerprint(f"{ratings.prompt[chosen]} {replies}"),
            annotator=int(judge.split()[0]),
            chosen_length=ratings.length[chosen],
            rejected_length=ratings.length[rejected],
            chosen_odd=ratings.odd[chosen],
            rejected_odd=ratings.odd[rejected],
            first=-1,
            first_probability=float("nan"),
            source=ratings.source[chosen],
            file=ratings.file[chosen],
            row=ratings.row[chosen],
            position=-1,
        )


def _order(chosen_first: Any) -> int:
    return int(chosen_first) if isinstance(chosen_first, bool) else -1
