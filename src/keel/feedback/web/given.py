"""What several routes share: dependencies, the types of their parameters, and the bases of the API's models."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from keel.feedback.database import Database
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


class Body(BaseModel):
    """What a request sends as JSON; a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class FromRow(BaseModel):
    """An answer whose fields are read from an object's attributes, of a table's row say."""

    model_config = ConfigDict(from_attributes=True)
