"""Tasks: prompts with their responses, put where people find them. The same task put there twice is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, insert, select
from sqlalchemy.orm import Session

from keel.feedback.answers import RESPONSES, read_answer
from keel.feedback.projects import clean_json, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import Project, Purpose, Response, Task
from keel.feedback.words import counted
from keel.schema import Dialogue, Message, Prompt

_AT_ONCE = 500
DIGEST = 64
"""Letters of a digest; of a task that was withdrawn more follow, so that the same can be put in again."""


@dataclass(frozen=True)
class NewResponse:
    """One response; who made it (`source`) is kept and not shown."""

    text: str
    source: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewTask:
    """A task that is to be judged; `expected` is the right answer of a gold or practice task, by position."""

    prompt: Dialogue
    responses: Sequence[NewResponse]
    purpose: Purpose = "label"
    expected: Mapping[str, Any] | None = None
    round: int = 1
    batch: str | None = None
    policy_version: str | None = None
    priority: float = 0.0
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Added:
    """How many tasks are new, how many were there already, and how many were another of the new ones once more."""

    new: int
    known: int
    duplicates: int

    def in_words(self, project: str) -> str:
        known = f", {self.known:,} {'was' if self.known == 1 else 'were'} there already" if self.known else ""
        were = "was a duplicate" if self.duplicates == 1 else "were duplicates"
        duplicates = f", {self.duplicates:,} {were} among them" if self.duplicates else ""
        return f"{counted(self.new, 'new task')} in {project}{known}{duplicates}"


@dataclass(frozen=True)
class Progress:
    """Of the tasks to be labelled: how many there are, how many have all their votes, and how many votes are there.

    A vote more than a task wants, which comes of an answer that was late, is none of these: no other task is nearer.
    """

    tasks: int
    complete: int
    votes: int
    wanted: int


def add_tasks(session: Session, project: Project, tasks: Sequence[NewTask], *, now: float) -> Added:
    """Put tasks into a project. Raises Refused, naming the task by its number, for one that cannot be judged."""
    rows = []
    for number, task in enumerate(tasks, start=1):
        try:
            rows.append(columns(task_row(project, task, now=now)))
        except Refused as refused:
            raise Refused(refused.code, f"task {number}: {refused}", field=refused.field) from None
    return add_rows(session, project, rows)


def columns(row: Task | Response) -> dict[str, Any]:
    """The columns of a row that is in no session yet, as far as they are set; a task's with those of its responses."""
    found = {name: value for name, value in vars(row).items() if name in type(row).__table__.columns}
    return found | {"responses": [columns(one) for one in row.responses]} if isinstance(row, Task) else found


def add_rows(session: Session, project: Project, rows: Iterable[dict[str, Any]]) -> Added:
    """Put tasks, as `columns` gives them, into the project, except for those that are there already.

    It takes few statements, for others wait meanwhile.
    """
    one_at_a_time(session, project)
    before = session.scalar(select(func.max(Task.id))) or 0  # what comes into this project from here on is ours
    new = known = total = 0
    waiting = iter(rows)
    while some := list(islice(waiting, _AT_ONCE)):
        named = (Task.project_id == project.id) & Task.digest.in_([one["digest"] for one in some])
        there = dict(session.execute(select(Task.digest, Task.id).where(named)).all())
        new += _insert(session, project, [one for one in some if one["digest"] not in there])
        known += sum(there.get(one["digest"], before + 1) <= before for one in some)
        total += len(some)
    return Added(new=new, known=known, duplicates=total - new - known)


def _insert(session: Session, project: Project, rows: Sequence[dict[str, Any]]) -> int:
    """Insert tasks, each once however often it is among the rows; returns how many."""
    new = {one["digest"]: one | {"project_id": project.id} for one in rows}
    if new:
        responses = [one.pop("responses") for one in new.values()]
        ids = session.scalars(insert(Task).returning(Task.id, sort_by_parameter_order=True), list(new.values()))
        of_task = zip(ids.all(), responses, strict=True)
        session.execute(insert(Response), [one | {"task_id": number} for number, some in of_task for one in some])
    return len(new)


def has_batch(session: Session, project: Project, batch: str) -> bool:
    """Whether a batch was put in, also if it was withdrawn since."""
    one_at_a_time(session, project)
    return bool(session.scalar(select(exists().where(Task.project_id == project.id, Task.batch == batch))))


def one_at_a_time(session: Session, project: Project) -> None:
    """Lock the project: whoever puts tasks in, withdraws them or puts them back waits here for others who do."""
    session.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))


def to_label(project: Project) -> ColumnElement[bool]:
    """The project's tasks that count: neither gold nor practice, and not withdrawn."""
    return (Task.project_id == project.id) & (Task.purpose == "label") & Task.withdrawn_at.is_(None)


_COUNTS = (
    func.count(Task.id),
    func.count(Task.id).filter(Task.votes >= Task.seats),
    func.coalesce(func.sum(case((Task.votes < Task.seats, Task.votes), else_=Task.seats)), 0),
    func.coalesce(func.sum(Task.seats), 0),
)


def progress(session: Session, project: Project, *, batch: str | None = None) -> Progress:
    """How far a project is, or those of its tasks that came with `batch`."""
    query = select(*_COUNTS).where(to_label(project))
    if batch is not None:
        query = query.where(Task.batch == batch)
    tasks, complete, votes, wanted = session.execute(query).one()
    return Progress(tasks, complete, int(votes), int(wanted))


def progress_of_rounds(session: Session, project: Project) -> dict[int, Progress]:
    """The same of each round, in their order."""
    query = select(Task.round, *_COUNTS).where(to_label(project))
    found = session.execute(query.group_by(Task.round).order_by(Task.round))
    return {
        round: Progress(tasks, complete, int(votes), int(wanted)) for round, tasks, complete, votes, wanted in found
    }


def known_answers(session: Session, project: Project) -> dict[str, int]:
    """How many gold and practice tasks there are."""
    gold, practice = (func.count().filter(Task.purpose == one) for one in ("gold", "practice"))
    query = select(gold, practice).where(Task.project_id == project.id, Task.withdrawn_at.is_(None))
    found = session.execute(query).one()
    return {"gold": found[0], "practice": found[1]}


def task_row(project: Project, task: NewTask, *, now: float) -> Task:
    """The row of a task, in no session yet. Raises Refused where it cannot be judged."""
    least, most = RESPONSES[project.kind]
    if not least <= len(task.responses) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        given = counted(len(task.responses), "response")
        raise Refused("invalid", f"{given}; a {project.kind} project takes {wanted} a task")
    if not isinstance(task.prompt, str) and not task.prompt:
        raise Refused("invalid", "the prompt has no messages")
    prompt = as_kept(task.prompt)
    settings = settings_of(project)
    expected = None
    if task.purpose != "label":
        if task.expected is None:
            raise Refused("invalid", f"a {task.purpose} task needs its expected answer")
        answer = read_answer(project.kind, task.expected, responses=len(task.responses), settings=settings)
        expected = answer.model_dump(mode="json")
    texts = [response.text for response in task.responses]
    alike = sorted(text.strip() for text in texts)  # their order makes no other task: each person sees another
    said = {"prompt": prompt, "responses": alike, "purpose": task.purpose, "round": task.round, "batch": task.batch}
    beside = [(one.source, one.extra) for one in task.responses]
    clean_json([prompt, texts, beside, task.row, task.policy_version, task.batch], "the task")
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return Task(
        project_id=project.id,
        digest=digest,
        purpose=task.purpose,
        round=task.round,
        batch=task.batch,
        policy_version=task.policy_version,
        prompt=prompt,
        row=dict(task.row),
        expected=expected,
        seats=settings.votes,
        priority=0.0 if settings.choice == "random" else task.priority,
        shuffle=int(digest[:13], 16) / 16**13,
        created_at=now,
        responses=[
            Response(position=position, text=one.text, source=one.source, extra=dict(one.extra))
            for position, one in enumerate(task.responses)
        ],
    )


def as_kept(prompt: Dialogue) -> Any:
    """A prompt as the database holds it."""
    return Prompt(prompt).to_row()["prompt"]


def prompt_of(task: Task) -> Dialogue:
    """What `as_kept` was given."""
    kept = task.prompt
    return kept if isinstance(kept, str) else tuple(Message(one["role"], one["content"]) for one in kept)
