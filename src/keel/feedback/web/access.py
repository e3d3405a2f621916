"""Who a request comes from: a browser by a signed cookie, a program by a token; and what each may do.

Routes take a person by type: `user: Annotator`. A browser's request that changes something must also bring the CSRF
token that this app's own pages hold, in the field `csrf` or the header X-CSRF-Token.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from itsdangerous import BadSignature, Signer
from markupsafe import Markup

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.passwords import Passwords
from keel.feedback.refused import Refused
from keel.feedback.secret import secret_of
from keel.feedback.tables import Role, User
from keel.feedback.web.attempts import Attempts
from keel.feedback.web.flash import Flash
from keel.feedback.web.sites import SAFE, Sites, is_bearer

COOKIE = "keel_session"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class Access:
    """Signs people in and knows them again."""

    def __init__(self, database: Database, *, sites: Sites, passwords: Passwords) -> None:
        self._passwords = passwords
        self._database = database
        self._sites = sites
        key = secret_of(database, "signing")
        self._cookies = Signer(key, salt="keel session", digest_method=hashlib.sha256)
        self._forms = Signer(key, salt="keel form", digest_method=hashlib.sha256)
        self.flash = Flash(key, secure=sites.secure)
        self._names = Attempts(free=5, longest=60)
        self._addresses = Attempts(free=20, longest=900)

    def sign_in(self, request: Request, name: str, password: str) -> str:
        """The secret of a new login. Raises Refused where the name or password is wrong, or was too often."""
        now = time.time()
        address = _address(request)
        self._addresses.begin(address, now)
        with self._guessing(name):
            with self._database.reading() as session:
                found = people.find_user(session, name)
            user = people.check_password(found, password, passwords=self._passwords)
        self._addresses.take_back(address)
        rehashed = self._passwords.hash(password) if self._passwords.outdated(user.password_hash) else None
        with self._database.writing() as session:
            return people.start_login(session, user, now=now, rehashed=rehashed)

    def join(self, secret: str, name: str, password: str) -> str:
        """The secret of the first login of a new account. Raises Refused."""
        now = time.time()
        with self._database.reading() as session:
            people.invitation_of(session, secret, now=now)
        password_hash = self._passwords.new(password, name=people.normal_name(name))
        with self._database.writing() as session:
            user = people.join(session, secret, name, password_hash, now=now)
            return people.start_login(session, user, now=now)

    def change_password(self, request: Request, user: User, current: str, new: str) -> None:
        """Ends every other login. Raises Refused where the current password is wrong, or the new one will not do."""
        with self._guessing(user.name):
            if not self._passwords.fits(current, user.password_hash):
                raise Refused("forbidden", "the current password is wrong", field="current")
        password_hash = self._passwords.new(new, name=user.name, field="new")
        with self._database.writing() as session:
            people.set_password(session, user, password_hash, keep=request.state.login)

    @contextmanager
    def _guessing(self, name: str) -> Iterator[None]:
        """Around the check of a password. Raises Refused where there were too many failures with that name."""
        key = people.key_of(name)
        self._names.begin(key, time.time())
        yield
        self._names.forget(key)

    def keep(self, response: Response, login: str) -> Response:
        """The browser is signed in from this answer on."""
        response.set_cookie(
            COOKIE,
            self._cookies.sign(login).decode(),
            max_age=int(people.SIGNED_IN_FOR),
            secure=self._sites.secure,
            httponly=True,
            samesite="lax",
        )
        return response

    def link(self, request: Request, path: str) -> str:
        """The whole URL of a path, for somebody else to open."""
        return (self._sites.public or str(request.base_url).rstrip("/")) + path

    def by_token(self, request: Request, token: str) -> User | None:
        """Who is signed in, by a token."""
        with self._database.reading() as session:
            user = people.user_of_token(session, token)
        request.state.user, request.state.login, request.state.csrf = user, None, ""
        return user

    def by_cookie(self, request: Request) -> User | None:
        """Who is signed in. Pages find them in `request.state.user`, and in `.csrf` what their forms must send."""
        try:
            login = self._cookies.unsign(request.cookies.get(COOKIE, "")).decode()
        except BadSignature:
            return None
        with self._database.reading() as session:
            user = people.user_of_login(session, login, now=time.time())
        csrf = self._forms.get_signature(login).decode()
        request.state.user, request.state.login, request.state.csrf = user, login, csrf
        return user


async def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


TheAccess = Annotated[Access, Depends(_access)]


async def _shown(request: Request) -> str:
    """The CSRF token that the request brings; empty where it brings none, or needs none."""
    if request.method in SAFE or is_bearer(request):
        return ""
    header = request.headers.get("x-csrf-token")
    if header is None and request.headers.get("content-type", "").startswith(FORMS):
        header = str((await request.form()).get("csrf", ""))
    return header or ""


def csrf(request: Request) -> Markup:
    """The hidden field with the CSRF token, which every form of a page holds."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(request.state.csrf)


def signed_in(
    request: Request,
    access: TheAccess,
    shown: Annotated[str, Depends(_shown)],
    token: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> User:
    """Raises Refused where nobody is, or where the request may come from somebody else's page."""
    user = access.by_cookie(request) if token is None else access.by_token(request, token.credentials)
    if user is None:
        raise Refused("unauthorised", "sign in first" if token is None else "nobody has this token any more")
    if (
        token is None
        and request.method not in SAFE
        and not secrets.compare_digest(shown.encode(errors="replace"), request.state.csrf.encode())
    ):
        raise Refused("forbidden", "this page is out of date; load it again, then send it")
    return user


SignedIn = Annotated[User, Depends(signed_in)]


def _only(*roles: Role) -> Callable[[User], Awaitable[User]]:
    async def allowed(user: SignedIn) -> User:  # asynchronous, for it waits for nothing: no thread is spent on it
        if user.role not in roles:
            raise Refused("forbidden", f"only {' and '.join(f'{role}s' for role in roles)} may do this")
        return user

    return allowed


Annotator = Annotated[User, Depends(_only("annotator", "admin"))]
"""Who judges; admins may too."""
viewer = _only("viewer", "admin")
Viewer = Annotated[User, Depends(viewer)]
"""Who sees everybody's work."""
Admin = Annotated[User, Depends(_only("admin"))]


def _address(request: Request) -> str:
    """Where the request comes from: an IPv4 address, or the /64 that a household has of IPv6."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
