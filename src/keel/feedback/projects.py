"""Projects: what is judged, in which way, how often, and what is asked of those who do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError
from sqlalchemy import case, select, update
from sqlalchemy.orm import Session

from keel.config.base import Config, without_effect
from keel.feedback.refused import Refused, not_valid
from keel.feedback.tables import Choice, Kind, Project, Purpose, Task, name_key

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
MOST_RESPONSES = 9
"""One key a response."""


class Criterion(Config):
    """A further question: which response is best at it (compare, rank), or one of `options` (rate, review)."""

    name: Name = Field(description="what it is called in the export, say helpful")
    question: str = Field("", max_length=500, description="how it is asked; the name unless given")
    options: tuple[Name, ...] = Field(("yes", "no", "unsure"), min_length=2, max_length=9)


class Settings(Config):
    """How a project is judged. The defaults suit one careful person."""

    question: str = Field("", max_length=500, description="above the task; a plain one of its kind unless given")
    guidelines: str = Field("", max_length=100_000, description="Markdown, beside every task")
    criteria: tuple[Criterion, ...] = Field((), max_length=9)
    scale: tuple[int, int] = Field((1, 7), description="lowest and highest rating")
    votes: int = Field(1, ge=1, le=50, description="people who judge each task")
    most_votes: int | None = Field(None, le=50, description="that a disputed task may get; two more unless given")
    choice: Choice = Field("random", description="which task comes next: random, disputed, uncertain (by priority)")
    lease_minutes: float = Field(30.0, gt=0, le=24 * 60, description="until a task goes back that was not judged")
    gold_share: float = Field(0.0, ge=0, le=0.5, description="of what a person gets, tasks with a known answer")
    repeat_share: float = Field(0.0, ge=0, le=0.5, description="of what a person gets, tasks they judged before")
    least_seconds: float = Field(0.0, ge=0, le=3600, description="a faster judgement is marked as too fast")

    def contradictions(self) -> Iterator[str]:
        if self.scale[0] >= self.scale[1] or self.scale[1] - self.scale[0] > 10:
            yield f"a scale from {self.scale[0]} to {self.scale[1]}; give two to eleven numbers, the lowest first"
        if self.choice != "disputed":
            yield from without_effect(self, "most_votes", because=f"with choice {self.choice}")
        elif self.votes < 2:
            yield "one vote a task disputes nothing; with choice disputed give votes: 2 or more"
        elif self.most_votes is not None and self.most_votes < self.votes:
            yield f"most_votes {self.most_votes} is less than votes {self.votes}"
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) < len(names):
            yield "two criteria have the same name"

    @property
    def lease_seconds(self) -> float:
        """`lease_minutes` in the unit of every other time."""
        return 60 * self.lease_minutes

    @property
    def ceiling(self) -> int:
        """The votes that a task may get."""
        if self.choice != "disputed":
            return self.votes
        return self.votes + 2 if self.most_votes is None else self.most_votes


def settings_of(project: Project) -> Settings:
    """What the project's row holds."""
    return Settings.model_validate(project.settings)


def add_project(session: Session, name: str, kind: Kind, settings: Settings, *, now: float) -> Project:
    """A new project. Raises Refused where its name is taken, empty or too long."""
    project = Project(name=free_name(session, name), kind=kind, settings=_kept(settings), created_at=now)
    session.add(project)
    session.flush()
    return project


def clean_name(name: str) -> str:
    """A project's name as it is kept. Raises Refused where it is empty, too long or no text."""
    name = clean_text(name, "name").strip()
    if not 1 <= len(name) <= 80 or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise Refused("invalid", "a project's name has 1 to 80 letters, and no control characters", field="name")
    return name


def free_name(session: Session, name: str) -> str:
    """As `clean_name`, for a new project. Raises Refused, too, where a reader would take it for another project's."""
    name = clean_name(name)
    for there in session.scalars(select(Project.name)):
        if name_key(there) == name_key(name):
            raise Refused("conflict", f"there is a project {there} already", field="name")
    return name


def change_settings(session: Session, project: Project, settings: Settings) -> None:
    """New settings for what is judged from now on; the votes that open tasks want change with them.

    With another `choice` the priorities of the last are forgotten: they would go on deciding what comes first.
    """
    before = settings_of(project)
    project.settings = _kept(settings)
    if settings.choice != before.choice:
        session.execute(update(Task).where(Task.project_id == project.id, Task.priority != 0).values(priority=0.0))
    if settings.votes != before.votes:
        wanted = case((Task.votes > settings.votes, Task.votes), else_=settings.votes)
        session.execute(update(Task).where(Task.project_id == project.id, Task.purpose == "label").values(seats=wanted))


def close_project(project: Project, *, now: float) -> None:
    """Nobody is given a task of it any more; what is under way is still taken."""
    project.closed_at = now


def reopen_project(project: Project) -> None:
    """Its tasks are given out again."""
    project.closed_at = None


def never_given(project: Project, purpose: Purpose) -> str:
    """Why nobody would be given tasks of that purpose, and what mends it; empty where people are."""
    if project.closed_at is not None:
        return f"nobody is given a task of {project.name} while it is closed; open it again"
    if purpose == "gold" and settings_of(project).gold_share == 0:
        return f"nobody is given gold in {project.name} while its gold_share is 0; set it to 0.05, say, in its settings"
    return ""


def find_project(session: Session, name: str | int) -> Project:
    """By its name, or by its number. Raises Refused where there is none.

    Who asks by a name holds the database, and is told those that there are. Anybody who judges may ask by a number.
    """
    column = Project.id if isinstance(name, int) else Project.name
    project = session.scalar(select(Project).where(column == name))
    if project is None and isinstance(name, int):
        raise Refused("not_found", f"there is no project {name}")
    if project is None:
        known = session.scalars(select(Project.name).order_by(Project.name)).all()
        there = f"there are {', '.join(known)}" if known else "there is none yet"
        raise Refused("not_found", f"no project is called {name}; {there}")
    return project


def all_projects(session: Session, *, closed: bool = False) -> Sequence[Project]:
    """The open ones by name, and the closed ones if asked for."""
    query = select(Project).order_by(Project.name)
    return session.scalars(query if closed else query.where(Project.closed_at.is_(None))).all()


def read_settings(given: object) -> Settings:
    """Checked settings. Raises Refused, naming the key."""
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise not_valid(error, "settings") from None


def _kept(settings: Settings) -> dict[str, Any]:
    """As the project's row holds them. Raises Refused for a text that a database cannot hold."""
    plain = settings.model_dump(mode="json")
    for name, value in plain.items():
        clean_json(value, name)
    return plain


def clean_json(value: Any, field: str) -> None:
    """Raises Refused for a text within it that a database cannot hold."""
    match value:
        case str():
            clean_text(value, field)
        case Mapping():
            for key, item in value.items():
                clean_text(key, field)
                clean_json(item, field)
        case list() | tuple():
            for item in value:
                clean_json(item, field)


def clean_text(text: str, field: str) -> str:
    """The text as it is. Raises Refused for what a database cannot hold: NUL, and halves of surrogate pairs."""
    if "\x00" in text or not _is_unicode(text):
        raise Refused("invalid", f"{field}: a NUL character, or half of a surrogate pair, is no text", field=field)
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
