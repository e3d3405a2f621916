"""The page a person starts from: what is theirs to do and to see, in lists that the app's parts give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from keel.feedback.tables import User
from keel.feedback.web.access import SignedIn
from keel.feedback.web.given import TheDatabase, ThePages


@dataclass(frozen=True)
class Entry:
    """A line of a list: where it leads, and a few words on it."""

    title: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class HomeList:
    """`empty` is said where there are no entries."""

    title: str
    entries: list[Entry]
    empty: str


Provider = Callable[[Session, User], HomeList | None]
"""A part's list for that person; None where it has nothing to say to them. `keel.feedback.app` names them all."""

router = APIRouter(include_in_schema=False)


@router.get("/")
def home(request: Request, user: SignedIn, database: TheDatabase, pages: ThePages) -> HTMLResponse:
    providers: tuple[Provider, ...] = request.app.state.home
    with database.reading() as session:
        lists = [found for provider in providers if (found := provider(session, user)) is not None]
    return pages(request, "home.html.j2", lists=lists)
