from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from keel.config.data import DataConfig, Sources, limited, sources_of


class Stage(BaseModel):
    data: DataConfig


@pytest.mark.parametrize("path", ["demos.jsonl", "data/demos.jsonl.gz", "owner/name", "/a b/c:d.jsonl", "collect"])
def test_a_bare_string_is_a_path(path: str) -> None:
    assert Stage.model_validate({"data": path}).data == DataConfig(path=path)


@pytest.mark.parametrize("function", ["my_rules:rows", "my.pack_2.rules:rows"])
def test_a_bare_string_with_a_colon_is_a_function(function: str) -> None:
    assert Stage.model_validate({"data": function}).data == DataConfig(function=function)


def test_defaults() -> None:
    config = DataConfig(path="demos.jsonl")
    assert (config.split, config.fields, config.limit, config.validation, config.max_unusable) == (
        "train",
        {},
        None,
        0.05,
        0.05,
    )
    assert config.name == "demos.jsonl"
    assert DataConfig(function="a:b").name == "a:b"


def test_survives_being_written_and_read() -> None:
    for config in (
        DataConfig(function="a:b", fields={"prompt": "question"}, limit=3),
        DataConfig(path="a", fields={"responses": ("x", "y"), "preferred": "z"}, outcomes={"0": "tie"}, map="a:b"),
    ):
        assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_values_of_outcomes_are_text() -> None:
    """YAML reads 0 as a number."""
    assert DataConfig.model_validate({"path": "a", "outcomes": {0: "tie", True: "first"}}).outcomes == {
        "0": "tie",
        "True": "first",
    }


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "either path"),
        ({"path": "a", "function": "b:c"}, "either path"),
        ({"path": ""}, "empty"),
        ({"function": "a:b", "split": "test"}, "split has no effect"),
        ({"path": "a", "fields": {"choosen": "better"}}, "choosen"),
        ({"path": "a", "limit": 0}, "limit"),
        ({"path": "a", "validation": 1.0}, "validation"),
        ({"path": "a", "validation": -0.1}, "validation"),
        ({"path": "a", "max_unusable": 1.5}, "max_unusable"),
        ({"path": "a", "limits": 3}, "limits"),
        ({"path": "a", "layout": "csv"}, "layout"),
        ({"path": "a", "fields": {"prompt": ["a", "b"]}}, "prompt is read from one column; only responses"),
        ({"path": "a", "outcomes": {"a": "left"}}, "outcomes"),
        ({"path": "a", "outcomes": {"a": "first"}, "layout": "hh"}, "outcomes has no effect with layout: hh"),
        ({"path": "a", "weight": 0}, "weight"),
        ({"path": "a", "kind": "two words"}, "kind"),
        ({"path": "a", "system": ""}, "system"),
    ],
)
def test_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        DataConfig.model_validate(values)


def test_frozen() -> None:
    config: Any = DataConfig(path="a")
    with pytest.raises(ValidationError, match="frozen"):
        config.limit = 3


class Mixed(BaseModel):
    data: Sources


def test_one_source_or_several() -> None:
    one = Mixed.model_validate({"data": "a.jsonl"})
    assert one.data == DataConfig(path="a.jsonl")
    assert sources_of(one.data) == (one.data,)
    several = Mixed.model_validate({"data": ["a.jsonl", {"path": "b.jsonl", "weight": 0.5, "kind": "safety"}]})
    assert several.data == (DataConfig(path="a.jsonl"), DataConfig(path="b.jsonl", weight=0.5, kind="safety"))
    assert sources_of(several.data) == several.data
    assert Mixed.model_validate(several.model_dump(mode="json")) == several


def test_a_limit_for_every_source() -> None:
    one, other = DataConfig(path="a", limit=3), DataConfig(path="b", kind="safety")
    assert limited(one, 5) == one
    assert limited(other, 5) == DataConfig(path="b", kind="safety", limit=5)
    assert limited((one, other), 2) == (DataConfig(path="a", limit=2), DataConfig(path="b", kind="safety", limit=2))
