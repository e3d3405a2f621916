"""`keel demo --me`, driven as a script drives it: letters on stdin, a tiny model, every stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from keel.annotate.base import Pair
from keel.annotate.terminal import Key
from keel.cli import app
from keel.cli.demo_me import HeldOut, how_sure
from keel.config.recipe import Recipe
from keel.demo.judging import REPEATS
from keel.demo.recipe import demo_recipe, my_recipe
from keel.demo.tastes import terse_utility
from keel.errors import UserError
from keel.inputs import stage_identity, stage_inputs

SMALL = (
    "model.scratch={hidden: 16, layers: 1, heads: 2, vocab: 300, context: 128}",
    "sft.data={function: keel.demo:demonstrations, limit: 200}",
    "sft.epochs=1",
    "reward.epochs=1",
    "reward.normalise_samples=8",
    "reward.normalise_sampling.max_new_tokens=12",
    "ppo.iterations=2",
    "ppo.rollout_batch=16",
    "ppo.max_truncated=1.0",
    "ppo.sampling.max_new_tokens=12",
    "ppo.update.epochs=1",
    "ppo.evaluate={prompts: {function: keel.demo:heldout, limit: 4}, every: 2, count: 4}",
    "evaluate.sampling.max_new_tokens=12",
    "evaluate.count=4",
    "evaluate.frontier_samples=4",
    "evaluate.frontier_prompts=2",
)
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


def demo(*arguments: str, answers: str = "") -> Result:
    return CliRunner().invoke(app, ["demo", *arguments], input=answers, env={"COLUMNS": "120", "TERM": "dumb"})


def me(out: Path, answers: str) -> Result:
    return demo("--me", "--pairs", "12", "--out", str(out), *SETTINGS, answers=answers)


def scripted(pairs: list[dict[str, str]]) -> list[str]:
    """A person who likes it terse, without noise."""
    return [
        "a\n" if terse_utility(pair["prompt"], pair["first"]) > terse_utility(pair["prompt"], pair["second"]) else "b\n"
        for pair in pairs
    ]


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_answers_to_a_model_in_three_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keel.cli.demo_me._FOLDS", 2)
    judging = tmp_path / "me" / "judging"
    first = me(tmp_path, "a\ns\n")
    assert isinstance(first.exception, UserError)
    assert "pairs to learn from: 1, kept; 10 are needed" in str(first.exception)

    other = demo("--me", "--pairs", "20", "--out", str(tmp_path), *SETTINGS)
    assert "--pairs 20: 12 pairs are drawn already" in str(other.exception)

    pairs = lines(judging / "pairs.jsonl")
    assert [REPEATS in pair for pair in pairs].count(True) == 1
    rest = scripted(pairs)[2:]
    second = me(tmp_path, "".join(rest[:-2]) + "q\n")
    assert second.exception is None, second.output
    for stage in ("sft", "reward", "ppo", "evaluate"):
        assert (tmp_path / "me" / stage / "done.json").exists()
    assert "sft: finished before, skipped." in second.output
    text = " ".join(second.output.split())
    assert "You gave 11 answers (0 equal, 1 skipped)." in text
    assert "judgements are as a reward model trained on the others expects" in text
    assert "<svg" in (tmp_path / "me" / "report.html").read_text()

    # More answers make the reward model and what follows from it anew, and nothing else.
    third = me(tmp_path, "".join(rest[-2:]))
    assert third.exception is None, third.output
    assert sorted(folder.name for folder in (tmp_path / "me").glob("*.old-1")) == [
        "evaluate.old-1",
        "ppo.old-1",
        "reward.old-1",
    ]
    answers = [line["answer"] for line in lines(judging / "judgements.jsonl")]
    assert answers == ["first", "skip", *({"a\n": "first", "b\n": "second"}[letter] for letter in rest)]
    lost = [
        pair[{"first": "second", "second": "first"}[answer]]
        for answer, pair in zip(answers, pairs, strict=True)
        if answer != "skip" and REPEATS not in pair
    ]
    assert [row["rejected"] for row in lines(judging / "comparisons.jsonl")] == lost
    assert json.loads((judging / "held_out.json").read_text())["pairs"] == 11
    assert not (judging / "fold").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--me", "--taste", "polite"], "--taste polite has no effect with --me"),
        (["--pairs", "20"], "--pairs has no effect without --me"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = demo(*arguments, "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_the_supervised_stage_is_the_demos(tmp_path: Path) -> None:
    def sft(recipe: Recipe) -> object:
        return stage_identity(recipe, "sft", stage_inputs(recipe, tmp_path, "sft"))

    assert sft(my_recipe(tmp_path / "comparisons.jsonl")) == sft(demo_recipe("polite"))


def test_the_recipe_knows_no_true_utility(tmp_path: Path) -> None:
    recipe = my_recipe(tmp_path / "comparisons.jsonl", ["ppo.kl.coef=0.7"])
    assert recipe.collect is None
    assert recipe.ppo is not None
    assert recipe.ppo.evaluate.utility is None
    assert recipe.evaluate is not None
    assert recipe.evaluate.utility is None
    assert recipe.ppo.kl.coef == 0.7


def test_how_sure_in_words() -> None:
    pairs = [Pair("p", "x", "y", {})] * 33 + [Pair("p", "y", "x", {REPEATS: 0})]
    answers = [Key.FIRST] * 31 + [Key.EQUAL, Key.SKIP, Key.SECOND]
    # Wilson's interval of 27 of 33, from its formula by hand: centre 0.7850, half-width 0.1287.
    assert how_sure(pairs, answers, HeldOut(27.0, 16.5, 33)) == (
        "You gave 34 answers (1 equal, 1 skipped). Held out in turn, 27 of 33 judgements are as a reward model trained "
        "on the others expects = 82% (95 % interval 66% to 91%); always the longer reply: 50%. Pairs shown again with "
        "their sides exchanged: 1 of 1 answered the same way."
    )
    assert "may still be chance" in how_sure(pairs, answers, HeldOut(20.0, 16.5, 33))  # 43 % to 75 %
