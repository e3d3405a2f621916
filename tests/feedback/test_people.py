"""Accounts, links, logins and tokens, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import argon2
import pytest
from sqlalchemy import text
from sqlalchemy.event import listen
from sqlalchemy.orm import Session

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.judgements import Said, judge
from keel.feedback.passwords import LONGEST, Passwords
from keel.feedback.refused import Refused
from keel.feedback.tables import Base, Role, User
from tests.feedback import worlds
from tests.feedback.support import PASSWORD, quick_passwords
from tests.feedback.worlds import NOW

DAY = 86_400.0


def refusal(function: Callable[..., object], *arguments: Any, **named: Any) -> Refused:
    """How a call is refused."""
    with pytest.raises(Refused) as caught:
        function(*arguments, **named)
    return caught.value


def written(database: Database, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The call in a transaction of its own."""
    with database.writing() as session:
        made = function(session, *arguments, **named)
        session.flush()
        session.expunge_all()
        return made


def read(database: Database, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with database.reading() as session:
        return function(session, *arguments, **named)


def join(database: Database, secret: str, name: str, *, now: float = NOW) -> User:
    user: User = written(database, people.join, secret, name, quick_passwords().hash(PASSWORD), now=now)
    return user


def set_up(database: Database, name: str = "Ana") -> User:
    """The first admin."""
    return join(database, written(database, people.setup_secret, now=NOW), name)


def invite(database: Database, by: User, role: Role = "annotator") -> str:
    secret: str = written(database, people.invite, role, by=by, now=NOW)[1]
    return secret


def log_in(database: Database, user: User) -> str:
    login: str = written(database, people.start_login, user, now=NOW)
    return login


def is_in(database: Database, login: str, *, now: float = NOW) -> bool:
    return read(database, people.user_of_login, login, now=now) is not None


def at_once(*work: Callable[[], object]) -> list[Refused]:
    """What was refused when all of these began at the same moment."""
    start, refused = threading.Barrier(len(work)), []

    def run(call: Callable[[], object]) -> None:
        start.wait()
        try:
            call()
        except Refused as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refused


# --- links ---


def test_the_first_link_makes_one_admin_and_no_other(database: Database) -> None:
    earlier = written(database, people.setup_secret, now=NOW)
    later = written(database, people.setup_secret, now=NOW)
    assert refusal(join, database, earlier, "Eve").code == "not_found"
    ana = join(database, later, "Ana")
    assert (ana.role, ana.active) == ("admin", True)
    assert refusal(join, database, later, "Eve").code == "gone"
    assert written(database, people.setup_secret, now=NOW) is None


def test_the_first_link_ends_when_an_admin_is_there(database: Database) -> None:
    secret = written(database, people.setup_secret, now=NOW)
    ana = User(name="Ana", role="admin", password_hash="-", active=True, created_at=NOW)
    written(database, Session.add, ana)
    assert "first admin is there" in str(refusal(join, database, secret, "Eve"))


def test_an_invitation_gives_its_role_until_it_is_used_withdrawn_or_old(database: Database) -> None:
    ana = set_up(database)
    used, withdrawn, old = (invite(database, ana, "viewer") for _ in range(3))
    assert join(database, used, "Vic", now=NOW + 7 * DAY - 1).role == "viewer"
    assert refusal(join, database, used, "Eve").code == "gone"
    newest_first = [one.id for one in read(database, people.open_invitations, now=NOW)]
    assert newest_first == sorted(newest_first, reverse=True)
    assert len(newest_first) == 2
    written(database, people.withdraw_invitation, newest_first[1], now=NOW)
    assert refusal(join, database, withdrawn, "Eve").code == "gone"
    assert refusal(join, database, old, "Eve", now=NOW + 7 * DAY).code == "gone"
    assert refusal(join, database, "guess", "Eve").code == "not_found"
    again = refusal(written, database, people.withdraw_invitation, newest_first[1], now=NOW)
    assert again.code == "not_found"
    assert read(database, people.open_invitations, now=NOW + 7 * DAY) == []


def test_a_link_that_many_open_at_once_makes_one_account(database: Database) -> None:
    secret = invite(database, set_up(database))
    refused = at_once(*(partial(join, database, secret, f"guest {k}") for k in range(6)))
    assert [error.code for error in refused] == ["gone"] * 5
    assert len(read(database, people.everybody)) == 2


# --- names and passwords ---


@pytest.mark.parametrize("name", ["ana", "ANA", "  Ana ", "Ａｎａ", "Ana\t"])  # noqa: RUF001
def test_names_that_read_alike_are_one(database: Database, name: str) -> None:
    secret = invite(database, set_up(database, "Ana"))
    refused = refusal(join, database, secret, name)
    assert (refused.code, refused.field) == ("conflict", "name")
    assert join(database, secret, "Anna").name == "Anna"  # the link is still good


def test_names_are_kept_in_one_form() -> None:
    assert people.normal_name(" Jose\u0301  Ｎúñez ") == "José Núñez"  # noqa: RUF001
    for name in ("", "   ", "a" * 65, "a\x00b", "a\u200bb", "a\u202eb", "a\ud800b"):
        assert refusal(people.normal_name, name).field == "name"
    assert people.normal_name("a" * 64) == "a" * 64


def test_a_password_is_long_enough_not_too_long_and_not_the_name() -> None:
    for password in ("ninechars", "x" * 1025, "Ana Nowak-Ito"):
        assert refusal(quick_passwords().new, password, name="ana nowak-ito").field == "password"
    for password in ("ten chars!", "x" * LONGEST):
        assert quick_passwords().fits(password, quick_passwords().new(password, name="ana"))


def test_passwords_are_kept_by_argon2id_and_the_same_from_every_keyboard(database: Database) -> None:
    ana = set_up(database)
    assert ana.password_hash.startswith("$argon2id$")
    assert argon2.PasswordHasher().verify(ana.password_hash, PASSWORD)
    composed, decomposed = "caf\u00e9 au lait", "cafe\u0301 au lait"
    passwords = quick_passwords()
    assert passwords.fits(decomposed, passwords.hash(composed))
    assert not passwords.fits("x" * LONGEST + "y", passwords.hash("x" * LONGEST))
    assert not passwords.fits("\ud800", passwords.hash(composed))


class Counted(argon2.PasswordHasher):
    """Counts what takes the time."""

    verified = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # counts, then the same
        self.verified += 1
        return super().verify(hash, password)


def test_whatever_is_wrong_takes_one_hash_and_the_same_words(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana), "Zoe")
    written(database, people.set_active, zoe.id, False, now=NOW)
    counted = Counted(time_cost=1, memory_cost=8, parallelism=1)
    passwords = Passwords(counted)
    said = []
    for name, password in (("Ana", "wrong, wrong"), ("Nobody", PASSWORD), ("Zoe", PASSWORD), ("a\x00", PASSWORD)):
        before = counted.verified
        found = read(database, people.find_user, name)
        refused = refusal(people.check_password, found, password, passwords=passwords)
        said.append((refused.code, str(refused), counted.verified - before))
    assert said == [("unauthorised", "the name or the password is wrong", 1)] * 4
    found = read(database, people.find_user, " ANA")
    assert people.check_password(found, PASSWORD, passwords=passwords).id == ana.id


def test_another_password_ends_the_other_logins(database: Database) -> None:
    ana = set_up(database)
    here, there = log_in(database, ana), log_in(database, ana)
    assert is_in(database, there)
    written(database, people.set_password, ana, quick_passwords().hash("a new password"), keep=here)
    assert is_in(database, here)
    assert not is_in(database, there)
    assert refusal(log_in, database, ana).code == "unauthorised"  # by the password as it was


# --- logins and tokens ---


def test_a_login_ends_after_14_days_however_much_it_is_used(database: Database) -> None:
    ana = set_up(database)
    login = log_in(database, ana)
    assert is_in(database, login, now=NOW + 13 * DAY)
    assert is_in(database, login, now=NOW + 14 * DAY - 1)
    assert not is_in(database, login, now=NOW + 14 * DAY)
    written(database, people.end_login, login)
    assert not is_in(database, login)


def test_a_new_hash_replaces_the_old_one_at_login(database: Database) -> None:
    ana = set_up(database)
    stronger = Passwords(argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert stronger.outdated(ana.password_hash)
    with database.writing() as session:
        people.start_login(session, ana, now=NOW, rehashed=stronger.hash(PASSWORD))
    kept = read(database, people.account, ana.id).password_hash
    assert "m=16,t=2" in kept
    assert argon2.PasswordHasher().verify(kept, PASSWORD)


def test_the_end_of_an_account_ends_its_logins_and_tokens_for_good(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana), "Zoe")
    login = log_in(database, zoe)
    _, token = written(database, people.make_token, zoe, "laptop", now=NOW)
    assert read(database, people.user_of_token, token) is not None
    for active in (False, True):
        written(database, people.set_active, zoe.id, active, now=NOW)
        assert not is_in(database, login)
        assert read(database, people.user_of_token, token) is None
    assert is_in(database, log_in(database, zoe))


def test_nobody_who_has_ended_gets_a_token(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana), "Zoe")
    written(database, people.set_active, zoe.id, False, now=NOW)
    assert refusal(written, database, people.make_token, zoe, "x", now=NOW).code == "forbidden"


def test_tokens_are_their_owners_to_revoke(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana), "Zoe")
    made, token = written(database, people.make_token, zoe, " my  laptop", now=NOW)
    assert (made.label, token[:5]) == ("my laptop", "keel_")
    assert refusal(written, database, people.revoke_token, ana, made.id, now=NOW).code == "not_found"
    assert [one.label for one in read(database, people.tokens_of, zoe)] == ["my laptop"]
    written(database, people.revoke_token, zoe, made.id, now=NOW)
    assert read(database, people.tokens_of, zoe) == []
    assert read(database, people.user_of_token, token) is None


def test_no_secret_is_in_the_database(database: Database) -> None:
    ana = set_up(database)
    link = invite(database, ana)
    login = log_in(database, ana)
    _, token = written(database, people.make_token, ana, "x", now=NOW)
    with database.reading() as session:
        rows = [str(session.execute(text(f"SELECT * FROM {table}")).all()) for table in Base.metadata.tables]
    assert ana.password_hash in "".join(rows)
    for secret in (link, login, token, token.removeprefix("keel_"), PASSWORD):
        assert secret not in "".join(rows)


# --- roles ---


def test_the_last_admin_stays(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana, "admin"), "Zoe")
    written(database, people.set_role, zoe.id, "viewer")
    assert refusal(written, database, people.set_role, ana.id, "annotator").code == "conflict"
    assert refusal(written, database, people.set_active, ana.id, False, now=NOW).code == "conflict"
    written(database, people.set_role, ana.id, "admin")  # changes nothing
    assert refusal(written, database, people.set_role, 999, "admin").code == "not_found"


def test_two_admins_who_leave_at_once_do_not_both(database: Database) -> None:
    ana = set_up(database)
    zoe = join(database, invite(database, ana, "admin"), "Zoe")
    refused = at_once(
        partial(written, database, people.set_role, ana.id, "viewer"),
        partial(written, database, people.set_active, zoe.id, False, now=NOW),
    )
    assert [error.code for error in refused] == ["conflict"]
    assert read(database, people.has_admin)


def test_everybody_is_listed_by_name_with_the_note_of_their_invitation(database: Database) -> None:
    zoe = set_up(database, "Zoe")
    _, secret = written(database, people.invite, "annotator", by=zoe, now=NOW, note=" the  night shift\n")
    join(database, secret, "ana")
    found = [(one.user.name, one.note) for one in read(database, people.everybody)]
    assert found == [("ana", "the night shift"), ("Zoe", "")]


def test_everybodys_answers_count_once_and_while_they_stand(database: Database) -> None:
    """A correction, a skip, a problem and what was taken back are no further judgements; projects add up."""
    set_up(database, "root")
    with database.writing() as session:
        ana, _ = worlds.people(session, "ana", "idle")
        first, second = worlds.project(session, tasks=4), worlds.project(session, "review", tasks=1, responses=1)
        one, two, three, four = worlds.tasks_of(session, first)
        corrected = worlds.answered(session, first, ana, one, {"best": 0, "strength": "clear"}, at=NOW)
        judge(session, ana, "correction", corrected.id, Said("answer", {"best": 1, "strength": "clear"}), now=NOW + 5)
        worlds.answered(session, first, ana, two, None, verdict="skip", at=NOW + 6)
        worlds.answered(session, first, ana, three, None, verdict="problem", comment="broken", at=NOW + 7)
        taken_back = worlds.answered(session, first, ana, four, {"best": 0, "strength": "clear"}, at=NOW + 8)
        judge(session, ana, "back", taken_back.id, Said("withdrawn"), now=NOW + 9)
        (review,) = worlds.tasks_of(session, second)
        worlds.answered(session, second, ana, review, {"accepted": True}, at=NOW + 2)
    found = {one.user.name: (one.judgements, one.last_judged_at) for one in read(database, people.everybody)}
    assert found == {"root": (0, None), "ana": (2, NOW + 5), "idle": (0, None)}


def test_everybody_is_one_query(database: Database) -> None:
    set_up(database)
    with database.writing() as session:
        worlds.people(session, *(f"person {number}" for number in range(5)))
    asked: list[str] = []
    with database.reading() as session:
        listen(session.get_bind(), "before_cursor_execute", lambda *given: asked.append(given[2]))
        people.everybody(session)
    assert len([statement for statement in asked if statement != "BEGIN"]) == 1
