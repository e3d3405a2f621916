"""Where the database is, and opening it where its packages may be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keel.errors import UserError

if TYPE_CHECKING:
    from keel.feedback.database import Database

VARIABLE = "KEEL_FEEDBACK_DATABASE"
DATABASE = "keel-feedback.db"
"""Where neither an option nor that variable names one: in the working directory."""


def open_database(url: str) -> Database:
    """Raises UserError where the extra that knows databases is not installed, or the database cannot be had."""
    try:
        from keel.feedback.database import Database
    except ModuleNotFoundError as error:
        raise UserError(
            f"keel feedback needs a package that is not installed ({error}); pip install 'keel-rlhf[feedback]'"
        ) from None
    return Database(url)
