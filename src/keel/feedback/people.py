"""People: accounts and their roles, the links that make them, and what shows that it is they: logins and tokens.

A secret (of a link, a login, a token) is 32 random bytes, handed out once and kept as its SHA-256. `now` is seconds
since 1970.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from keel.feedback.passwords import Passwords
from keel.feedback.refused import Refused
from keel.feedback.tables import STANDS, Assignment, Invitation, Judgement, Login, Role, Token, User, name_key

INVITED_FOR = 7 * 86_400.0
SIGNED_IN_FOR = 14 * 86_400.0
"""Seconds from signing in, however much the login is used: it ends at a time that is known."""
ROLES: tuple[Role, ...] = get_args(Role)
LONGEST_NAME = 64
_LONGEST_LABEL = 80
_TOKEN = "keel_"  # by which a token that was left somewhere is found

_WRONG = "the name or the password is wrong"


@dataclass(frozen=True)
class Account:
    """Somebody, and what an admin sees of them."""

    user: User
    judgements: int
    """Answers that stand, in all projects; of gold, practice and repeats too."""
    last_judged_at: float | None
    note: str
    """Of the invitation that the account came of."""


# --- invitations ---


def invite(session: Session, role: Role, *, by: User, now: float, note: str = "") -> tuple[Invitation, str]:
    """An invitation, and the secret of its link. The note says whom it is for. Raises Refused where it is too long."""
    return _invite(session, role, by=by.id, now=now, note=_line(note, "note", _LONGEST_LABEL, shortest=0))


def setup_secret(session: Session, *, now: float) -> str | None:
    """The secret of a new link that makes the first admin, made by nobody; None where there is an active admin.

    The links of earlier starts that nobody used end.
    """
    if has_admin(session):
        return None
    session.execute(delete(Invitation).where(Invitation.created_by.is_(None), Invitation.user_id.is_(None)))
    return _invite(session, "admin", by=None, now=now)[1]


def invitation_of(session: Session, secret: str, *, now: float) -> Invitation:
    """The invitation of a link. Raises Refused where there is none, or it is used up or too old."""
    invitation = session.scalar(select(Invitation).where(Invitation.secret_hash == _digest(secret)))
    if invitation is None:
        raise Refused("not_found", f"no invitation has this link; {_where_from(session)}")
    if invitation.user_id is not None:
        raise Refused("gone", "this invitation has been used; sign in, or ask for a new one")
    if invitation.expires_at <= now:
        raise Refused("gone", f"this invitation has expired, or was withdrawn; {_where_from(session)}")
    if invitation.created_by is None and has_admin(session):
        raise Refused("gone", "the first admin is there already; ask them for an invitation")
    return invitation


def open_invitations(session: Session, *, now: float) -> list[Invitation]:
    """Those that somebody made and nobody has used, newest first."""
    return list(session.scalars(select(Invitation).where(_is_open(now)).order_by(Invitation.id.desc())))


def withdraw_invitation(session: Session, invitation_id: int, *, now: float) -> None:
    """The link ends. Raises Refused where there is no such open invitation."""
    ended = update(Invitation).where(Invitation.id == invitation_id, _is_open(now)).values(expires_at=now)
    if not session.execute(ended.returning(Invitation.id)).all():
        raise Refused("not_found", "there is no such open invitation")


def join(session: Session, secret: str, name: str, password_hash: str, *, now: float) -> User:
    """Make the account that an invitation is for, and use the invitation up.

    Raises Refused where the invitation no longer holds, or the name is taken or cannot be one.
    """
    invitation = invitation_of(session, secret, now=now)
    name = normal_name(name)
    user = User(name=name, role=invitation.role, password_hash=password_hash, active=True, created_at=now)
    session.add(user)
    try:
        session.flush()
    except IntegrityError:
        raise Refused("conflict", f"somebody is called {name} already; choose another name", field="name") from None
    used = update(Invitation).where(Invitation.id == invitation.id, Invitation.user_id.is_(None))
    if not session.execute(used.values(user_id=user.id).returning(Invitation.id)).all():
        raise Refused("gone", "this invitation has been used; sign in, or ask for a new one")
    return user


# --- accounts ---


def normal_name(name: str) -> str:
    """A name as it is kept and shown. Raises Refused where it is none."""
    return _line(name, "name", LONGEST_NAME)


def key_of(name: str) -> str:
    """The `name_key` of a name as it was typed; empty, which is nobody's, where no account could have that name."""
    try:
        return name_key(normal_name(name))
    except Refused:
        return ""


def everybody(session: Session) -> list[Account]:
    """All accounts, the ended ones too, by name."""
    answers = (
        select(Assignment.user_id, func.count().label("count"), func.max(Judgement.created_at).label("last"))
        .join(Judgement, STANDS)
        .where(Assignment.state == "done")
        .group_by(Assignment.user_id)
        .subquery()
    )
    query = (
        select(User, func.coalesce(answers.c.count, 0), answers.c.last, func.coalesce(Invitation.note, ""))
        .outerjoin(answers, answers.c.user_id == User.id)
        .outerjoin(Invitation, Invitation.user_id == User.id)
        .order_by(User.name_key)
    )
    return [Account(user, count, last, note) for user, count, last, note in session.execute(query)]


def has_admin(session: Session) -> bool:
    """Whether somebody can invite others."""
    return bool(session.scalar(select(exists().where(User.role == "admin", User.active))))


def account(session: Session, user_id: int, *, locked: bool = False) -> User:
    """The account of that id. Raises Refused where there is none.

    `locked`: nobody can end it before this transaction has committed, so that a login or token made here ends with it.
    """
    user = session.get(User, user_id, with_for_update=locked, populate_existing=locked)
    if user is None:
        raise Refused("not_found", "there is no such account")
    return user


def find_user(session: Session, name: str, *, locked: bool = False) -> User | None:
    """The account with this name, whatever its case and spacing; an account that has ended is found too."""
    query = select(User).where(User.name_key == key_of(name))
    return session.scalar(query.with_for_update() if locked else query)


def user_called(session: Session, name: str, *, locked: bool = False) -> User:
    """As `find_user`. Raises Refused where nobody has that name."""
    user = find_user(session, name, locked=locked)
    if user is None:
        raise Refused("not_found", f"nobody is called {name}")
    return user


def set_role(session: Session, user_id: int, role: Role) -> User:
    """Raises Refused where there is no such account, or nobody would be admin any more."""
    user = account(session, user_id)
    if role != "admin":
        _leave_an_admin(session, user)
    user.role = role
    session.flush()
    return user


def set_active(session: Session, user_id: int, active: bool, *, now: float) -> User:
    """Ends an account, every login and token of it at once; or opens it again, by its old password.

    Raises Refused as `set_role` does.
    """
    user = account(session, user_id)
    if not active:
        _leave_an_admin(session, user)
    user.active = active
    if not active:
        _end_logins(session, user)
        live = update(Token).where(Token.user_id == user.id, Token.revoked_at.is_(None))
        session.execute(live.values(revoked_at=now))
    session.flush()
    return user


def set_password(session: Session, user: User, password_hash: str, *, keep: str | None) -> None:
    """A new password for somebody whose old one was just checked; ends every login but the one with the secret `keep`.

    Raises Refused where the account has ended, or has another password, since it was checked.
    """
    kept = _unchanged(session, user)
    kept.password_hash = password_hash
    _end_logins(session, kept, keep=keep)
    session.flush()


def reset_password(session: Session, name: str, password_hash: str) -> User:
    """A new password for somebody who forgot theirs, set by whoever has the database itself; ends all their logins.

    Raises Refused where nobody has that name.
    """
    user = user_called(session, name, locked=True)
    user.password_hash = password_hash
    _end_logins(session, user)
    session.flush()
    return user


# --- logins ---


def check_password(user: User | None, password: str, *, passwords: Passwords) -> User:
    """Who signs in. Raises Refused, with the same words and after the same time, whatever is wrong.

    Call it outside of any session: hashing takes long on purpose, and others would wait for the database meanwhile.
    """
    fits = passwords.fits(password, user.password_hash if user else None)
    if user is None or not fits or not user.active:
        raise Refused("unauthorised", _WRONG)
    return user


def start_login(session: Session, user: User, *, now: float, rehashed: str | None = None) -> str:
    """The secret of a new login of somebody whose password was checked; `rehashed` is a newer hash of it.

    Logins that have expired are deleted. Raises Refused as `set_password` does.
    """
    kept = _unchanged(session, user)
    if rehashed is not None:
        kept.password_hash = rehashed
    session.execute(delete(Login).where(Login.expires_at <= now))
    secret = secrets.token_urlsafe(32)
    login = Login(secret_hash=_digest(secret), user_id=kept.id, created_at=now, expires_at=now + SIGNED_IN_FOR)
    session.add(login)
    session.flush()
    return secret


def user_of_login(session: Session, secret: str, *, now: float) -> User | None:
    """Whose login that is; None where it has ended."""
    of_login = select(User).join(Login, Login.user_id == User.id)
    return session.scalar(of_login.where(Login.secret_hash == _digest(secret), Login.expires_at > now, User.active))


def end_login(session: Session, secret: str) -> None:
    session.execute(delete(Login).where(Login.secret_hash == _digest(secret)))


def _end_logins(session: Session, user: User, *, keep: str | None = None) -> None:
    """All of that person's but the one whose secret is `keep`."""
    of_user = delete(Login).where(Login.user_id == user.id)
    session.execute(of_user if keep is None else of_user.where(Login.secret_hash != _digest(keep)))


# --- tokens ---


def make_token(session: Session, user: User, label: str, *, now: float) -> tuple[Token, str]:
    """A token and its secret, which cannot be shown again.

    Raises Refused where the label will not do, or the account has ended.
    """
    label = _line(label, "label", _LONGEST_LABEL)
    if not account(session, user.id, locked=True).active:
        raise Refused("forbidden", "this account has ended")
    secret = _TOKEN + secrets.token_urlsafe(32)
    token = Token(secret_hash=_digest(secret), user_id=user.id, label=label, created_at=now)
    session.add(token)
    session.flush()
    return token, secret


def tokens_of(session: Session, user: User) -> list[Token]:
    """Those that still open something, newest first."""
    live = select(Token).where(Token.user_id == user.id, Token.revoked_at.is_(None))
    return list(session.scalars(live.order_by(Token.id.desc())))


def revoke_token(session: Session, user: User, token_id: int, *, now: float) -> None:
    """Raises Refused where that person has no such token."""
    mine = update(Token).where(Token.id == token_id, Token.user_id == user.id, Token.revoked_at.is_(None))
    if not session.execute(mine.values(revoked_at=now).returning(Token.id)).all():
        raise Refused("not_found", "you have no such token")


def user_of_token(session: Session, secret: str) -> User | None:
    """Whose token that is; None where it has ended."""
    of_token = select(User).join(Token, Token.user_id == User.id)
    return session.scalar(of_token.where(Token.secret_hash == _digest(secret), Token.revoked_at.is_(None), User.active))


def _invite(session: Session, role: Role, *, by: int | None, now: float, note: str = "") -> tuple[Invitation, str]:
    secret = secrets.token_urlsafe(32)
    invitation = Invitation(
        secret_hash=_digest(secret), role=role, created_by=by, created_at=now, expires_at=now + INVITED_FOR, note=note
    )
    session.add(invitation)
    session.flush()
    return invitation, secret


def _where_from(session: Session) -> str:
    """How to get a link that works, as the end of a sentence."""
    return "ask for a new one" if has_admin(session) else "the server's terminal has a new one at each start"


def _is_open(now: float) -> ColumnElement[bool]:
    return Invitation.created_by.is_not(None) & Invitation.user_id.is_(None) & (Invitation.expires_at > now)


def _unchanged(session: Session, user: User) -> User:
    """The account, locked. Raises Refused where it has ended, or has another password, since that was checked."""
    kept = account(session, user.id, locked=True)
    if not kept.active or kept.password_hash != user.password_hash:
        raise Refused("unauthorised", _WRONG)
    return kept


def _leave_an_admin(session: Session, user: User) -> None:
    """Raises Refused where that person is the last active admin; admins are locked, so that two cannot both leave."""
    admins = select(User.id).where(User.role == "admin", User.active).order_by(User.id).with_for_update()
    if session.scalars(admins).all() == [user.id]:
        raise Refused("conflict", f"{user.name} is the only admin; make somebody else one first")


def _line(text: str, field: str, longest: int, *, shortest: int = 1) -> str:
    """Text of one line in its normal form: Unicode's NFKC, single spaces, nothing that cannot be seen."""
    line = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()
    if not shortest <= len(line) <= longest:
        raise Refused("invalid", f"a {field} has {shortest} to {longest} characters", field=field)
    if any(unicodedata.category(character).startswith("C") for character in line):
        raise Refused("invalid", f"a {field} has no control characters", field=field)
    return line


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
