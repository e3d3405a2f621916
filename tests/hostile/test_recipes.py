"""Recipes that a stranger may hand to `keel run`, each with its sentence; and every key of the schema mistyped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keel.config.json_schema import recipe_schema
from keel.config.recipe import parse_recipe
from keel.errors import UserError
from tests.hostile.command import Keel
from tests.hostile.command import keel as _keel


@pytest.fixture
def keel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keel:
    return _keel(capsys, monkeypatch)


BASE = "name: a\nmodel: {base: m}\nsft: {data: d.jsonl}\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join(['*' + before] * 9)}]\n" for before, one in zip("abcdefghij", "bcdefghijk", strict=True)
)  # the last one is 9 ** 11 long

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "a pickle in YAML": (BASE + "x: !!python/object/apply:os.system [ls]", "could not determine a constructor for"),
    "an object in YAML": (BASE + "x: !!python/object:keel.errors.UserError {}", "could not determine a constructor"),
    "a key that stands twice": (BASE + "name: b\n", "the key `name` stands twice in "),
    "such a key further in": (
        "sft: {lr: 1, lr: 2}",
        'the key `lr` stands twice in "<unicode string>", line 1, column 1',
    ),
    "a billion laughs as a key's value": (
        LAUGHS + "name: *k\nmodel: {base: m}\n",
        "`name`: input should be a valid str",
    ),
    "a billion laughs for a mapping": (LAUGHS + "name: a\nmodel: *k\n", "`model` should be a mapping of keys, not [["),
    "a list within itself": ("name: &a [*a]\nmodel: {base: m}\n", "`name`: input should be a valid string, not [["),
    "brackets without end": ("[" * 2_000, "brackets or levels too deep in each other"),
    "a number without end": (BASE + "seed: " + "9" * 5000, "(Exceeds the limit (4300 digits)"),
    "a day that is none": (BASE + "seed: 2024-99-99", "(month must be in 1..12"),
    "a merge with a number": ("<<: 3", "expected a mapping or list of mappings for merging"),
    "a key that is a mapping": ("? {a: 1}\n: 2", "found unhashable key"),
    "a tag that does not fit": ("name: !!int x", "its tag says (invalid literal for int()"),
    "another YAML": ("%YAML 9.9\n---\nname: a\n", "found incompatible YAML document"),
    "two documents": ("name: a\n--- \nname: b\n", "expected a single document in the stream"),
    "a NUL": (BASE + "\0", "unacceptable character #x0000"),
    "noise": (bytes(range(128, 256)), "is not valid YAML: 'utf-8' codec can't decode byte"),
    "UTF-16": (BASE.encode("utf-16"), "is not valid YAML: 'utf-8' codec can't decode byte 0xff"),
    "half a surrogate pair": (b"name: \xed\xa0\x80", "is not valid YAML: 'utf-8' codec can't decode byte 0xed"),
    "more than a recipe is": (BASE + "#" * 2**20, "is larger than 1 MiB, so it is no recipe; name the data in it as"),
    "keys in capitals": (BASE + "PPO: {prompts: p}", "unknown key `PPO`; did you mean `ppo`?"),
    "keys with dashes": ("name: a\nmodel: {base: m}\nsft: {data: d, Max-Tokens: 9}", "did you mean `max_tokens`?"),
    "a key of numbers": (BASE + "1: 2", "`1`: keys should be strings, not 1"),
    "a name that steers the terminal": (
        'name: "a\\e[31m"\nmodel: {base: m}\nsft: {data: d}',
        "`name`: string should match",
    ),
    "a name that leaves the folder": ("name: ../a\nmodel: {base: m}\nsft: {data: d}", "`name`: string should match"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_recipe_that_is_refused(what: str, keel: Keel, tmp_path: Path) -> None:
    content, sentence = REFUSED[what]
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    said = keel("run", str(path))
    assert said.code == 2
    assert said.error.startswith(f"keel: {path}")
    assert sentence in said.error
    assert len(said.error) < 5000
    assert time.process_time() - started < 5


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_what_is_no_file_is_no_recipe(command: str, keel: Keel, tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert "cannot be read (Too many levels of symbolic links)" in keel(command, str(tmp_path / "loop.yaml")).error
    assert "there is no recipe " in keel(command, "gone.yaml").error
    assert "is a directory; give the recipe's YAML file" in keel(command, str(tmp_path)).error
    assert "cannot be read (File name too long)" in keel(command, "x" * 300).error


def test_an_override_is_held_to_the_same(keel: Keel, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE)
    for value in ("!!python/object/apply:os.system [ls]", "{a: 1, a: 2}", "2024-99-99"):
        said = keel("run", str(tmp_path / "r.yaml"), "--set", f"sft.data={value}")
        assert said.code == 2
        assert "--set sft.data: " in said.error
        assert "is not a YAML value; put it in quotes" in said.error


# --- contradictions ---


def test_all_contradictions_are_refused_together() -> None:
    tree = {
        "name": "a",
        "model": {"base": "m", "lora": {"rank": 8}},
        "reward": {"flip_probability": 0.1, "label_smoothing": 0.1},
        "ppo": {
            "prompts": "p",
            "rollout_batch": 10,
            "reward": [{"model": "reward"}, {"weight": 2, "name": "nothing"}],
            "kl": {"target": 3, "horizon": 3},
            "sampling": {"temperature": 0, "top_k": 3},
        },
    }
    with pytest.raises(UserError) as refused:
        parse_recipe(tree, "r.yaml")
    assert str(refused.value).removeprefix("r.yaml: ").split("; `") == [
        "`model`: lora has no effect with tune: full; leave it out",
        "reward`: flip_probability models noise, label_smoothing shrinks the scores: give one, not both",
        "ppo.sampling`: temperature 0 has no distribution to learn from; give one above 0",
        "ppo.sampling`: top_k/top_p draw from a cut distribution that is not the policy's, so ratio and KL would be "
        "biased; remove them, or lower the temperature instead",
        "ppo.reward.1`: a reward is either `model:` or `function:` or `service:`",
        "ppo.kl`: kl.target belongs to `kind: adaptive` and `kind: constraint`, which need it",
        "kind: fixed` has none",
        "ppo.kl`: horizon has no effect with kind: fixed; leave it out",
        "ppo`: rollout_batch (10) must be a multiple of update.minibatches (4); reward.data is `collect`, but the "
        "recipe has no collect stage: add it, or name a file",
    ]


# --- every key of the schema ---

START: dict[str, Any] = {"name": "a", "model": {"base": "m"}, "sft": {"data": "d"}}
NEEDED: dict[str, dict[str, Any]] = {  # what a record cannot do without
    "SFTConfig": {"data": "d"},
    "CollectConfig": {"prompts": "p", "annotator": {"script": "a:b"}},
    "AnnotatorConfig": {"script": "a:b"},
    "PPOConfig": {"prompts": "p"},
    "EvaluateConfig": {"prompts": "p"},
    "ServersConfig": {"urls": ["http://a"]},
    "RewardSource": {"model": "m"},
    "DataConfig": {"path": "d"},
    "ModelConfig": {"base": "m"},
}
ENOUGH = 12  # brackets of a path: no record holds itself


def records(schema: dict[str, Any]) -> Iterator[tuple[list[str], str, dict[str, Any]]]:
    """(path, name, properties) of every record of the recipe, by the schema alone; `0` is a list's first item."""
    definitions = schema["$defs"]

    def walk(part: Any, path: list[str]) -> Iterator[tuple[list[str], str, dict[str, Any]]]:
        assert len(path) < ENOUGH
        for option in (*part.get("anyOf", ()), *part.get("oneOf", ())):
            yield from walk(option, path)
        if "$ref" in part:
            name = part["$ref"].rsplit("/", 1)[-1]
            record = definitions[name]
            record = next((one for one in record.get("anyOf", ()) if "properties" in one), record)
            yield path, name, record.get("properties", {})
            for key, inner in record.get("properties", {}).items():
                yield from walk(inner, [*path, key])
        elif part.get("type") == "array" and isinstance(part.get("items"), dict):
            yield from walk(part["items"], [*path, "0"])

    yield [], "Recipe", schema["properties"]
    for key, part in schema["properties"].items():
        yield from walk(part, [key])


RECORDS = {".".join(path): (path, name, keys) for path, name, keys in records(recipe_schema())}


def refusal_of(path: list[str], name: str, keys: dict[str, Any]) -> str:
    """What is said of a recipe in which the record at `path` has these keys too."""
    inner: Any = NEEDED.get(name, {}) | keys if path else START | keys
    for end in reversed(range(len(path))):
        _, holder, _ = RECORDS.get(".".join(path[:end]), ("", "", ""))
        inner = [inner] if path[end] == "0" else NEEDED.get(holder, {}) | {path[end]: inner}
    with pytest.raises(UserError) as refused:
        parse_recipe(START | inner if path else inner, "r.yaml")
    return str(refused.value)


def bounds(part: dict[str, Any]) -> dict[str, float]:
    """The limits of a number, also of one that may be null, by JSON Schema's words."""
    options = [part, *part.get("anyOf", ())]
    words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return {word: option[word] for option in options for word in words if word in option}


WORDS: dict[str, tuple[str, Callable[[float], float]]] = {
    "minimum": ("at least {:g}", lambda limit: limit - 1),
    "maximum": ("at most {:g}", lambda limit: limit + 1),
    "exclusiveMinimum": ("above {:g}", lambda limit: limit),
    "exclusiveMaximum": ("below {:g}", lambda limit: limit),
}
BOUNDED = [(path, key) for path, (_, _, keys) in RECORDS.items() for key, part in keys.items() if bounds(part)]


def test_the_schema_is_walked_whole() -> None:
    assert len(RECORDS) > 30
    assert len(BOUNDED) > 100
    assert {
        "ppo.update",
        "ppo.reward.0",
        "sft.data",
        "sft.data.0",
        "model.scratch",
        "reward.ensemble",
    } <= RECORDS.keys()
    assert ("ppo.kl", "target") in BOUNDED
    named = {name for _, name, _ in RECORDS.values()}
    assert {name for name in recipe_schema()["$defs"] if name.endswith("Config")} <= named


@pytest.mark.parametrize("path", RECORDS)
def test_a_number_beyond_its_range_is_told_the_range(path: str) -> None:
    place, name, keys = RECORDS[path]
    for key, part in keys.items():
        limits = bounds(part)
        for word in limits:
            message = refusal_of(place, name, {key: WORDS[word][1](limits[word])})
            full = ".".join([*place, key])
            said = next(one for one in message.split("; ") if f"`{full}`: should be " in one)
            for other, limit in limits.items():
                assert WORDS[other][0].format(limit) in said


@pytest.mark.parametrize("path", RECORDS)
def test_a_key_with_a_letter_wrong_is_suggested(path: str) -> None:
    place, name, keys = RECORDS[path]
    for key in keys:
        for typo in (key + key[-1], key[:-1] + "_" + key[-1], key.upper()):
            if typo in keys:
                continue
            message = refusal_of(place, name, {typo: 1})
            assert f"unknown key `{'.'.join([*place, typo])}`; did you mean `{key}`?" in message
