"""What every configuration record shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from keel.references import reference_to

# module:function. From Python the function itself will do; it is kept by its name, so that a run can be gone on with.
Function = Annotated[str, BeforeValidator(lambda value: reference_to(value) if callable(value) else value)]


class Config(BaseModel):
    """A frozen, typed record; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refuse_without_effect(config: Config, *keys: str, because: str) -> None:
    """Refuse keys that were moved from their default where nothing reads them.

    A key at its default passes: a recipe that a run wrote out in full names every key.
    """
    fields = type(config).model_fields
    for key in keys:
        if getattr(config, key) != fields[key].default:
            raise ValueError(f"{key} has no effect {because}; leave it out")


def given_keys(value: Any) -> dict[str, Any] | None:
    """The keys that a mapping or a typed record was given; None for what is neither."""
    if isinstance(value, Config):
        return value.model_dump(exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else None
