"""What every route may ask to be given, and how an error looks in the API's description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, Field

from keel.feedback.database import Database
from keel.feedback.refused import Code
from keel.feedback.web.shell import Pages


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _pages(request: Request) -> Pages:
    pages: Pages = request.app.state.pages
    return pages


TheDatabase = Annotated[Database, Depends(_database)]
ThePages = Annotated[Pages, Depends(_pages)]
Id = Annotated[int, Path(ge=1, le=2**31 - 1)]
"""A row's number in a path: no more than the databases take."""
Round = Annotated[int, Query(ge=1, le=2**31 - 1)]
Below = Annotated[float, Query(allow_inf_nan=False, description="by priority: that of the last one seen, as it was")]
UnlessEmpty = BeforeValidator(lambda given: given or None)
"""For a field of a form that may be left empty."""
Seconds = Annotated[float, Field(description="seconds since 1970, UTC")]


class Reason(BaseModel):
    code: Code
    message: str
    field: str | None


class Problem(BaseModel):
    error: Reason


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "Refused, and why"},
    "503": {"model": Problem, "description": "The database is busy; ask again after the seconds of Retry-After"},
}
"""For `responses=` of an API's router."""
