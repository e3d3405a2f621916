"""What the server signs and hides names with: made once, and kept in the database."""

from __future__ import annotations

import secrets
from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from keel.feedback.database import Database
from keel.feedback.tables import Secret


def secret_of(database: Database, name: str) -> str:
    """The secret of that name: made when it is first asked for, and the same in every process on that database."""
    made = Secret(name=name, value=secrets.token_urlsafe(32))
    with suppress(IntegrityError), database.writing() as session:
        kept = session.get(Secret, made.name)
        if kept is not None:
            return kept.value
        session.add(made)
        session.flush()
        return made.value
    with database.reading() as session:  # another process was faster
        return session.scalars(select(Secret.value).where(Secret.name == name)).one()
