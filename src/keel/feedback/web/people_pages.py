"""Signing in and out, joining by a link, one's own account, and the admin's page of people."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.refused import Refused
from keel.feedback.tables import Role, User
from keel.feedback.web.access import COOKIE, Access, Admin, SignedIn, TheAccess
from keel.feedback.web.given import Id, TheDatabase, ThePages
from keel.feedback.web.shell import Pages

SIGN_IN = "/sign-in"
_Text = Annotated[str, Form()]

router = APIRouter(include_in_schema=False)


# --- in and out ---


@router.get(SIGN_IN)
def sign_in_page(
    request: Request, database: TheDatabase, pages: ThePages, access: TheAccess, next: str = "/"
) -> Response:
    if access.by_cookie(request) is not None:
        return RedirectResponse(_here(next), status_code=303)
    return _sign_in(request, database, pages, next=next)


@router.post(SIGN_IN)
def sign_in(
    request: Request,
    database: TheDatabase,
    pages: ThePages,
    access: TheAccess,
    name: _Text = "",
    password: _Text = "",
    next: _Text = "/",
) -> Response:
    try:
        login = access.sign_in(request, name, password)
    except Refused as refused:
        return _sign_in(request, database, pages, next=next, name=name, refused=refused)
    return _signed_in(access, login, _here(next))


@router.post("/sign-out")
def sign_out(request: Request, user: SignedIn, database: TheDatabase) -> Response:
    with database.writing() as session:
        people.end_login(session, request.state.login or "")
    answer = RedirectResponse(SIGN_IN, status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/join/{secret}")
def join_page(request: Request, secret: str, database: TheDatabase, pages: ThePages) -> HTMLResponse:
    with database.reading() as session:
        invitation = people.invitation_of(session, secret, now=time.time())
    return pages(request, "join.html.j2", invitation=invitation, name="")


@router.post("/join/{secret}")
def join(
    request: Request,
    secret: str,
    database: TheDatabase,
    pages: ThePages,
    access: TheAccess,
    name: _Text = "",
    password: _Text = "",
) -> Response:
    try:
        login = access.join(secret, name, password)
    except Refused as refused:
        with database.reading() as session:
            invitation = people.invitation_of(session, secret, now=time.time())
        return pages(request, "join.html.j2", invitation=invitation, name=name, refused=refused)
    return _signed_in(access, login, "/")


# --- one's own account ---


@router.get("/account")
def account(
    request: Request, user: SignedIn, database: TheDatabase, pages: ThePages, access: TheAccess, new: str = ""
) -> Response:
    said = access.flash.read(request, new)
    page = _account(request, user, database, pages, new=new, said=said)
    return access.flash.end(request, page) if said else page


@router.get("/account/password")
@router.get("/account/tokens")
@router.get("/account/tokens/{number}/revoke")
def back_to_account() -> Response:
    """A form that is refused answers at its own address; opened again, that leads back to the page."""
    return RedirectResponse("/account", status_code=303)


@router.post("/account/password")
def change_password(
    request: Request,
    user: SignedIn,
    database: TheDatabase,
    pages: ThePages,
    access: TheAccess,
    current: _Text = "",
    new: _Text = "",
) -> Response:
    try:
        access.change_password(request, user, current, new)
    except Refused as refused:
        return _account(request, user, database, pages, refused=refused)
    return access.flash.send(request, "/account", "password", "changed")


@router.post("/account/tokens")
def make_token(
    request: Request,
    user: SignedIn,
    database: TheDatabase,
    pages: ThePages,
    access: TheAccess,
    label: _Text = "",
) -> Response:
    try:
        with database.writing() as session:
            token, secret = people.make_token(session, user, label, now=time.time())
            number = token.id
    except Refused as refused:
        return _account(request, user, database, pages, refused=refused, label=label)
    return access.flash.send(request, "/account", number, secret)


@router.post("/account/tokens/{token_id}/revoke")
def revoke_token(user: SignedIn, database: TheDatabase, token_id: Id) -> Response:
    with database.writing() as session:
        people.revoke_token(session, user, token_id, now=time.time())
    return RedirectResponse("/account", status_code=303)


# --- everybody's ---


@router.get("/people")
def people_page(
    request: Request, user: Admin, database: TheDatabase, pages: ThePages, access: TheAccess, new: str = ""
) -> Response:
    secret = access.flash.read(request, new)
    link = access.link(request, f"/join/{secret}") if secret else ""
    page = _people(request, database, pages, new=new, link=link)
    return access.flash.end(request, page) if secret else page


@router.get("/people/invitations")
@router.get("/people/invitations/{number}/withdraw")
@router.get("/people/{number}/role")
@router.get("/people/{number}/active")
def back_to_people() -> Response:
    """As `back_to_account`."""
    return RedirectResponse("/people", status_code=303)


@router.post("/people/invitations")
def invite(
    request: Request,
    user: Admin,
    database: TheDatabase,
    pages: ThePages,
    access: TheAccess,
    role: Annotated[Role, Form()],
    note: _Text = "",
) -> Response:
    try:
        with database.writing() as session:
            invitation, secret = people.invite(session, role, by=user, now=time.time(), note=note)
            number = invitation.id
    except Refused as refused:
        return _people(request, database, pages, refused=refused, role=role, note=note)
    return access.flash.send(request, "/people", number, secret)


@router.post("/people/invitations/{invitation_id}/withdraw")
def withdraw(user: Admin, database: TheDatabase, invitation_id: Id) -> Response:
    with database.writing() as session:
        people.withdraw_invitation(session, invitation_id, now=time.time())
    return RedirectResponse("/people", status_code=303)


@router.post("/people/{user_id}/role")
def set_role(
    request: Request,
    user: Admin,
    database: TheDatabase,
    pages: ThePages,
    user_id: Id,
    role: Annotated[Role, Form()],
) -> Response:
    try:
        with database.writing() as session:
            people.set_role(session, user_id, role)
    except Refused as refused:
        return _people(request, database, pages, refused=refused)
    return RedirectResponse("/people", status_code=303)


@router.post("/people/{user_id}/active")
def set_active(
    request: Request,
    user: Admin,
    database: TheDatabase,
    pages: ThePages,
    user_id: Id,
    active: Annotated[bool, Form()],
) -> Response:
    try:
        with database.writing() as session:
            people.set_active(session, user_id, active, now=time.time())
    except Refused as refused:
        return _people(request, database, pages, refused=refused)
    return RedirectResponse("/people", status_code=303)


def _signed_in(access: Access, login: str, url: str) -> Response:
    return access.keep(RedirectResponse(url, status_code=303), login)


def _here(next: str) -> str:
    """Where to go after signing in: a path of this server, whoever wrote the link."""
    ours = next.startswith("/") and not next.startswith("//") and "\\" not in next and next.isprintable()
    return next if ours else "/"


def _sign_in(
    request: Request,
    database: Database,
    pages: Pages,
    *,
    next: str,
    name: str = "",
    refused: Refused | None = None,
) -> HTMLResponse:
    with database.reading() as session:
        set_up = people.has_admin(session)
    return pages(request, "sign_in.html.j2", refused=refused, next=_here(next), name=name, set_up=set_up)


def _account(
    request: Request,
    user: User,
    database: Database,
    pages: Pages,
    *,
    refused: Refused | None = None,
    new: str = "",
    said: str = "",
    label: str = "",
) -> HTMLResponse:
    """`new` is what was just made or done, `said` what is said of that once, `label` what the next token would have."""
    with database.reading() as session:
        tokens = people.tokens_of(session, user)
    made = next((token for token in tokens if str(token.id) == new), None)
    changed = new == "password" and said != ""
    return pages(
        request,
        "account.html.j2",
        refused=refused,
        tokens=tokens,
        made=made,
        secret=said,
        changed=changed,
        label=label,
    )


def _people(
    request: Request,
    database: Database,
    pages: Pages,
    *,
    refused: Refused | None = None,
    new: str = "",
    link: str = "",
    role: Role = "annotator",
    note: str = "",
) -> HTMLResponse:
    """`new` is the invitation that was just made, and `link` its link, which is shown once; `role` and `note` are what
    the next one would have.
    """
    with database.reading() as session:
        everybody = people.everybody(session)
        invitations = people.open_invitations(session, now=time.time())
    made = next((one for one in invitations if str(one.id) == new), None)
    return pages(
        request,
        "people.html.j2",
        roles=people.ROLES,
        refused=refused,
        everybody=everybody,
        invitations=invitations,
        made=made,
        link=link,
        role=role,
        note=note,
    )
