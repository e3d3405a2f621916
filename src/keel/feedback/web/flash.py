"""Flash messages: what a page says once, after the redirect that ends a form, such as a secret that was just made.

A message travels in a cookie of the browser that sent the form, and the page that says it deletes the cookie. So the
server keeps nothing of it: any process can answer, before and after a restart, and a reload neither shows the secret
again nor makes another. The cookie lives for a minute, and a page has one at a time; a secret that is lost with it
cannot be shown again, and whoever needs one makes another.
"""

from __future__ import annotations

import hashlib

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from itsdangerous import BadSignature, Signer

COOKIE = "keel_flash"
_SECONDS = 60


class Flash:
    """Sends and reads the messages. Each is signed for one login and one page, so that nobody else can plant one."""

    def __init__(self, key: str, *, secure: bool) -> None:
        self._key = key
        self._secure = secure

    def send(self, request: Request, page: str, new: object, said: str) -> Response:
        """A redirect to that page of this server, which reads `said` under the name `new`.

        Neither may contain a dot or a semicolon.
        """
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
        """What was sent to this page under that name; empty where it was shown already, or is lost."""
        try:
            flash = self._signer(request, request.url.path).unsign(request.cookies.get(COOKIE, "")).decode()
        except BadSignature:
            return ""
        name, _, said = flash.partition(".")
        return said if name == new else ""

    def end(self, request: Request, page: Response) -> Response:
        """The page that shows the message, which deletes its cookie."""
        page.delete_cookie(COOKIE, path=request.url.path, secure=self._secure, httponly=True, samesite="strict")
        return page

    def _signer(self, request: Request, page: str) -> Signer:
        return Signer(self._key, salt=f"keel flash {page} {request.state.login}", digest_method=hashlib.sha256)
