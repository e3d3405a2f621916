"""How well a project is judged: how far people agree, and what is known of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from keel.data.audit.intervals import Estimate, Rate, rate
from keel.data.audit.reliability import interval, met, nominal, reliability
from keel.feedback.answers import Answer, Compared, Ranked, Rated, Reviewed, kept_answer
from keel.feedback.projects import Settings, settings_of
from keel.feedback.tables import STANDS, Assignment, Judgement, Kind, Project, Purpose, Task, User, Verdict

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PersonQuality:
    """One annotator. Rates have 95% intervals; one of no cases says nothing.

    `judgements`: answers to tasks to be labelled. `fast`: answers faster than the project's `least_seconds`. `gold`:
    right answers to gold tasks. `repeats`: hidden repeats answered as before. `first`: preferences for what was shown
    before the other, a half of them by chance. `agreement`: how alike another's answer to the same is, in [0, 1], of
    `others` answers; None where nobody else answered the same.
    """

    name: str
    active: bool
    judgements: int
    skips: int
    problems: int
    median_seconds: float | None
    fast: Rate
    gold: Rate
    repeats: Rate
    first: Rate
    agreement: float | None
    others: int


@dataclass(frozen=True)
class Quality:
    """`alpha` (Krippendorff's, of answers that are `scale`) and `agreement` (how alike two answers to the same are) are
    None where they cannot be known, and `unknown` says why. Of each task as many answers count as every task gets."""

    scale: str
    alpha: Estimate | None
    agreement: Estimate | None
    unknown: str
    people: Sequence[PersonQuality]  # by judgements, most first


def quality(session: Session, project: Project) -> Quality:
    """Of the judgements that stand; labels count for agreement, and neither gold, practice nor hidden repeats.

    Nothing that was said of withdrawn tasks is among them.
    """
    settings = settings_of(project)
    said = list(_said(session, project))
    labels = [one for one in said if one.is_label]
    votes, first = (_votes_of(some, settings) for some in (labels, _unselected(labels, settings)))
    alike = _alike(project.kind, settings)
    alpha, agreement, unknown = _agreement(
        first.counts(len(alike)), first.task_of_unit(), alike, mirrored=project.kind in _OF_PAIRS
    )
    shared = _shared(votes, votes.counts(len(alike)), alike)
    by_person: dict[int, list[_Said]] = {}
    for one in said:
        by_person.setdefault(one.person, []).append(one)
    users = session.scalars(select(User).where(User.id.in_(by_person)))
    people = [_person(user, by_person[user.id], *shared.get(user.id, (None, 0)), settings) for user in users]
    scale = "interval" if project.kind == "rate" else "nominal"
    return Quality(scale, alpha, agreement, unknown, sorted(people, key=lambda one: (-one.judgements, one.name)))


HEADER = (
    "annotator", "answers", "skips", "problems", "median seconds", "agrees with others", "too fast", "gold right",
    "repeats alike", "takes the first",
)  # fmt: skip
CHECKS = slice(6, None)
"""Of HEADER, what tells whether somebody takes care; before it stands how much they did."""


def summary(found: Quality) -> str:
    """One line on how far people agree."""
    if found.alpha is None or found.agreement is None:
        return f"Agreement is not known: {found.unknown}."
    (low, high), value = found.alpha.interval, found.alpha.value
    return (
        f"Krippendorff's α ({found.scale}) {value:.2f}, 95% interval {low:.2f} to {high:.2f}; "
        f"two answers to the same are alike to {found.agreement.value:.0%}."
    )


def table(found: Quality) -> list[tuple[str, ...]]:
    """The words for each person, below HEADER, an interval on a second line; empty where nothing is known."""
    return [
        (
            one.name + ("" if one.active else " (account ended)"),
            f"{one.judgements:,}",
            f"{one.skips:,}",
            f"{one.problems:,}",
            "" if one.median_seconds is None else f"{one.median_seconds:.1f}",
            "" if one.agreement is None else f"{one.agreement:.0%} of {one.others:,}",
            *(rate_in_words(each).replace(" (", "\n(") for each in (one.fast, one.gold, one.repeats, one.first)),
        )
        for one in found.people
    ]


def rate_in_words(found: Rate, *, unknown: str = "") -> str:
    """The share, of how many, and its interval; `unknown` where it is of nothing."""
    low, high = found.interval
    return f"{found.share:.0%} of {found.total:,} ({low:.0%} to {high:.0%})" if found.total else unknown


_OF_PAIRS = ("compare", "rank")
_FIRST, _EQUAL, _SECOND = range(3)  # which of a pair is better; neither too where both are bad


@dataclass(frozen=True)
class _Said:
    """One judgement that stands."""

    person: int
    task: int
    purpose: Purpose
    occasion: int
    verdict: Verdict
    answer: Any  # an Answer, of the same kind as every other of the project
    expected: Any
    order: Sequence[int]
    duration: float

    @property
    def is_label(self) -> bool:
        return self.verdict == "answer" and self.purpose == "label" and self.occasion == 0


def _said(session: Session, project: Project) -> Iterator[_Said]:
    query = (
        select(
            Assignment.user_id, Assignment.task_id, Task.purpose, Assignment.occasion, Judgement.verdict,
            Judgement.answer, Task.expected, Judgement.order, Judgement.duration,
        )
        .join(Judgement, STANDS)
        .join(Task, Task.id == Judgement.task_id)
        .where(Assignment.project_id == project.id, Task.withdrawn_at.is_(None))
        .order_by(Judgement.id)
    )  # fmt: skip
    for person, task, purpose, occasion, verdict, answer, expected, order, duration in session.execute(query):
        said, right = (None if one is None else kept_answer(project.kind, one) for one in (answer, expected))
        yield _Said(person, task, purpose, occasion, verdict, said, right, order, duration)


def _unselected(labels: Sequence[_Said], settings: Settings) -> list[_Said]:
    """The first votes of each task, as many as every task gets, and two at least.

    Only tasks on which people differed are given more votes. With those, such tasks would weigh more than they should,
    and α would be too high; a second answer is never given for that reason, even where each task gets one vote.
    """
    most = max(2, settings.votes)
    seen: Counter[int] = Counter()
    kept = []
    for one in labels:
        seen[one.task] += 1
        if seen[one.task] <= most:
            kept.append(one)
    return kept


@dataclass(frozen=True)
class _Votes:
    """What was said of m units, columns [m]: a pair of responses, a response, or a task."""

    unit: Ints
    value: Ints
    person: Ints
    task: Ints

    def counts(self, values: int) -> Ints:
        """How often each unit was given each value, [units, values]."""
        units = int(self.unit.max(initial=-1)) + 1
        return np.bincount(self.unit * values + self.value, minlength=units * values).reshape(units, values)

    def task_of_unit(self) -> Ints:
        return self.task[np.unique(self.unit, return_index=True)[1]]


def _votes_of(labels: Sequence[_Said], settings: Settings) -> _Votes:
    numbers: dict[tuple[int, ...], int] = {}
    rows = [
        (numbers.setdefault((one.task, *place), len(numbers)), value, one.person, one.task)
        for one in labels
        for place, value in _values(one.answer, settings)
    ]
    return _Votes(*np.array(rows, np.int64).reshape(-1, 4).T)


def _values(answer: Answer, settings: Settings) -> Iterator[tuple[tuple[int, ...], int]]:
    """(which part of the task, what was said of it)."""
    match answer:
        case Compared():
            yield (), _EQUAL if answer.best is None else (_FIRST, _SECOND)[answer.best]
        case Ranked():
            for a, b in combinations(range(len(answer.ranks)), 2):
                yield (a, b), int(np.sign(answer.ranks[a] - answer.ranks[b])) + 1
        case Rated():
            lowest, highest = settings.scale
            for number, rating in enumerate(answer.ratings):
                if lowest <= rating <= highest:  # the scale may have been another
                    yield (number,), rating - lowest
        case Reviewed():
            yield (), int(answer.accepted)


def _alike(kind: Kind, settings: Settings) -> Floats:
    if kind == "rate":
        return interval(settings.scale[1] - settings.scale[0] + 1)
    return nominal(3 if kind in _OF_PAIRS else 2)


def _agreement(
    counts: Ints, task: Ints, alike: Floats, *, mirrored: bool
) -> tuple[Estimate | None, Estimate | None, str]:
    """α, agreement, and why they are not known. Which of a pair is called the first is nobody's choice: `mirrored`."""
    several = len(np.unique(task[counts.sum(axis=1) >= 2]))
    if several < 2:
        there = "one task has" if several else "no task has"
        return None, None, f"{there} answers of two people yet; a project needs two votes a task or more"
    if mirrored:
        counts, task = np.concatenate([counts, counts[:, ::-1]]), np.tile(task, 2)
    found = reliability(counts, task, alike)
    if found is None:
        return None, None, "everybody gave every task the same answer, so nothing tells agreement from habit"
    return *found, ""


def _shared(votes: _Votes, counts: Ints, alike: Floats) -> dict[int, tuple[float | None, int]]:
    """How alike others' answers to the same are to each person's, and how many answers of others there are."""
    like = met(counts, alike)[votes.unit, votes.value]
    others = counts.sum(axis=1)[votes.unit] - 1
    found: dict[int, tuple[float | None, int]] = {}
    for person in np.unique(votes.person).tolist():
        mine = votes.person == person
        total = int(others[mine].sum())
        found[person] = (float(like[mine].sum()) / total if total else None, total)
    return found


def _person(
    user: User, said: Sequence[_Said], agreement: float | None, others: int, settings: Settings
) -> PersonQuality:
    labels = [one for one in said if one.is_label]
    limit = settings.least_seconds
    before = {one.task: one.answer for one in labels}
    again = [one for one in said if one.verdict == "answer" and one.occasion and one.task in before]
    gold = [one for one in said if one.verdict == "answer" and one.purpose == "gold"]
    return PersonQuality(
        name=user.name,
        active=user.active,
        judgements=len(labels),
        skips=sum(one.verdict == "skip" for one in said),
        problems=sum(one.verdict == "problem" for one in said),
        median_seconds=median(one.duration for one in labels) if labels else None,
        fast=_rate([one.duration < limit for one in labels] if limit else []),
        gold=_rate([one.answer.agrees(one.expected) for one in gold]),
        repeats=_rate([one.answer.agrees(before[one.task]) for one in again]),
        first=_first(labels),
        agreement=agreement,
        others=others,
    )


def _rate(hits: Sequence[bool]) -> Rate:
    """Of independent trials."""
    return rate(np.array(hits, bool), np.arange(len(hits)))


def _first(labels: Sequence[_Said]) -> Rate:
    """Of the pairs of which one was preferred, how often that stood before the other; those of a ranking are alike."""
    hits: list[bool] = []
    judgement: list[int] = []
    for number, one in enumerate(labels):
        for a, b in _preferred(one.answer):
            hits.append(one.order.index(a) < one.order.index(b))
            judgement.append(number)
    return rate(np.array(hits, bool), np.array(judgement, np.int64))


def _preferred(answer: Answer) -> Iterator[tuple[int, int]]:
    """(better, worse) by position."""
    match answer:
        case Compared(best=int(best)):
            yield best, 1 - best
        case Ranked(ranks=ranks):
            for a, b in combinations(range(len(ranks)), 2):
                if ranks[a] != ranks[b]:
                    yield (a, b) if ranks[a] < ranks[b] else (b, a)
