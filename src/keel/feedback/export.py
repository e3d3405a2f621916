"""Judgements as the records that a reward model and the audit read."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, get_args

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from keel.config.data import FieldName
from keel.data.write import in_one_step, line_of
from keel.feedback.answers import Answer, Compared, Ranked, Rated, Reviewed, kept_answer
from keel.feedback.database import Database
from keel.feedback.projects import settings_of
from keel.feedback.refused import Refused
from keel.feedback.secret import secret_of
from keel.feedback.tables import STANDS, Assignment, Judgement, Kind, Project, Response, Task, User
from keel.feedback.tasks import prompt_of, to_label
from keel.schema import (
    CHOSEN_ENDED,
    CHOSEN_FIRST,
    FIRST_PROBABILITY,
    REJECTED_ENDED,
    Comparison,
    Demonstration,
    Dialogue,
    Feedback,
    Label,
    Ranking,
    Rating,
)

What = Literal["judgements", "ties", "demonstrations"]
"""What was said; comparisons that call neither better, as rankings; responses to imitate, accepted or edited."""
_MADE_BY: dict[What, Kind] = {"ties": "compare", "demonstrations": "review"}
Names = Callable[[int, str], str]
"""What a person (number, name) is called."""

_OWN = (
    "time", "duration", "round", "policy_version", "strength", "criteria", "comment", "task", "purpose", "occasion",
    "edited",
)  # fmt: skip
_TAKEN = {*_OWN, *get_args(FieldName), CHOSEN_FIRST, CHOSEN_ENDED, REJECTED_ENDED, FIRST_PROBABILITY}
_AT_ONCE = 500


@dataclass(frozen=True)
class Wanted:
    """Which judgements: of one round; with `everything` hidden repeats, gold, practice and withdrawn tasks too."""

    round: int | None = None
    everything: bool = False


def by_name(number: int, name: str) -> str:
    """People as they are called."""
    return name


def by_pseudonym(database: Database) -> Names:
    """Names that stay the same in this database and tell nobody's."""
    key = secret_of(database, "pseudonyms").encode()

    def pseudonym(number: int, name: str) -> str:
        return f"person-{hmac.new(key, str(number).encode(), hashlib.sha256).hexdigest()[:12]}"

    return pseudonym


def write_export(
    session: Session, project: Project, files: Mapping[What, IO[bytes]], wanted: Wanted, names: Names = by_name
) -> Counter[What]:
    """Write the records of each `What` to its file as JSON lines; returns how many there are of each, written or not.

    Only answers that stand, in the order in which they were given. Give it a `Database.snapshot`.
    """
    counts: Counter[What] = Counter()
    for records in _exported(session, project, wanted, names):
        for what, some in records.items():
            counts[what] += len(some)
            if what in files:
                files[what].writelines(line_of(record.to_row()) for record in some)
    return counts


def require_some(session: Session, project: Project, wanted: Iterable[What], round: int | None) -> None:
    """Raises Refused where a project has no such round, or judges in a way of which nothing comes that is wanted."""
    for what in wanted:
        kind = _MADE_BY.get(what, project.kind)
        if project.kind != kind:
            why = (
                f"{what} come only of a project that is there to {kind}, and {project.name} is there to {project.kind}"
            )
            raise Refused("conflict", f"{why}; leave them out")
    of_project = select(Task.round).where(Task.project_id == project.id).distinct().order_by(Task.round)
    rounds = session.scalars(of_project).all()
    if round is not None and round not in rounds:
        there = f"those it has: {', '.join(map(str, rounds))}" if rounds else "nothing was put in yet"
        raise Refused("not_found", f"the project {project.name} has no round {round}; {there}")


def export_files(
    session: Session, project: Project, outs: Mapping[What, Path], wanted: Wanted, names: Names = by_name
) -> Counter[What]:
    """`write_export` to files that are whole or not there."""
    with ExitStack() as stack:
        files = {what: stack.enter_context(in_one_step(out)) for what, out in outs.items()}
        return write_export(session, project, files, wanted, names)


Records = dict[What, Sequence[Feedback | Demonstration]]


def _exported(session: Session, project: Project, wanted: Wanted, names: Names) -> Iterator[Records]:
    """The records of each judgement."""
    scale = settings_of(project).scale
    for assignment, judgement, person in session.execute(
        _standing(project, wanted).execution_options(yield_per=_AT_ONCE)
    ):
        assert judgement.answer is not None
        judged = _Judged(
            task=assignment.task,
            judgement=judgement,
            answer=kept_answer(project.kind, judgement.answer),
            annotator=names(person.id, person.name),
            occasion=assignment.occasion if wanted.everything else None,
        )
        yield judged.records(scale)


def _standing(project: Project, wanted: Wanted) -> Select[Assignment, Judgement, User]:
    query = (
        select(Assignment, Judgement, User)
        .join(Judgement, STANDS)
        .join(User, User.id == Judgement.user_id)
        .join(Task, Task.id == Judgement.task_id)
        .where(Assignment.project_id == project.id, Judgement.verdict == "answer")
        .order_by(Judgement.id)
    )
    if wanted.round is not None:
        query = query.where(Task.round == wanted.round)
    return query if wanted.everything else query.where(to_label(project), Assignment.occasion == 0)


@dataclass(frozen=True)
class _Judged:
    """One answer, and what it is about."""

    task: Task
    judgement: Judgement
    answer: Answer
    annotator: str
    occasion: int | None

    def records(self, scale: tuple[int, int]) -> Records:
        match self.answer:
            case Compared() as answer:
                if answer.best is None:
                    return {"ties": [self._ranking((1, 1), strength=answer.strength)]}
                return {"judgements": [self._comparison(answer.best, 1 - answer.best, answer.strength)]}
            case Ranked(ranks=ranks):
                return {"judgements": [self._ranking(ranks)]}
            case Rated(ratings=ratings):
                rated = zip(self._responses, ratings, strict=True)
                return {"judgements": [self._rating(response, rating, scale) for response, rating in rated]}
            case Reviewed() as answer:
                return self._reviewed(answer)

    @property
    def _responses(self) -> list[Response]:
        return self.task.responses

    @property
    def _prompt(self) -> Dialogue:
        return prompt_of(self.task)

    def _comparison(self, best: int, worst: int, strength: str) -> Comparison:
        chosen, rejected = self._responses[best], self._responses[worst]
        shown = {CHOSEN_FIRST: self.judgement.order[0] == best}
        for column, response in ((CHOSEN_ENDED, chosen), (REJECTED_ENDED, rejected)):
            if isinstance(response.extra.get("ended"), bool):
                shown[column] = response.extra["ended"]
        extra = self._extra({best: "chosen", worst: "rejected"}, strength=strength) | shown
        return Comparison(self._prompt, chosen.text, rejected.text, annotator=self.annotator, extra=extra)

    def _ranking(self, ranks: Sequence[int], **more: Any) -> Ranking:
        """The responses stand in the order in which they were shown, which the audit takes the row's order for."""
        order = self.judgement.order
        texts = tuple(self._responses[position].text for position in order)
        shown = tuple(ranks[position] for position in order)
        extra = self._extra({position: place for place, position in enumerate(order)}, **more)
        return Ranking(self._prompt, texts, shown, self.annotator, extra)

    def _rating(self, response: Response, rating: int, scale: tuple[int, int]) -> Rating:
        known = scale if scale[0] <= rating <= scale[1] else None  # the project's scale may have changed since
        return Rating(self._prompt, response.text, rating, known, self.annotator, self._extra({}))

    def _reviewed(self, answer: Reviewed) -> Records:
        (response,) = self._responses
        records: Records = {
            "judgements": [Label(self._prompt, response.text, answer.accepted, self.annotator, self._extra({}))]
        }
        imitated = response.text if answer.accepted else answer.edited
        if imitated is not None:
            extra = {"annotator": self.annotator, "edited": not answer.accepted} | self._extra({})
            records["demonstrations"] = [Demonstration(self._prompt, imitated, extra)]
        return records

    def _extra(self, places: Mapping[int, str | int], **more: Any) -> dict[str, Any]:
        """The columns beside the record; `places` is what its responses are called there, by position."""
        judgement, task = self.judgement, self.task
        criteria = {
            name: value if isinstance(value, str) or value is None else places.get(value)
            for name, value in judgement.criteria.items()
        }
        found = {
            "time": datetime.fromtimestamp(judgement.created_at, UTC).isoformat(timespec="milliseconds"),
            "duration": round(judgement.duration, 3),
            "round": task.round,
            "policy_version": task.policy_version,
            "criteria": criteria or None,
            "comment": judgement.comment or None,
            "task": task.id,
            "purpose": None if self.occasion is None else task.purpose,
            "occasion": self.occasion,
            "withdrawn": None if task.withdrawn_at is None else True,
        }
        taken = _TAKEN if self.occasion is None else _TAKEN | {"withdrawn"}
        others = {name: value for name, value in task.row.items() if name not in taken}
        return others | more | {name: value for name, value in found.items() if value is not None}
