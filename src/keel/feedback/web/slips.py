"""What a page says once, after the redirect that ends a form: a secret that was just made, or that something is done.

It travels in a cookie of the browser that sent the form, which the page ends when it has said it. So nothing of it is
kept on the server: any process answers, before and after a restart, and a reload neither says nor makes it again. What
is lost (the cookie lives for a minute, and a page has one at a time) is said nowhere else: whoever needs it makes
another.
"""

from __future__ import annotations

import hashlib

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from itsdangerous import BadSignature, Signer

COOKIE = "keel_slip"
_SECONDS = 60


class Slips:
    """Each is signed for one login and one page: no other page of this host's, and nobody before, can plant one."""

    def __init__(self, key: str, *, secure: bool) -> None:
        self._key = key
        self._secure = secure

    def send(self, request: Request, page: str, new: object, said: str) -> Response:
        """To that page of this server, which finds `said` under the name `new`; neither has a dot or a semicolon."""
        answer = RedirectResponse(f"{page}?new={new}", status_code=303)
        answer.set_cookie(
            COOKIE,
            self._signer(request, page).sign(f"{new}.{said}").decode(),
            max_age=_SECONDS,
            path=page,
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    def read(self, request: Request, new: str) -> str:
        """What was sent to this page under that name; empty where it was said already, or is lost."""
        try:
            slip = self._signer(request, request.url.path).unsign(request.cookies.get(COOKIE, "")).decode()
        except BadSignature:
            return ""
        name, _, said = slip.partition(".")
        return said if name == new else ""

    def end(self, request: Request, page: Response) -> Response:
        """The page, which has said it."""
        page.delete_cookie(COOKIE, path=request.url.path, secure=self._secure, httponly=True, samesite="strict")
        return page

    def _signer(self, request: Request, page: str) -> Signer:
        return Signer(self._key, salt=f"keel slip {page} {request.state.login}", digest_method=hashlib.sha256)
