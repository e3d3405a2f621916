"""Rows of files to tasks: responses that nobody has compared yet, or comparisons, rankings, ratings and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from tempfile import TemporaryFile
from typing import IO, Any

from sqlalchemy.orm import Session

from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, RANKINGS, Kind, convert, guess_kind
from keel.data.layouts import rename
from keel.data.read import Row, read_rows
from keel.data.reasons import Check, Finding, Reason, Unusable
from keel.data.write import line_of
from keel.errors import UserError
from keel.feedback.answers import RESPONSES
from keel.feedback.projects import Settings, clean_text, never_given, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import Kind as Judging
from keel.feedback.tables import Project, Purpose, Task
from keel.feedback.tasks import Added, NewResponse, NewTask, add_rows, columns, task_row
from keel.feedback.words import counted
from keel.schema import Comparison, Demonstration, Feedback, Label, Prompt, Ranking, Rating

MOST_TASKS = 1_000_000
_MOST_OF_A_ROW = 64  # responses of which each two, or each one, are a task
_MOST_NAMED = 5  # of what is left out
_SOURCES = "sources"
"""The column that says who made each of `responses`."""
_LIKE_A_RESPONSE = re.compile(r"(response|answer|completion|output|reply)[_.-]?\w{1,3}", re.IGNORECASE)


@dataclass(frozen=True)
class Meant:
    """What the tasks of a file are for."""

    purpose: Purpose = "label"
    round: int = 1
    policy_version: str | None = None


@dataclass(frozen=True)
class Imported:
    """What became of the rows; `repeated` responses said the same as another to their prompt, and are no second one.

    `never_given` says why nobody would be given such tasks as things stand, and is empty where people are.
    """

    added: Added
    check: Check
    repeated: int
    never_given: str

    @property
    def left_out(self) -> Mapping[Reason, int]:
        """Records by the reason for which they are no task."""
        return {reason: count for reason, count in self.check.counts.items() if not reason.is_warning}

    def in_words(self, project: str) -> list[str]:
        """Sentences: how many tasks there are now, and the first of what was left out, each by its row."""
        told = [f"{self.added.in_words(project)}."]
        if self.never_given:
            told.append(f"But {self.never_given}.")
        if self.repeated:
            were = "was" if self.repeated == 1 else "were"
            same = "said the same as another to the same prompt"
            told.append(f"{counted(self.repeated, 'response')} {same}, and {were} left out.")
        left_out = [finding for finding in self.check.findings if not finding.reason.is_warning]
        if left_out:
            told.append(f"{len(left_out):,} {'was' if len(left_out) == 1 else 'were'} left out; rows count from 0.")
        for one in left_out[:_MOST_NAMED]:
            detail = f" ({one.detail})" if one.detail else ""
            told.append(f"Row {one.row} of {one.file}: {one.reason.sentence.removesuffix('.')}{detail}.")
        if len(left_out) > _MOST_NAMED:
            told.append(f"And {len(left_out) - _MOST_NAMED:,} more.")
        return told


@dataclass(frozen=True)
class TasksRead:
    """Tasks that can be judged as `judged` says, in a file of our own, and what became of the rows."""

    judged: tuple[Judging, Settings]
    meant: Meant
    check: Check
    repeated: int
    file: IO[bytes]


@contextmanager
def read_tasks(project: Project, sources: Sequence[DataConfig], meant: Meant, *, now: float) -> Iterator[TasksRead]:
    """Read and check the rows of files, which takes long and needs no transaction: `put_tasks` puts them there.

    Of more responses than a task of the project takes, each two (compare) or each one (review) are a task. For gold
    and practice the row's own preference, ranks, rating or label is the expected answer. The project may be one that
    is yet to be made.

    Raises UserError if a file cannot be read, or none of its rows is a task; Refused for a policy version that no
    database holds.
    """
    clean_text(meant.policy_version or "", "policy_version")
    count = repeated = 0
    checks = []
    with TemporaryFile(prefix="keel-import-") as file:
        for source in sources:
            reading = _Reading(source, project, meant, now)
            for task in reading:
                count += 1
                if count > MOST_TASKS:
                    raise UserError(f"{source.name} makes more than {MOST_TASKS:,} tasks; import it in several files")
                file.write(line_of(columns(task)))  # a NaN is null there: PostgreSQL takes none
            try:
                reading.check.enforce(1.0, source.name)
            except UserError as error:
                raise UserError(f"{str(error).removesuffix('.')}; {_taken(project.kind, meant.purpose)}") from None
            checks.append(reading.check)
            repeated += reading.repeated
        findings = tuple(finding for check in checks for finding in check.findings)
        total, usable = sum(check.total for check in checks), sum(check.usable for check in checks)
        judged = (project.kind, settings_of(project))
        yield TasksRead(judged, meant, Check(total, usable, findings), repeated, file)


def put_tasks(session: Session, project: Project, read: TasksRead) -> Imported:
    """Put what was read into the project, within the caller's transaction. Raises Refused if it has changed since."""
    if (project.kind, settings_of(project)) != read.judged:
        raise Refused("conflict", f"the settings of {project.name} changed while the files were read; import them anew")
    read.file.seek(0)
    added = add_rows(session, project, map(json.loads, read.file))
    return Imported(added, read.check, read.repeated, never_given(project, read.meant.purpose))


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
                    if isinstance(record, Prompt):
                        raise Unusable(Reason.MISSING_FIELD, self._no_responses(row.value or {}))
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
        if row.value is not None and not self._has_responses(row.value):
            kind = guess_kind(row.value, self.source)
        elif row.value is not None:
            kind = RANKINGS
            if self.meant.purpose == "label":
                row = replace(row, value=_without_preference(row.value, self.source))
        for converted in convert(row, kind or COMPARISONS, self.source):
            self.total += 1
            self.findings += converted.findings
            if converted.record is not None:
                yield converted.record

    def _has_responses(self, row: Mapping[str, Any]) -> bool:
        """Whether `responses` are what a row shows, or would be if the column that is meant to hold them were there."""
        try:
            given = rename(row, self.source)
        except Unusable:
            return True
        has = {name for name, value in given.items() if value is not None}
        return "chosen" not in has and bool("responses" in has or "responses" in self.source.fields)

    def _no_responses(self, row: Mapping[str, Any]) -> str:
        """What a row has that has a prompt alone, and how columns of other names are read."""
        said = f"no responses; the row has {', '.join(row)}"
        if len(row) < 2:
            return said
        alike = [name for name in row if _LIKE_A_RESPONSE.fullmatch(name)]
        columns = ",".join(alike) if len(alike) > 1 else "ONE,TWO"
        return f"{said}; `keel feedback import --field responses={columns}` reads columns of other names"

    def _tasks(self, record: Demonstration | Feedback) -> Iterator[Task]:
        """Raises Unusable where the record is no task of the project."""
        if not record.prompt:
            raise Unusable(Reason.EMPTY_PROMPT)
        judging = self.project.kind
        least, most = RESPONSES[judging]
        responses = self._responses(record)
        if not least <= len(responses) <= (_MOST_OF_A_ROW if least == most else most):
            raise Unusable(Reason.WRONG_TYPE, f"{counted(len(responses), 'response')} for a {judging} task")
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
    return others | {"ranks": [1] * len(responses)} if isinstance(responses, list) else others


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


def _taken(judging: Judging, purpose: Purpose) -> str:
    """Which rows a project makes tasks of."""
    if purpose != "label":
        return f"{purpose} in a {judging} project is rows that say what is right, with {_TELLS[judging]}"
    return f"a {judging} project takes rows with {_SHOWS[judging]}"


_SHOWS: dict[Judging, str] = {
    "compare": "prompt and responses, or prompt, chosen and rejected",
    "rank": "prompt and responses",
    "rate": "prompt and response, or responses",
    "review": "prompt and response, or responses",
}
_TELLS: dict[Judging, str] = {
    "compare": "chosen and rejected",
    "rank": "ranks",
    "rate": "whole rating",
    "review": "accepted",
}
