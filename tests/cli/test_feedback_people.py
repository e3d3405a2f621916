"""`keel feedback password`: the way back in."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from keel.feedback.database import Database
from tests.feedback.support import PASSWORD, add_user, quick_app, signed_in, visitor

NEW = "another long password"


def set_password(database: Path, name: str, answers: str) -> str:
    result = CliRunner().invoke(app, ["feedback", "password", name, "--database", str(database)], input=answers)
    if isinstance(result.exception, UserError):
        raise result.exception
    return result.output


def test_who_forgot_gets_back_in_and_nobody_else_stays_in(tmp_path: Path) -> None:
    store = Database(tmp_path / "feedback.db")
    add_user(store, "Ana", "admin")
    web = quick_app(store)
    before = signed_in(web, "ana")
    said = set_password(tmp_path / "feedback.db", "ANA", f"{NEW}\n{NEW}\n")
    assert said.endswith("Ana has a new password and must sign in again.\n")
    assert NEW not in said
    assert before.get("/account").status_code == 303
    assert signed_in(web, "ana", NEW).get("/account").status_code == 200
    assert visitor(web).post("/sign-in", data={"name": "ana", "password": PASSWORD}).status_code == 401


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    add_user(Database(tmp_path / "feedback.db"), "Ana")
    with pytest.raises(UserError, match="nobody is called bo"):
        set_password(tmp_path / "feedback.db", "bo", "")  # before a password is asked for
    with pytest.raises(UserError, match="at least 10"):
        set_password(tmp_path / "feedback.db", "ana", "short\nshort\n")
    with pytest.raises(UserError, match="there is no database"):
        set_password(tmp_path / "none.db", "ana", "")
