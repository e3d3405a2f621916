"""A panel of people who judge in the feedback app; a run and the app know each other by the database alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from keel.annotate.people import Away, Opinion, Standing
from keel.errors import first_line
from keel.feedback.answers import Compared, kept_answer
from keel.feedback.database import Database
from keel.feedback.judgements import standing
from keel.feedback.refused import for_the_terminal
from keel.feedback.sampled import asked_of, project_for, tasks_of, votes_by
from keel.feedback.tables import Project, User
from keel.feedback.tasks import add_tasks, as_kept, has_batch, progress
from keel.schema import Sampled


class PeopleInApp:
    """A `Panel` on a project of the app. A context manager: it closes the database."""

    def __init__(self, database: Database, project: str, *, votes: int | None, round: int, policy_version: str) -> None:
        """The project is made where it is missing. Raises UserError for another kind; see `project_for`."""
        self.columns: Mapping[str, Any] = {"round": round, "policy_version": policy_version}
        self._database = database
        self._name = project
        self._round = round
        self._policy_version = policy_version
        self._batch = ""  # of what was published last
        self._numbers: dict[str, int] = {}  # which question a task is
        with for_the_terminal("collect.annotator.people: "), database.writing() as session:
            self._project_id = project_for(session, project, "compare", votes, now=time.time()).id

    def __enter__(self) -> PeopleInApp:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def where(self) -> str:
        return f"They judge in the project {self._name} of `keel feedback serve --database {self._database}`."

    def publish(self, questions: Sequence[Sampled]) -> int:
        """As tasks of one batch, in one transaction: all are there, or none is."""
        tasks = tasks_of("compare", questions, round=self._round, policy_version=self._policy_version)
        self._batch, self._numbers = str(tasks[0].batch), {}
        for number, (task, _) in enumerate(zip(tasks, questions, strict=True)):
            self._numbers.setdefault(asked_of(as_kept(task.prompt), [one.text for one in task.responses]), number)
        with for_the_terminal("collect.annotator.people: "), _reaching(), self._database.writing() as session:
            project = self._project(session)
            if has_batch(session, project, self._batch):  # whole, for it came at once; withdrawn, perhaps
                return 0
            return add_tasks(session, project, tasks, now=time.time()).new

    def standing(self) -> Standing:
        with _reaching(), self._database.reading() as session:
            project = self._project(session)
            found = progress(session, project, batch=self._batch)
            by = votes_by(session, project, batch=self._batch)
        return Standing(found.tasks, found.complete, found.votes, found.wanted, by, project.closed_at is None)

    def opinions(self) -> list[Opinion]:
        with _reaching(), self._database.reading() as session:
            project = self._project(session)
            given = [pair for pair in standing(session, project, batch=self._batch) if pair[0].occasion == 0]
            names = {user_id: session.get_one(User, user_id).name for user_id in {one.user_id for one, _ in given}}
            opinions = []
            for assignment, judgement in given:
                task = assignment.task
                answer = kept_answer("compare", judgement.answer or {})
                assert isinstance(answer, Compared)
                opinions.append(
                    Opinion(
                        question=self._numbers[asked_of(task.prompt, [one.text for one in task.responses])],
                        annotator=names[assignment.user_id],
                        best=answer.best,
                        shown_first=judgement.order[0],
                        strength=answer.strength,
                        seconds=round(judgement.duration, 3),
                    )
                )
        return sorted(opinions, key=lambda one: one.question)

    def _project(self, session: Session) -> Project:
        return session.get_one(Project, self._project_id)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise Away(f"the feedback database does not answer ({first_line(error)})") from None
