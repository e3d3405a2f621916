"""How a project goes on: answers by day and by person, what people remarked, and what an audit of its export finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from keel.config.data import DataConfig
from keel.data.audit.audit import Audit, audit
from keel.data.audit.gather import Source
from keel.data.audit.intervals import Rate, rate
from keel.data.convert import COMPARISONS, LABELS, RANKINGS, RATINGS, Kind
from keel.data.read import read_rows
from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.export import Wanted, export_files
from keel.feedback.projects import find_project
from keel.feedback.quality import rate_in_words
from keel.feedback.tables import STANDS, Assignment, Judgement, Project, Task, User, Verdict
from keel.feedback.tables import Kind as Judging

MOST_REMARKS = 200
_MOST_PLACES = 10
_READ_AS: dict[Judging, Kind[Any]] = {"compare": COMPARISONS, "rank": RANKINGS, "rate": RATINGS, "review": LABELS}


@dataclass(frozen=True)
class Remark:
    """A problem that somebody reported, or a comment."""

    task: int
    person: str
    verdict: Verdict
    comment: str
    created_at: float


def answers_by_person(session: Session, project: Project) -> list[tuple[str, int]]:
    """(name, answers that stand), most first; of gold, practice and repeats too, and not of withdrawn tasks."""
    query = (
        select(User.name, func.count())
        .join(Assignment, Assignment.user_id == User.id)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.project_id == project.id, Assignment.state == "done", Task.withdrawn_at.is_(None))
        .group_by(User.id, User.name)
        .order_by(func.count().desc(), User.name)
    )
    return [(name, count) for name, count in session.execute(query)]


def answers_by_day(session: Session, project: Project) -> list[tuple[str, int]]:
    """(day by UTC, answers that stand), in order; days without any are left out. Withdrawn tasks are none."""
    query = (
        select(Judgement.created_at)
        .join(Assignment, STANDS)
        .join(Task, Task.id == Judgement.task_id)
        .where(Assignment.project_id == project.id, Judgement.verdict == "answer", Task.withdrawn_at.is_(None))
    )
    days = Counter(datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d") for time in session.scalars(query))
    return sorted(days.items())


def remarks(session: Session, project: Project) -> list[Remark]:
    """The newest MOST_REMARKS problems and comments that stand, newest first; not on what was withdrawn."""
    query = (
        select(Judgement, User.name)
        .join(Assignment, STANDS)
        .join(User, User.id == Judgement.user_id)
        .join(Task, Task.id == Judgement.task_id)
        .where(Assignment.project_id == project.id, Task.withdrawn_at.is_(None))
        .where(or_(Judgement.verdict == "problem", Judgement.comment != ""))
        .order_by(Judgement.id.desc())
        .limit(MOST_REMARKS)
    )
    return [Remark(one.task_id, name, one.verdict, one.comment, one.created_at) for one, name in session.execute(query)]


def said_of(session: Session, task: Task) -> list[tuple[str, Assignment, Judgement]]:
    """(who, assignment, judgement) of what stands of a task, in order."""
    query = (
        select(User.name, Assignment, Judgement)
        .join(Judgement, Judgement.user_id == User.id)
        .join(Assignment, STANDS)
        .where(Judgement.task_id == task.id)
        .order_by(Judgement.id)
    )
    return [(name, assignment, judgement) for name, assignment, judgement in session.execute(query)]


@dataclass(frozen=True)
class Finding:
    """What an audit found: how often, what it means, and the first few tasks that it is about."""

    name: str
    count: int
    meaning: str
    unfit: bool
    tasks: Sequence[int]


@dataclass(frozen=True)
class Audited:
    """The audit of a project's export: findings, and figures as (name, value)."""

    findings: Sequence[Finding]
    figures: Sequence[tuple[str, str]]


def audit_of(database: Database, project_id: int) -> Audited:
    """`keel data audit` of the labels that `keel feedback export` writes, in a transaction of its own.

    That one ends before the audit begins, which takes long where there is much to audit. Raises UserError where there
    is nothing, Refused where there is no such project.
    """
    with TemporaryDirectory(prefix="keel-audit-") as folder:
        out = Path(folder, "export.jsonl")
        with database.snapshot() as session:
            project = find_project(session, project_id)
            counts = export_files(session, project, {"judgements": out}, Wanted())
        if not counts["judgements"]:
            raise UserError("there is nothing to audit before somebody has judged")
        config = DataConfig(path=str(out))
        try:
            found = audit([Source(config, _READ_AS[project.kind])])
        except UserError as error:
            raise UserError(str(error).replace(str(out), "the export")) from None
        tasks = [row.value["task"] for row in read_rows(config) if row.value is not None]
    return Audited(_findings(found, tasks), _figures(found, project.kind, ties=counts["ties"]))


def _findings(found: Audit, tasks: Sequence[int]) -> list[Finding]:
    """One for each fault that was found; `tasks` holds the task of each row that was audited."""
    by_file = found.splits.by_file
    return [
        Finding(
            one.fault.value,
            len(one),
            one.fault.sentence,
            one.fault.unfit(by_file),
            list(islice(dict.fromkeys(tasks[place.row] for place in one.places(found.gathered)), _MOST_PLACES)),
        )
        for one in found.found
        if len(one)
    ]


def _figures(found: Audit, kind: Judging, *, ties: int) -> list[tuple[str, str]]:
    """`ties` counts those of a project that compares, which are not in the audited file; those of rankings are.

    For responses that were judged one by one, comparisons are mentioned only where some follow from the judgements.
    """
    comparisons = len(found.gathered.labels)
    compared = [
        ("the longer response is preferred", _in_words(found.length.longer)),
        ("prompts whose judgements agree with no order", f"{found.order.prompts:,}"),
    ]
    if found.annotators.ceiling is not None:
        low, high = found.annotators.ceiling
        compared.append(("the best rule is right on", f"{low:.0%} to {high:.0%} of the votes"))
    if kind in ("compare", "rank"):
        first = ("the response that stood first is preferred", _in_words(found.position.first))
        return [("comparisons", f"{comparisons:,}"), ("ties", f"{found.balance.ties + ties:,}"), first, *compared]
    judged = _judged_alone(found, kind)
    return [*judged, ("comparisons that follow", f"{comparisons:,}"), *compared] if comparisons else judged


def _judged_alone(found: Audit, kind: Judging) -> list[tuple[str, str]]:
    judged = found.gathered.ratings
    count = f"{len(judged.number):,}"
    if kind == "review":
        return [("labels", count), ("accepted", _in_words(rate(judged.number == 1, judged.prompt)))]
    each = ", ".join(f"{number:g}: {times:,}" for number, times in found.balance.numbers.items())
    return [("ratings", count), ("how often each was given", each)]


def _in_words(found: Rate) -> str:
    return rate_in_words(found, unknown="not known")
