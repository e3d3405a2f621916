"""What every configuration record shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator

from keel.references import reference_to

# module:function. From Python the function itself will do; it is kept by its name, so that a run can be gone on with.
Function = Annotated[str, BeforeValidator(lambda value: reference_to(value) if callable(value) else value)]

TOGETHER = {"contradictions": "together"}
"""A validation's context: contradictions are not refused record by record but left to `contradictions_in`."""


class Config(BaseModel):
    """A frozen, typed record; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def contradictions(self) -> Iterator[str]:
        """One sentence for each of the settings that do not go together here, or have no effect."""
        return iter(())

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context is not TOGETHER and (found := list(self.contradictions())):
            raise ValueError("; ".join(found))
        return self


def contradictions_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path, sentence) of every contradiction in a record and in the records within it, inner ones first."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from contradictions_in(item, (*path, str(index)))
    elif isinstance(value, Config):
        for key in type(value).model_fields:
            yield from contradictions_in(getattr(value, key), (*path, key))
        for sentence in value.contradictions():
            yield ".".join(path), sentence


def without_effect(config: Config, *keys: str, because: str) -> Iterator[str]:
    """A sentence for each key that was moved from its default where nothing reads it.

    A key at its default passes: a recipe that a run wrote out in full names every key.
    """
    fields = type(config).model_fields
    for key in keys:
        if getattr(config, key) != fields[key].default:
            yield f"{key} has no effect {because}; leave it out"


def given_keys(value: Any) -> dict[str, Any] | None:
    """The keys that a mapping or a typed record was given; None for what is neither."""
    if isinstance(value, Config):
        return value.model_dump(exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else None
