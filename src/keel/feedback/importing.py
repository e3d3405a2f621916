"""Rows of files to tasks: responses that nobody has compared yet, or comparisons, rankings, ratings and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any

from sqlalchemy.orm import Session

from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, RANKINGS, Kind, convert, guess_kind
from keel.data.layouts import rename
from keel.data.read import Row, read_rows
from keel.data.reasons import Check, Finding, Reason, Unusable
from keel.errors import UserError
from keel.feedback.answers import RESPONSES
from keel.feedback.refused import Refused
from keel.feedback.tables import Kind as Judging
from keel.feedback.tables import Project, Purpose, Task
from keel.feedback.tasks import Added, NewResponse, NewTask, add_rows, task_row
from keel.schema import Comparison, Demonstration, Feedback, Label, Prompt, Ranking, Rating

MOST_TASKS = 1_000_000
_AT_ONCE = 1000
_MOST_OF_A_ROW = 64  # responses of which each two, or each one, are a task
_SOURCES = "sources"
"""The column that says who made each of `responses`."""


@dataclass(frozen=True)
class Meant:
    """What the tasks of a file are for."""

    purpose: Purpose = "label"
    round: int = 1
    policy_version: str | None = None


@dataclass(frozen=True)
class Imported:
    """What became of the rows; `repeated` responses said the same as another to their prompt, and are no second one."""

    added: Added
    check: Check
    repeated: int

    @property
    def left_out(self) -> Mapping[Reason, int]:
        """Records by the reason for which they are no task."""
        return {reason: count for reason, count in self.check.counts.items() if not reason.is_warning}


def import_tasks(
    session: Session, project: Project, sources: Sequence[DataConfig], meant: Meant, *, now: float
) -> Imported:
    """Put the rows of files into a project, within the caller's transaction.

    Of more responses than a task of the project takes, each two (compare) or each one (review) are a task. For gold
    and practice the row's own preference, ranks, rating or label is the expected answer.

    Raises UserError if a file cannot be read, or none of its rows is a task.
    """
    new = known = repeated = 0
    checks = []
    for source in sources:
        reading = _Reading(source, project, meant, now)
        for tasks in _batches(reading):
            if new + known + len(tasks) > MOST_TASKS:
                raise UserError(f"{source.name} makes more than {MOST_TASKS:,} tasks; import it in several files")
            added = add_rows(session, project, tasks)
            new, known = new + added.new, known + added.known
        reading.check.enforce(1.0, source.name)
        checks.append(reading.check)
        repeated += reading.repeated
    findings = tuple(finding for check in checks for finding in check.findings)
    total, usable = sum(check.total for check in checks), sum(check.usable for check in checks)
    return Imported(Added(new=new, known=known), Check(total, usable, findings), repeated)


@dataclass
class _Reading:
    """The tasks of one source, and the tally once they have been read."""

    source: DataConfig
    project: Project
    meant: Meant
    now: float
    total: int = 0
    usable: int = 0
    repeated: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __iter__(self) -> Iterator[Task]:
        for row in read_rows(self.source):
            for record in self._records(row):
                try:
                    tasks = list(self._tasks(record))
                except Unusable as problem:
                    self.findings.append(Finding(problem.reason, row.file, row.number, problem.detail))
                    continue
                self.usable += 1
                yield from tasks

    @property
    def check(self) -> Check:
        return Check(self.total, self.usable, tuple(self.findings))

    def _records(self, row: Row) -> Iterator[Prompt | Demonstration | Feedback]:
        """The records that a row stands for, be it judged or not; what else it is, is a finding."""
        kind: Kind[Any] | None = None
        if row.value is not None:
            columns = row.value.keys() | self.source.fields.keys()
            if "responses" not in columns or "chosen" in columns:
                kind = guess_kind(row.value, self.source)
            else:
                kind = RANKINGS
                if self.meant.purpose == "label":
                    row = replace(row, value=_without_preference(row.value, self.source))
        for converted in convert(row, kind or COMPARISONS, self.source):
            self.total += 1
            self.findings += converted.findings
            if converted.record is not None:
                yield converted.record

    def _tasks(self, record: Prompt | Demonstration | Feedback) -> Iterator[Task]:
        """Raises Unusable where the record is no task of the project."""
        if isinstance(record, Prompt):
            raise Unusable(Reason.MISSING_FIELD, "a prompt without responses")
        if not record.prompt:
            raise Unusable(Reason.EMPTY_PROMPT)
        judging = self.project.kind
        least, most = RESPONSES[judging]
        responses = self._responses(record)
        if not least <= len(responses) <= (_MOST_OF_A_ROW if least == most else most):
            raise Unusable(Reason.WRONG_TYPE, f"{len(responses)} responses for a {judging} task")
        for places in combinations(range(len(responses)), least if least == most else len(responses)):
            task = NewTask(
                record.prompt,
                [responses[place] for place in places],
                purpose=self.meant.purpose,
                expected=None if self.meant.purpose == "label" else _expected(judging, record, places),
                round=self.meant.round,
                policy_version=self.meant.policy_version,
                row={name: value for name, value in record.extra.items() if name != _SOURCES},
            )
            try:
                yield task_row(self.project, task, now=self.now)
            except Refused as refused:
                raise Unusable(Reason.WRONG_TYPE, str(refused)) from None

    def _responses(self, record: Demonstration | Feedback) -> list[NewResponse]:
        """Raises Unusable where they are the same, which for a known answer no two may be."""
        match record:
            case Comparison():
                texts: tuple[str, ...] = (record.chosen, record.rejected)
            case Ranking():
                texts = record.responses
            case _:
                return [NewResponse(record.response)]
        given = record.extra.get(_SOURCES)
        named = isinstance(given, list) and len(given) == len(texts)
        sources = [str(one) for one in given] if named and given else [None] * len(texts)
        first: dict[str, NewResponse] = {}
        for text, source in zip(texts, sources, strict=True):
            first.setdefault(text.strip(), NewResponse(text, source))
        if len(first) < 2 or (len(first) < len(texts) and self.meant.purpose != "label"):
            raise Unusable(Reason.SAME_RESPONSES)
        self.repeated += len(texts) - len(first)
        return list(first.values())


def _without_preference(row: Mapping[str, Any], source: DataConfig) -> dict[str, Any]:
    """Responses as they were before anybody ranked them, in the form of a ranking: all are equal."""
    try:
        responses = rename(row, source).get("responses")
    except Unusable:
        responses = None
    others = {name: value for name, value in row.items() if name not in ("ranks", "preferred")}
    return others | {"ranks": [1] * len(responses) if isinstance(responses, list) else []}


def _expected(judging: Judging, record: Demonstration | Feedback, places: Sequence[int]) -> dict[str, Any]:
    """The answer that the row gives already. Raises Unusable where it gives none."""
    ranks: Sequence[int] | None = None
    match record:
        case Comparison():
            ranks = (1, 2)
        case Ranking():
            ranks = [record.ranks[place] for place in places]
    match judging, record:
        case "compare", Comparison() | Ranking() if ranks is not None:
            if ranks[0] == ranks[1]:
                return {"best": None, "strength": "tie"}
            return {"best": int(ranks[1] < ranks[0]), "strength": "clear"}
        case "rank", Comparison() | Ranking() if ranks is not None:
            levels = sorted(set(ranks))
            return {"ranks": [1 + levels.index(rank) for rank in ranks]}
        case "rate", Rating() if record.rating.is_integer():
            return {"ratings": [int(record.rating)]}
        case "review", Label():
            return {"accepted": record.accepted, "edited": None}
    raise Unusable(Reason.MISSING_FIELD, f"no {_TELLS[judging]}, from which the expected answer is taken")


_TELLS: dict[Judging, str] = {
    "compare": "chosen and rejected",
    "rank": "ranks",
    "rate": "whole rating",
    "review": "accepted",
}


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    waiting = iter(tasks)
    while batch := list(islice(waiting, _AT_ONCE)):
        yield batch
