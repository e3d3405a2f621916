"""People for programs: oneself, one's tokens, and for admins everybody and the invitations."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from pydantic import Field

from keel.feedback import people
from keel.feedback.tables import Role
from keel.feedback.web.access import Admin, SignedIn, TheAccess
from keel.feedback.web.given import Body, FromRow, Id, Seconds, TheDatabase
from keel.feedback.web.shell import REFUSED_OR_BUSY

router = APIRouter(prefix="/api/v1", responses=REFUSED_OR_BUSY, tags=["people"])


class _Row(FromRow):
    id: int
    created_at: Seconds


class Person(_Row):
    name: str
    role: Role
    active: bool


class Member(Person):
    judgements: int = Field(description="answers that stand, in all projects")
    last_judged_at: Seconds | None
    note: str = Field(description="of the invitation that the account came of")


class Changes(Body):
    """What is left out stays."""

    role: Role | None = None
    active: bool | None = Field(default=None, description="false ends every login and token of the account")


class NewPassword(Body):
    current: str
    new: str


class NewToken(Body):
    label: str = Field(description="1 to 80 characters")


class TokenLine(_Row):
    label: str


class MadeToken(TokenLine):
    token: str = Field(description="shown this once")


class NewInvitation(Body):
    role: Role
    note: str = Field(default="", description="for whom: up to 80 characters, which they do not see")


class InvitationLine(_Row):
    role: Role
    note: str
    expires_at: Seconds


class MadeInvitation(InvitationLine):
    url: str = Field(description="for the person who is invited; shown this once")


@router.get("/me")
def me(user: SignedIn) -> Person:
    """Whose token this is."""
    return Person.model_validate(user)


@router.put("/me/password", status_code=204)
def change_password(request: Request, user: SignedIn, access: TheAccess, body: NewPassword) -> None:
    """Ends every login of yours but the one that asks."""
    access.change_password(request, user, body.current, body.new)


@router.get("/me/tokens")
def tokens(user: SignedIn, database: TheDatabase) -> list[TokenLine]:
    with database.reading() as session:
        return [TokenLine.model_validate(token) for token in people.tokens_of(session, user)]


@router.post("/me/tokens", status_code=201)
def make_token(user: SignedIn, database: TheDatabase, body: NewToken) -> MadeToken:
    with database.writing() as session:
        token, secret = people.make_token(session, user, body.label, now=time.time())
        return MadeToken(id=token.id, label=token.label, created_at=token.created_at, token=secret)


@router.delete("/me/tokens/{token_id}", status_code=204)
def revoke_token(user: SignedIn, database: TheDatabase, token_id: Id) -> None:
    with database.writing() as session:
        people.revoke_token(session, user, token_id, now=time.time())


@router.get("/users")
def users(user: Admin, database: TheDatabase) -> list[Member]:
    """Every account, those that have ended too, by name."""
    with database.reading() as session:
        return [_member(one) for one in people.everybody(session)]


@router.patch("/users/{user_id}")
def change_user(user: Admin, database: TheDatabase, user_id: Id, body: Changes) -> Person:
    """Another role, or the account's end; both or neither."""
    with database.writing() as session:
        changed = people.account(session, user_id)
        if body.role is not None:
            people.set_role(session, user_id, body.role)
        if body.active is not None:
            people.set_active(session, user_id, body.active, now=time.time())
        return Person.model_validate(changed)


@router.get("/invitations")
def invitations(user: Admin, database: TheDatabase) -> list[InvitationLine]:
    """Those that nobody has used yet."""
    with database.reading() as session:
        found = people.open_invitations(session, now=time.time())
        return [InvitationLine.model_validate(invitation) for invitation in found]


@router.post("/invitations", status_code=201)
def invite(
    request: Request, user: Admin, database: TheDatabase, access: TheAccess, body: NewInvitation
) -> MadeInvitation:
    with database.writing() as session:
        invitation, secret = people.invite(session, body.role, by=user, now=time.time(), note=body.note)
        line = InvitationLine.model_validate(invitation)
    return MadeInvitation(**line.model_dump(), url=access.link(request, f"/join/{secret}"))


@router.delete("/invitations/{invitation_id}", status_code=204)
def withdraw(user: Admin, database: TheDatabase, invitation_id: Id) -> None:
    with database.writing() as session:
        people.withdraw_invitation(session, invitation_id, now=time.time())


def _member(one: people.Account) -> Member:
    person = Person.model_validate(one.user).model_dump()
    return Member(**person, judgements=one.judgements, last_judged_at=one.last_judged_at, note=one.note)
