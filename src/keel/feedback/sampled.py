"""A policy's responses as tasks of one batch; asking about the same responses again makes no new tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keel.feedback.projects import Settings, add_project, clean_name, free_name, settings_of
from keel.feedback.refused import Refused
from keel.feedback.tables import STANDS, Assignment, Judgement, Kind, Project, Task, User
from keel.feedback.tasks import NewResponse, NewTask, as_kept, prompt_of, to_label
from keel.feedback.words import counted
from keel.schema import Dialogue, Message, Sampled


def project_for(session: Session, name: str, kind: Kind | None, votes: int | None, *, now: float) -> Project:
    """The project of that name; where there is none it is made, to compare unless another kind is given.

    Raises Refused for one that `open_project` refuses.
    """
    made = open_project(session, name, kind, votes)
    return made or add_project(session, name, kind or "compare", Settings(votes=votes or 1), now=now)


def open_project(session: Session, name: str, kind: Kind | None, votes: int | None) -> Project | None:
    """The project of that name, if there is one.

    Raises Refused for one of another kind, or that wants another number of votes a task, or is closed; and where there
    is none, for a name that none may get.
    """
    name = clean_name(name)
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        free_name(session, name)
        return None
    if kind not in (None, project.kind):
        raise Refused("conflict", f"the project {name} is there to {project.kind}, not to {kind}; name another one")
    wanted = settings_of(project).votes
    if votes not in (None, wanted):
        there = counted(wanted, "vote")
        raise Refused("conflict", f"the project {name} asks for {there} a task, not {votes}; change one of them")
    if project.closed_at is not None:
        raise Refused("gone", f"the project {name} is closed; name another one")
    return project


def tasks_of(kind: Kind, sampled: Sequence[Sampled], *, round: int, policy_version: str) -> list[NewTask]:
    """Tasks for a project of that kind, in one batch whose name follows from what is asked.

    To compare, each two different responses to a prompt; to rank or to rate, all different ones together; to review,
    each. Nothing is asked of a prompt that has too few. Texts are cleaned of what a database cannot hold.
    """
    tasks = [
        NewTask(
            _clean_prompt(one.prompt),
            [NewResponse(text, extra={"ended": ended}) for text, ended in group],
            round=round,
            policy_version=policy_version,
        )
        for one in sampled
        for group in _groups(kind, one)
    ]
    said = json.dumps([round, policy_version, [asked_of(as_kept(task.prompt), _texts(task)) for task in tasks]])
    batch = hashlib.sha256(said.encode()).hexdigest()
    return [replace(task, batch=batch) for task in tasks]


def asked_of(prompt: object, texts: Sequence[str]) -> str:
    """What a task asks, as one text; `prompt` as the database holds it."""
    return json.dumps([prompt, list(texts)], sort_keys=True)


def votes_by(session: Session, project: Project, *, batch: str) -> dict[str, int]:
    """How many of the answers to a batch that stand came from whom, most first; hidden repeats not counted."""
    count = func.count(Judgement.id)
    rows = session.execute(
        select(User.name, count)
        .join(Judgement, Judgement.user_id == User.id)
        .join(Assignment, STANDS)
        .join(Task, Task.id == Judgement.task_id)
        .where(to_label(project), Task.batch == batch)
        .where(Judgement.verdict == "answer", Assignment.occasion == 0)
        .group_by(User.name)
        .order_by(count.desc(), User.name)
    )
    return {row[0]: row[1] for row in rows}


def as_sampled(task: Task) -> Sampled:
    """What a task shows; a response of which nothing is known ended."""
    return Sampled(
        prompt_of(task),
        tuple(one.text for one in task.responses),
        tuple(one.extra.get("ended") is not False for one in task.responses),
    )


def _groups(kind: Kind, one: Sampled) -> list[Sequence[tuple[str, bool]]]:
    different: dict[str, tuple[str, bool]] = {}
    for text, ended in zip(one.responses, one.ended, strict=True):
        different.setdefault(text.strip(), (_clean(text), ended))
    responses = list(different.values())
    match kind:
        case "compare":
            return list(combinations(responses, 2))
        case "rank":
            return [responses] if len(responses) > 1 else []
        case "rate":
            return [responses]
        case "review":
            return [[response] for response in responses]


def _texts(task: NewTask) -> list[str]:
    return [response.text for response in task.responses]


def _clean_prompt(prompt: Dialogue) -> Dialogue:
    if isinstance(prompt, str):
        return _clean(prompt)
    return tuple(Message(_clean(message.role), _clean(message.content)) for message in prompt)


def _clean(text: str) -> str:
    """Without NUL and halves of surrogate pairs, which a policy may well write."""
    return "".join("\ufffd" if letter == "\x00" or "\ud800" <= letter <= "\udfff" else letter for letter in text)
