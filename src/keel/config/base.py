"""What every configuration record shares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen, typed record; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
