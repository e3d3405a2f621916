"""Any bytes under any name are rows or a UserError; what is valid reads back, and its mutations crash nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from keel.config.data import DataConfig
from keel.config.recipe import parse_recipe
from keel.config.yaml_text import NoYaml, read_yaml
from keel.data.convert import KINDS
from keel.data.load import read_records
from keel.data.read import read_rows
from keel.errors import UserError
from tests.hostile.valid import FILES, ROWS

# One folder for all examples of a test: each writes its own file anew.
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5)


def read_all(path: Path) -> None:
    """As every kind of record; nothing but a UserError may come of it."""
    for kind in KINDS.values():
        with suppress(UserError):
            _, check = read_records(DataConfig(path=str(path)), kind)
            assert check.usable + check.left_out == check.total


@in_one_folder
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
@example("rows.csv", b'a,b\n"')
@example("rows.json", b"[" * 5000)
@example("rows.jsonl", b'{"prompt": {"prompt": []}}')
def test_any_bytes_are_rows_or_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    read_all(tmp_path / name)


@in_one_folder
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_mutation_of_a_valid_file_crashes_nothing(tmp_path: Path, name: str, data: st.DataObject) -> None:
    whole = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3), "how often")):
        start = data.draw(st.integers(0, max(len(whole) - 1, 0)), "from")
        end = min(start + data.draw(st.integers(1, 40), "length"), len(whole))
        piece = bytes(whole[start:end])
        match data.draw(st.sampled_from(["cut", "flip", "double", "end"]), "how"):
            case "cut":
                del whole[start:end]
            case "flip":
                whole[start:end] = bytes(byte ^ data.draw(st.integers(0, 255)) for byte in piece[:2]) + piece[2:]
            case "double":
                whole[start:start] = piece
            case _:
                del whole[start:]
    (tmp_path / name).write_bytes(whole)
    read_all(tmp_path / name)


@in_one_folder
@given(OBJECTS, st.sampled_from(["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"]), st.booleans())
def test_objects_read_back_from_json(tmp_path: Path, rows: list[dict[str, Any]], name: str, ascii: bool) -> None:
    if ".jsonl" in name:
        content = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode()
    else:
        content = json.dumps(rows, ensure_ascii=ascii, indent=1).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    found = [row.value for row in read_rows(DataConfig(path=str(tmp_path / name)))]
    assert json.dumps(found) == json.dumps(rows)


@in_one_folder
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5), min_size=2, max_size=2)))
def test_cells_read_back_from_a_table(tmp_path: Path, rows: list[list[str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["one", "two"], *rows])
    (tmp_path / "a.csv").write_bytes(written.getvalue().encode())
    found = [row.value for row in read_rows(DataConfig(path=str(tmp_path / "a.csv")))]
    assert found == [{"one": one, "two": two} for one, two in rows]


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_the_mutations_start_from_is_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    rows = list(read_rows(DataConfig(path=str(tmp_path / name))))
    assert len(rows) >= 1
    assert all(row.problem is None for row in rows)
    if name.startswith("rows.j") or "parquet" in name:
        assert [row.value for row in rows] == ROWS


KEYS = st.sampled_from(
    ["name", "seed", "model", "base", "sft", "data", "lr", "ppo", "kl", "coef", "reward", "path", "fields", "betas"]
)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["m", "collect", "a:b", "reward"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@in_one_folder
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_any_tree_is_a_recipe_or_a_sentence(tree: dict[str, Any]) -> None:
    start = {"name": "a", "model": {"base": "m"}, "sft": {"data": "d"}}
    for one in (tree, start | tree):
        with suppress(UserError):
            recipe = parse_recipe(one, "r.yaml")
            assert parse_recipe(recipe.model_dump(mode="json"), "r.yaml") == recipe


@given(st.text(max_size=60))
@example("a: !!timestamp x")
@example("!!binary x")
@example("a: !!bool x")
@example("&a [*a]")
def test_any_text_is_yaml_or_not(text: str) -> None:
    with suppress(NoYaml):
        read_yaml(text)
