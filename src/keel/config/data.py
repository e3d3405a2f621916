"""Where rows come from, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from keel.config.base import Config, Function

FieldName = Literal[
    "prompt", "response", "text", "chosen", "rejected", "margin", "responses", "ranks", "preferred", "rating", "scale",
    "accepted", "annotator", "weight",
]  # fmt: skip
LayoutName = Literal["auto", "keel", "messages", "completion", "sharegpt", "alpaca", "hh", "pairs", "text"]
Outcome = Literal["first", "second", "tie"]
"""Which of two responses was preferred."""

LongPrompts = Literal["drop", "cut"]
"""What becomes of a row whose prompt is too long: it is left out, or the prompt's oldest tokens are."""

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_reference(text: str) -> bool:
    """Whether a text has the form module:function, and so is no path."""
    return _REFERENCE.fullmatch(text) is not None


class DataConfig(Config):
    """One source of rows: files or a hub data set (`path`), or a Python function (`function`).

    In a recipe a bare string stands for either: `demos.jsonl` is a path, `my_rules:rows` a function.
    """

    path: str | None = Field(
        default=None, description="a file, a folder or a glob of them, or the owner/name of a data set on the hub"
    )
    function: Function | None = Field(default=None, description="module:function that returns the rows as dicts")
    split: str = Field(default="train", description="which split of a data set on the hub")
    fields: dict[FieldName, str | tuple[str, ...]] = Field(
        default_factory=dict, description="our field: the column it is read from; of responses, one column or several"
    )
    layout: LayoutName = Field(default="auto", description="how the rows are laid out; seen from their columns")
    outcomes: dict[str, Outcome] = Field(
        default_factory=dict, description="what a value of preferred stands for: first, second or tie"
    )
    map: Function | None = Field(
        default=None, description="module:function that makes of a row another one, a list of them, or None"
    )
    limit: int | None = Field(default=None, ge=1, description="read no further than this many usable rows")
    validation: float = Field(
        default=0.05, ge=0, lt=1, description="share of the prompts held out, chosen by their hash"
    )
    together: str | None = Field(
        default=None,
        description="a regular expression: prompts whose first match is the same are held out together, as one topic",
    )
    max_unusable: float = Field(
        default=0.05, ge=0, le=1, description="stop when a larger share of the rows is unusable"
    )
    system: str | None = Field(
        default=None, min_length=1, description="a system message before every dialogue that has none"
    )
    weight: float = Field(default=1.0, gt=0, le=1000, description="how often each row is met in an epoch")
    kind: str | None = Field(
        default=None, pattern=r"^\w+$", description="what the rows are called in metrics: instructions, safety, …"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if callable(value):
            return {"function": value}
        if not isinstance(value, str):
            return value
        return {"function" if is_reference(value) else "path": value}

    @field_validator("together")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value

    @field_validator("outcomes", mode="before")
    @classmethod
    def _values_as_text(cls, value: Any) -> Any:
        return {str(key): outcome for key, outcome in value.items()} if isinstance(value, dict) else value

    def contradictions(self) -> Iterator[str]:
        for field, column in self.fields.items():
            if field != "responses" and not isinstance(column, str):
                yield f"fields: {field} is read from one column; only responses may name several"
        if self.outcomes and self.layout not in ("auto", "pairs"):
            yield f"outcomes has no effect with layout: {self.layout}; leave it out"
        if (self.path is None) == (self.function is None):
            yield "give either path (a file, or a hub name) or function (module:function)"
        if not self.name:
            yield "the path or function is empty"
        if self.function is not None and self.split != "train":
            yield "split has no effect on a function; leave it out"

    @property
    def name(self) -> str:
        """What the source is called in messages: the path or the function as given."""
        return self.path if self.path is not None else str(self.function)


def _one_or_many(value: Any) -> str:
    return "[sources]" if isinstance(value, list | tuple) and value else "[source]"


Sources = Annotated[
    Annotated[DataConfig, Tag("[source]")] | Annotated[tuple[DataConfig, ...], Tag("[sources]")],
    Discriminator(_one_or_many),
]
"""One source, or a list of them that is mixed by their weights."""


def sources_of(data: DataConfig | tuple[DataConfig, ...]) -> tuple[DataConfig, ...]:
    """The sources, be there one or many."""
    return data if isinstance(data, tuple) else (data,)


def idle_weights(data: DataConfig | tuple[DataConfig, ...] | None) -> Iterator[str]:
    """Where rows are judged and not trained on, each counts once."""
    if data is not None and any(source.weight != 1.0 for source in sources_of(data)):
        yield "weight has no effect on prompts that are judged, each once; leave it out, or give a limit"


def limited(data: DataConfig | tuple[DataConfig, ...], rows: int) -> DataConfig | tuple[DataConfig, ...]:
    """The same, no source read further than `rows` usable rows."""
    if isinstance(data, DataConfig):
        return data.model_copy(update={"limit": rows if data.limit is None else min(rows, data.limit)})
    return tuple(source for one in data for source in sources_of(limited(one, rows)))
