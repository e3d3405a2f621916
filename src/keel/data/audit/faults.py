"""What may be wrong with a label, each with its rows; which of it makes a label unfit to use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from keel.data.audit.gather import Gathered, Int64s, Labels, Ratings
from keel.data.audit.grouping import combined, groups, repeats
from keel.data.audit.splits import Splits
from keel.data.audit.texts import Oddity
from keel.data.reasons import Reason


class Fault(Enum):
    """A fault's value is its short name. The order is that in which a label's reason to be left out is looked for."""

    EMPTY = "empty reply"
    IDENTICAL = "identical pair"
    IDENTICAL_NORMAL = "identical but for space or case"
    UNREADABLE = "not usable"
    LEAKS = "role marker in a reply"
    DUPLICATE = "duplicate"
    DUPLICATE_NORMAL = "duplicate but for space or case"
    SELF_CONTRADICTION = "contradicts itself"
    SHARED = "prompt is held out too"
    NEAR = "prompt is nearly a held-out one"
    CONTRADICTION_UNNAMED = "contradiction, nobody named"
    CONTRADICTION = "contradiction between annotators"
    CYCLE = "on a cycle"
    AGAINST_ORDER = "to drop for an order"
    CUT_OFF = "cut off"
    MID_SENTENCE = "ends in mid-sentence"
    MENTION = "mentions a role marker"
    TIE = "tie"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    def unfit(self, by_file: bool) -> bool:
        """Whether a label with it is not fit to use; held-out prompts matter where the files say which they are."""
        return self in _UNFIT or (by_file and self in (Fault.SHARED, Fault.NEAR))


_UNFIT = (
    Fault.EMPTY, Fault.IDENTICAL, Fault.IDENTICAL_NORMAL, Fault.UNREADABLE, Fault.LEAKS,
    Fault.DUPLICATE, Fault.DUPLICATE_NORMAL, Fault.SELF_CONTRADICTION,
)  # fmt: skip

_SENTENCES = {
    Fault.EMPTY: "One of the replies is empty.",
    Fault.IDENTICAL: "Both replies are the same text.",
    Fault.IDENTICAL_NORMAL: "Both replies are the same but for white space or case.",
    Fault.UNREADABLE: "The row cannot be read as a comparison; `keel data check` says why.",
    Fault.LEAKS: "Another turn begins in a reply: “Human:”, “<|im_start|>” and the like.",
    Fault.DUPLICATE: "The same label by the same annotator (or nobody named) stands in an earlier row.",
    Fault.DUPLICATE_NORMAL: "The same, but for white space or case.",
    Fault.SELF_CONTRADICTION: "One annotator preferred each of the two replies to the other.",
    Fault.SHARED: "The prompt is trained on and judged on.",
    Fault.NEAR: "A held-out prompt has four fifths of this one's word pairs, or more.",
    Fault.CONTRADICTION_UNNAMED: "Each of the two replies is preferred to the other, and nobody is named.",
    Fault.CONTRADICTION: "Annotators disagree on the two replies: honest, and what agreement is computed from.",
    Fault.CYCLE: "The label lies on a cycle (A over B over C over A, or A over B over A): no utility explains it.",
    Fault.AGAINST_ORDER: "Without these few the others agree with an order of each prompt's replies.",
    Fault.CUT_OFF: "A reply is known not to have ended.",
    Fault.TIE: "Neither reply was preferred: no fault, but a comparison cannot say it.",
    Fault.MENTION: "A reply holds such a marker in a sentence, in quotes or in code, where no turn begins.",
    Fault.MID_SENTENCE: "A long reply ends without a full stop: it may have been cut off (a guess).",
}


@dataclass(frozen=True)
class Place:
    """Where a fault is. `position` counts the records of its source; None for a row that the reader refused."""

    source: int
    position: int | None
    file: str
    row: int
    detail: str = ""


@dataclass(frozen=True)
class Found:
    """A fault and where: numbers of labels, numbers of ratings, and rows that the reader refused."""

    fault: Fault
    labels: Int64s
    ratings: Int64s
    refused: Sequence[Place] = ()

    def __len__(self) -> int:
        return len(self.labels) + len(self.ratings) + len(self.refused)

    def places(self, gathered: Gathered) -> Iterator[Place]:
        """Each of them; a row that stands for several labels may come several times."""
        yield from self.refused
        tables: list[tuple[Labels | Ratings, Int64s]] = [
            (gathered.labels, self.labels),
            (gathered.ratings, self.ratings),
        ]
        for table, numbers in tables:
            for at in numbers.tolist():
                file = gathered.files[int(table.file[at])]
                yield Place(int(table.source[at]), int(table.position[at]), file, int(table.row[at]))


Masks = dict[Fault, NDArray[np.bool_]]


def found_of(gathered: Gathered, splits: Splits) -> list[Found]:
    """Every fault that is seen without an order of the replies, in the order of `Fault`; those that nothing has too."""
    labels, ratings, refused = _of_labels(gathered, splits), _of_ratings(gathered, splits), _refused(gathered)
    return [
        Found(fault, _rows(labels, fault), _rows(ratings, fault), refused.get(fault, ()))
        for fault in Fault
        if fault not in (Fault.CYCLE, Fault.AGAINST_ORDER)
    ]


def _rows(masks: Masks, fault: Fault) -> Int64s:
    return np.flatnonzero(masks[fault]) if fault in masks else np.empty(0, np.int64)


def _of_labels(gathered: Gathered, splits: Splits) -> Masks:
    """What follows from two ratings is no row: there only what the labels say of each other is looked at."""
    labels, prompt = gathered.labels, gathered.prompt_keys
    same = labels.chosen == labels.rejected
    exact = repeats(combined(labels.exact, labels.annotator))
    again = repeats(combined(prompt, labels.chosen, labels.rejected, labels.annotator))
    contradictions = _contradictions(gathered, ~same & ~again)
    rows = {
        Fault.IDENTICAL_NORMAL: same,
        Fault.DUPLICATE: exact,
        Fault.DUPLICATE_NORMAL: again & ~exact,
        Fault.SELF_CONTRADICTION: contradictions.pop(Fault.SELF_CONTRADICTION),
        **_of_rows(labels.chosen_odd | labels.rejected_odd, labels.prompt, splits),
    }
    is_row = labels.position >= 0
    return contradictions | {fault: mask & is_row for fault, mask in rows.items()}


def _of_ratings(gathered: Gathered, splits: Splits) -> Masks:
    ratings = gathered.ratings
    reply = combined(gathered.prompts.key[ratings.prompt], ratings.reply, ratings.annotator)
    exact = repeats(combined(ratings.exact, ratings.annotator))
    again = repeats(combined(reply, ratings.number.view(np.uint64)))
    own = groups(reply)
    lowest, highest = np.full(len(own), np.inf), np.full(len(own), -np.inf)
    np.minimum.at(lowest, own, ratings.number)
    np.maximum.at(highest, own, ratings.number)
    several = (lowest < highest)[own]
    named = ratings.annotator >= 0
    return {
        Fault.DUPLICATE: exact,
        Fault.DUPLICATE_NORMAL: again & ~exact,
        Fault.SELF_CONTRADICTION: several & named,
        Fault.CONTRADICTION_UNNAMED: several & ~named,
        **_of_rows(ratings.odd, ratings.prompt, splits),
    }


def _of_rows(odd: NDArray[np.uint8], prompt: Int64s, splits: Splits) -> Masks:
    return {
        Fault.LEAKS: (odd & Oddity.LEAKS) > 0,
        Fault.CUT_OFF: (odd & Oddity.CUT_OFF) > 0,
        Fault.MID_SENTENCE: (odd & Oddity.MID_SENTENCE) > 0,
        Fault.MENTION: (odd & Oddity.MENTIONS) > 0,
        Fault.SHARED: splits.shared[prompt],
        Fault.NEAR: splits.near[prompt],
    }


def _refused(gathered: Gathered) -> dict[Fault, list[Place]]:
    """What the reader did not take, under the audit's names, ties too; what a `map` skipped is no fault."""
    names = {Reason.EMPTY_RESPONSE: Fault.EMPTY, Reason.SAME_RESPONSES: Fault.IDENTICAL, Reason.TIE: Fault.TIE}
    found: dict[Fault, list[Place]] = {}
    for source, check in enumerate(gathered.checks):
        for one in check.findings:
            if one.reason in names or not (one.reason.is_warning or one.reason.is_on_purpose):
                detail = one.detail if one.reason in names else ": ".join(filter(None, (one.reason.value, one.detail)))
                place = Place(source, None, one.file, one.row, detail)
                found.setdefault(names.get(one.reason, Fault.UNREADABLE), []).append(place)
    return found


def _contradictions(gathered: Gathered, kept: NDArray[np.bool_]) -> Masks:
    """Labels on pairs of replies that are labelled both ways: by one annotator, by nobody named, by several."""
    labels = gathered.labels
    ways = labels.chosen < labels.rejected
    low, high = np.minimum(labels.chosen, labels.rejected), np.maximum(labels.chosen, labels.rejected)
    pair = groups(combined(gathered.prompt_keys, low, high))
    named = labels.annotator >= 0
    by_one = _both_ways(groups(combined(pair, labels.annotator)), ways, kept)
    alone = by_one & named
    rest = _both_ways(pair, ways, kept & ~alone)
    # Without a name it is not known whether one annotator or two disagree.
    unnamed = rest & by_one & ~named
    return {
        Fault.SELF_CONTRADICTION: alone,
        Fault.CONTRADICTION_UNNAMED: unnamed,
        Fault.CONTRADICTION: rest & ~unnamed,
    }


def _both_ways(group: Int64s, ways: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of some labels are in a group that has labels both ways among them."""
    size = int(group.max(initial=0)) + 1
    one, other = (np.bincount(group[among & (ways == way)], minlength=size) > 0 for way in (True, False))
    return np.asarray((one & other)[group] & among)
