"""People who judge through the store, as they would in a browser."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.leases import lease, release_lapsed
from keel.feedback.projects import find_project
from keel.feedback.tables import User
from tests.feedback.worlds import NOW, people

Says = Callable[[Sequence[str]], Said]  # to the responses as they are shown


def annotator(database: Database, name: str) -> int:
    with database.writing() as session:
        return people(session, name)[0].id


def longer(texts: Sequence[str]) -> Said:
    """Prefers the longer response, slightly where it is by one letter; a tie where they are as long."""
    lengths = [len(text) for text in texts]
    if lengths[0] == lengths[1]:
        return said(None, "tie")
    return said(lengths.index(max(lengths)), "slight" if abs(lengths[0] - lengths[1]) == 1 else "clear")


def said(best: int | None, strength: str, **more: Any) -> Said:
    return Said("answer", {"best": best, "strength": strength}, duration=2.5, **more)


def judge_next(database: Database, project: str, person: int, says: Says = longer, *, now: float = NOW) -> bool:
    """One task; False where there is none for this person."""
    with database.writing() as session:
        release_lapsed(session, now=now)
    with database.writing() as session:
        user = session.get_one(User, person)
        found = lease(session, find_project(session, project), user, count=1, now=now)
        if not found:
            return False
        texts = [found[0].task.responses[position].text for position in found[0].order]
        judge(session, user, uuid.uuid4().hex, found[0].id, says(texts), now=now)
        return True


def judge_all(database: Database, project: str, person: int, says: Says = longer, *, most: int = 10**6) -> int:
    """Tasks until there are none, or `most` are judged; returns how many."""
    done = 0
    while done < most and judge_next(database, project, person, says):
        done += 1
    return done
