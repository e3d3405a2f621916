from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from keel.errors import UserError
from keel.starters.look import look_at_data, look_at_model
from keel.text.render import Renderer
from tests.starters.support import CONTEXT, save_rows, save_world
from tests.worlds import chatml_codec, prefix_space_codec, save_tiny_lm

TOKENIZERS: Any = AutoTokenizer  # untyped


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_world(folder)
    return folder


def numbers_in(file: Path) -> int:
    """The numbers that a safetensors file holds, by its header."""
    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  # no mapping
    total = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def test_a_model_is_described_by_what_lies_in_its_directory(world: Path) -> None:
    facts, _ = look_at_model(str(world / "model"))
    config = json.loads((world / "model" / "config.json").read_text())
    assert facts.parameters == numbers_in(world / "model" / "model.safetensors")
    assert (facts.family, facts.context, facts.vocabulary) == ("llama", CONTEXT, config["vocab_size"])
    assert not facts.own_template


def test_weights_are_not_read(world: Path, tmp_path: Path) -> None:
    folder = save_tiny_lm(tmp_path / "gpt", chatml_codec(), family="gpt2")
    expected = numbers_in(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    facts, _ = look_at_model(str(folder))
    assert (facts.family, facts.parameters, facts.context, facts.own_template) == ("gpt2", expected, 64, True)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no causal language model"):
        look_at_model(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "kind", "rows"),
    [("demos.jsonl", "demonstrations", 150), ("pairs.jsonl", "comparisons", 80), ("prompts.jsonl", "prompts", 40)],
)
def test_a_files_kind_and_rows(world: Path, file: str, kind: str, rows: int) -> None:
    _, renderer = look_at_model(str(world / "model"))
    facts = look_at_data(str(world / file), renderer)
    assert (facts.kind, facts.total, facts.usable, facts.unusable_share) == (kind, rows, rows, 0.0)
    assert facts.gives_prompts
    assert not facts.chat
    assert len(facts.row_lengths) == len(facts.prompt_lengths) == rows


def test_lengths_are_the_tokenizers(world: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    facts = look_at_data(str(world / "demos.jsonl"), renderer)
    tokenizer = TOKENIZERS.from_pretrained(world / "model")
    rows = [json.loads(line) for line in (world / "demos.jsonl").read_text().splitlines()]
    prompts = [len(tokenizer.encode(row["prompt"])) for row in rows]
    responses = [len(tokenizer.encode(row["response"])) + 1 for row in rows]  # and the end token
    assert facts.prompt_lengths == tuple(prompts)
    assert facts.response_lengths == tuple(responses)
    assert facts.row_lengths == tuple(map(sum, zip(prompts, responses, strict=True)))


def test_a_comparison_has_two_responses_and_the_longer_one_counts(world: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    row = {"prompt": "hello", "chosen": "a", "rejected": "b b b b b"}
    facts = look_at_data(str(save_rows(tmp_path / "pairs.jsonl", [row])), renderer)
    short, long = facts.response_lengths
    assert short == 2 < long
    assert facts.row_lengths == (facts.prompt_lengths[0] + long,)


def test_dialogues_without_a_prompt_give_prompts_too(world: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [{"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": str(n)}]} for n in range(3)]
    facts = look_at_data(str(save_rows(tmp_path / "pairs.jsonl", rows)), renderer)
    assert (facts.kind, facts.gives_prompts, facts.chat) == ("comparisons", True, True)


@pytest.mark.parametrize(
    ("row", "kind", "counts", "gives_prompts"),
    [
        ({"text": "once upon a time"}, "demonstrations", (1, 1, 0), False),
        ({"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 2]}, "comparisons", (3, 2, 0), True),
        ({"prompt": "a", "response": "b", "accepted": True}, "demonstrations", (1, 1, 0), True),
    ],
)
def test_rows_of_other_forms_are_what_a_stage_reads_them_as(
    row: dict[str, Any], kind: str, counts: tuple[int, ...], gives_prompts: bool, world: Path, tmp_path: Path
) -> None:
    """A ranking of three with a tie is three comparisons, of which the tie is left out on purpose."""
    facts = look_at_data(str(save_rows(tmp_path / "rows.jsonl", [row])), Renderer(prefix_space_codec()))
    assert (facts.kind, (facts.total, facts.usable, facts.unusable)) == (kind, counts)
    assert facts.gives_prompts == gives_prompts


def test_ratings_are_refused(world: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    file = str(save_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b", "rating": 3}]))
    with pytest.raises(UserError, match="holds ratings, from which no stage learns"):
        look_at_data(file, renderer)


def test_few_prompts_hold_out_a_larger_share(world: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    facts = look_at_data(str(world / "prompts.jsonl"), renderer)
    assert facts.validation == 0.5
    assert 12 <= facts.held_out <= 28  # of 40


def test_unusable_rows_are_counted(world: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    rows = [{"prompt": "hello", "response": "hi"}] * 3 + [{"prompt": "hello", "response": ""}]
    facts = look_at_data(str(save_rows(tmp_path / "demos.jsonl", rows)), renderer)
    assert (facts.total, facts.usable, facts.unusable_share) == (4, 3, 0.25)


def test_columns_of_no_kind_are_named(world: Path, tmp_path: Path) -> None:
    _, renderer = look_at_model(str(world / "model"))
    file = str(save_rows(tmp_path / "rows.jsonl", [{"words": "a", "note": 1}]))
    with pytest.raises(UserError, match=r"has the columns words, note, which fit no kind of record"):
        look_at_data(file, renderer)
    with pytest.raises(UserError, match="holds no row that can be read"):
        look_at_data(str(save_rows(tmp_path / "empty.jsonl", [])), renderer)
