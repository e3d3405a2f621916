"""`keel init`, with options and with answers; what it writes is walked from beginning to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from keel.build import run_recipe
from keel.cli import app
from keel.config.recipe import load_recipe
from keel.errors import UserError
from keel.runs.layout import STAGES
from tests.pipeline.support import Heard
from tests.starters.support import save_world

BOTH = ("--model", "model", "--data", "demos.jsonl", "--data", "pairs.jsonl")
SHORT = (
    "sft.epochs=1",
    "sft.data.limit=40",
    "reward.normalise_samples=16",
    "ppo.iterations=1",
    "ppo.rollout_batch=8",
    "ppo.evaluate.count=4",
    "ppo.max_truncated=1.0",
    "evaluate.count=4",
    "evaluate.per_prompt=1",
    "evaluate.frontier_samples=2",
    "evaluate.bootstrap=50",
)


@pytest.fixture(autouse=True)
def _in_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_world(tmp_path)
    monkeypatch.chdir(tmp_path)


def init(*arguments: str, answers: str = "") -> Result:
    return CliRunner().invoke(app, ["init", *arguments], input=answers)


def test_what_is_written_runs_to_its_end(tmp_path: Path) -> None:
    result = init("mine", *BOTH, "--yes")
    assert result.exit_code == 0, result.output
    assert "stages: sft → reward → ppo → evaluate" in result.output
    recipe = load_recipe(Path("mine.yaml"), SHORT)
    assert (recipe.name, recipe.model.base) == ("mine", "model")
    run_recipe(recipe, tmp_path / "out", console=Heard())
    finished = [stage for stage in STAGES if (tmp_path / "out" / stage / "done.json").exists()]
    assert finished == ["sft", "reward", "ppo", "evaluate"]


def test_the_schema_lies_beside_it_and_is_left_alone_if_there() -> None:
    init("mine", *BOTH, "--yes")
    assert Path("mine.yaml").read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert json.loads(Path("recipe.schema.json").read_text())["title"] == "Keel recipe"
    Path("recipe.schema.json").write_text("{}")
    init("other", *BOTH, "--yes")
    assert Path("recipe.schema.json").read_text() == "{}"


def test_answers_serve_as_well_as_options() -> None:
    init("mine", *BOTH, "--yes")
    by_options = Path("mine.yaml").read_text()
    Path("mine.yaml").unlink()
    result = init(answers="model\ndemos.jsonl 'pairs.jsonl'\n\n")
    assert result.exit_code == 0, result.output
    assert Path("mine.yaml").read_text() == by_options


def test_a_mistaken_answer_is_asked_again() -> None:
    answers = "nowhere/at/all\nmodel\nmissing.jsonl\nprompts.jsonl\nkeel.demo:polite\ny\n"
    result = init("liked", answers=answers)
    assert result.exit_code == 0, result.output
    assert result.output.count("Model (a directory or a hub name)") == 2
    assert "There is no file missing.jsonl" in result.output
    ppo = load_recipe(Path("liked.yaml")).ppo
    assert ppo is not None
    assert ppo.reward[0].function == "keel.demo:polite"


def test_nobody_is_asked_what_the_comparisons_say() -> None:
    assert "What is liked" not in init("a", "--model", "model", "--data", "pairs.jsonl", answers="n\n").output
    assert "What is liked" in init("a", "--model", "model", "--data", "demos.jsonl", answers="\nn\n").output


def test_a_no_writes_nothing() -> None:
    result = init("mine", *BOTH, answers="n\n")
    assert result.exit_code == 0
    assert not Path("mine.yaml").exists()


def test_giving_up_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in Path.cwd().iterdir())
    assert init("mine", answers="model\n").exit_code == 1  # the input ends
    monkeypatch.setattr("keel.runs.files.sync", _interrupted)  # Ctrl-C between writing and naming the file
    assert init("mine", *BOTH, "--yes").exit_code != 0
    assert sorted(path.name for path in Path.cwd().iterdir()) == before


def _interrupted(path: Path) -> None:
    raise KeyboardInterrupt


def test_nothing_is_overwritten_unless_asked() -> None:
    Path("mine.yaml").write_text("mine\n")
    result = init("mine", *BOTH, "--yes")
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == "mine.yaml is there already; give another NAME, or --force to replace it"
    assert Path("mine.yaml").read_text() == "mine\n"
    assert init("mine", *BOTH, "--yes", "--force").exit_code == 0
    assert load_recipe(Path("mine.yaml")).name == "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("mine", "--yes"), "with --yes nothing is asked, so give --model and --data"),
        (("a/b", *BOTH, "--yes"), "'a/b' cannot name a recipe"),
        (
            ("mine", "--model", "model", "--data", "prompts.jsonl", "--yes"),
            "prompts alone do not say what is preferred",
        ),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], sentence: str) -> None:
    error = init(*arguments).exception
    assert isinstance(error, UserError)
    assert str(error).startswith(sentence)
