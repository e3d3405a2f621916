"""Longer runs, forks and callbacks on a real recipe; that kills change nothing is shown by the killing harness."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.errors import UserError
from keel.runs.callbacks import Callback, StageInfo
from keel.runs.metrics import read_lines
from tests.end_to_end.killing import differences, two_stages
from tests.pipeline.support import Heard


def run(out: Path, recipe: Recipe, **options: Any) -> list[str]:
    """What the run said."""
    console = Heard()
    run_recipe(recipe, out, console=console, **options)
    return console.said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations; the checkpoints of the last two, and of the best, are kept."""
    out = tmp_path_factory.mktemp("run") / "four"
    run(out, two_stages(4))
    return out


def coefficients(out: Path) -> list[float]:
    return [line["objective/kl_coef"] for line in read_lines(out / "ppo" / "metrics.jsonl")[1:]]


def test_a_fork_with_the_same_settings_ends_as_its_origin(finished: Path, tmp_path: Path) -> None:
    said = run(tmp_path / "new", two_stages(4), fork=f"{finished}/ppo@3")
    assert said[:2] == [
        f"sft: reused from {finished}/sft.",
        f"ppo: forked from step 3 of {finished}/ppo, with nothing changed.",
    ]
    wrong = differences(finished / "ppo", tmp_path / "new" / "ppo")
    allowed = {"forked_from.json is in one of them only", "identity.json"}
    assert {sentence for sentence in wrong if "checkpoints" not in sentence} == allowed
    assert not [sentence for sentence in wrong if "step-00000004" in sentence]


def test_a_fork_takes_up_the_new_settings(finished: Path, tmp_path: Path) -> None:
    said = run(tmp_path / "new", two_stages(4, "ppo.kl.coef=0.7"), fork=f"{finished}/ppo@3")
    assert said[1] == f"ppo: forked from step 3 of {finished}/ppo, with ppo.kl.coef: 0.1 → 0.7."
    assert coefficients(tmp_path / "new") == [*coefficients(finished)[:3], 0.7]
    summary = (tmp_path / "new" / "ppo" / "done.json").read_text()
    assert '"best_iteration": 4' in summary  # what was best under the old price of a nat counts no more
    kept = run(tmp_path / "other", two_stages(4, "ppo.kl.target=2.0"), fork=f"{finished}/ppo@3")
    assert "ppo.kl.target: 1.0 → 2.0" in kept[1]
    assert coefficients(tmp_path / "other") == coefficients(finished)  # the coefficient it had adapted to


def test_forks_that_cannot_be_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe has no reward stage to start from there"):
        run(tmp_path / "new", two_stages(4), fork=f"{finished}/reward@3")
    with pytest.raises(UserError, match=r"ppo: step 3 is past ppo.iterations 2; raise it, or fork earlier"):
        run(tmp_path / "new", two_stages(2), fork=f"{finished}/ppo@3")
    with pytest.raises(UserError, match=r'^--fork: model.tune: "full" → "lora" changes which weights train'):
        run(tmp_path / "lora", two_stages(4, "model.tune=lora"), fork=f"{finished}/ppo@3")
    assert not (tmp_path / "lora").exists()
    assert "ppo: forked" in run(tmp_path / "lora", two_stages(4), fork=f"{finished}/ppo@3")[1]


def test_an_extension_says_what_it_does(tmp_path: Path) -> None:
    short, longer = (two_stages(2, f"sft.epochs={epochs}", "ppo=null") for epochs in (1, 2))
    run(tmp_path, short)
    with pytest.raises(UserError, match=re.escape("(sft.epochs: 1 → 2); go on from its last checkpoint with --extend")):
        run(tmp_path, longer)
    said = run(tmp_path, longer, extend=True)
    assert said[0] == (
        "sft: extended, sft.epochs 1 → 2; the cosine is now that of the whole length, so the learning rate jumps to "
        "where that one stands."
    )
    rates = [line["sft/lr"] for line in read_lines(tmp_path / "sft" / "metrics.jsonl")]
    assert rates[1:7] == sorted(rates[1:7], reverse=True)  # after the warm-up
    assert rates[7] > 2 * rates[6]  # the jump: the short cosine was nearly at 0, the longer one is half-way
    assert rates[7:] == sorted(rates[7:], reverse=True)
    assert (tmp_path / "sft" / "model.epochs-1" / "model.safetensors").exists()


class Short(Callback):
    """Ends every stage after its second step."""

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        return step == 2


def nothing() -> int:
    return 3


def test_callbacks_of_a_recipe_and_of_a_call(tmp_path: Path) -> None:
    named = two_stages(4, f"callbacks=['{__name__}:Short']")
    said = run(tmp_path / "named", named)
    assert "ppo: ended after 2 iterations: a callback asked for it." in said
    run(tmp_path / "given", two_stages(4), callbacks=[Short()])
    wrong = differences(tmp_path / "named", tmp_path / "given")
    assert wrong == ["recipe.json"]  # so they are no part of what a stage is
    with pytest.raises(UserError, match=r"callbacks: .*:nothing returned a int, which is no keel\.Callback"):
        run(tmp_path / "wrong", two_stages(4, f"callbacks=['{__name__}:nothing']"))
