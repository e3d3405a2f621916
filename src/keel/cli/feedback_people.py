"""`keel feedback password`: the way back in, for whoever holds the database."""

from __future__ import annotations

from typing import Annotated

import typer

from keel.cli.feedback import DatabaseOption, database_at
from keel.feedback.opening import DATABASE


def password(
    name: Annotated[str, typer.Argument(help="The account's name.")], database: DatabaseOption = DATABASE
) -> None:
    """Give an account a new password, and end its logins: for who has forgotten theirs, the only admin too.

    **Example:** `keel feedback password ana --database feedback.db`
    """
    from keel.feedback import people
    from keel.feedback.passwords import Passwords

    with database_at(database) as opened:
        with opened.reading() as session:
            people.user_called(session, name)  # before anybody types a password
        hashed = Passwords().new(typer.prompt("New password", hide_input=True, confirmation_prompt=True), name=name)
        with opened.writing() as session:
            user = people.reset_password(session, name, hashed)
            print(f"{user.name} has a new password and must sign in again.")
