"""Two steps of every stage: what they tell, and that nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from keel.annotate.base import Pair
from keel.build import smoke as module
from keel.build.collect import make_annotator
from keel.build.smoke import Watch, peak, reset_peak, shrunk, smoke
from keel.config.recipe import parse_recipe
from keel.data.load import load_demonstrations
from keel.runs.callbacks import StageInfo
from keel.runs.layout import STAGES
from tests.end_to_end.tiny import tiny_recipe
from tests.pipeline.support import Heard
from tests.worlds import one_source

MIB = 2**20


def test_every_stage_is_forecast_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recipe = tiny_recipe(
        ["ppo.iterations=1000", "sft.epochs=40", "reward.epochs=9", "direct.epochs=7", "ppo.sampling.max_new_tokens=80"]
    )
    console = Heard()
    found = {one.stage: one for one in smoke(recipe, console)}
    assert list(found) == list(STAGES)
    assert list(tmp_path.iterdir()) == []
    assert recipe.sft is not None
    rows = len(load_demonstrations(one_source(recipe.sft.data)).train)
    assert found["sft"].steps == -(-rows * 40 // 16)
    assert found["collect"].steps == 200
    assert found["reward"].steps == -(-190 * 9 // 32)  # of 200 prompts, 5 % are held out
    assert found["direct"].steps == -(-190 * 7 // 32)
    assert found["ppo"].steps == 1000
    assert found["evaluate"].steps == 8
    for stage, done, _ in console.progressed:
        if stage == "reference":  # what direct does before its steps
            continue
        assert done <= (3 if stage == "evaluate" else 2)  # its parts, not its steps
    for one in found.values():
        assert one.seconds >= one.seconds_a_step * one.steps > 0
        assert 50 * MIB < one.peak_bytes < 64 * 1024 * MIB
    parts = found["ppo"].roles
    assert all(seconds >= 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(found["ppo"].seconds_a_step, rel=0.05)
    assert console.said[-1].startswith("Not known: how long responses will be. Taken are ")
    assert "as in the demonstrations; after two steps the model still wrote" in console.said[-1]
    assert not any("callback" in said for said in console.said)


@pytest.mark.parametrize(("slow", "stops"), [(0.0, [False, True, True]), (1000.0, [False, False, True])])
def test_a_slow_stage_is_content_with_one_step(slow: float, stops: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOW", slow)
    console = Heard()
    watch = Watch(console, torch.device("cpu"))
    stage = StageInfo("run", "ppo", Path("run/ppo"), {})
    watch.on_begin(stage)
    assert [watch.on_log(stage, step, {}) for step in range(3)] == stops  # line 0 is an evaluation, no step
    assert console.said == (["ppo: slow, so one step must do."] if slow == 0 else [])


def test_batches_and_lengths_stay_and_rows_are_few() -> None:
    recipe = tiny_recipe(["sft.data.limit=null", "ppo.prompts.limit=90000", "loggers=[wandb]", "ppo.max_truncated=0.5"])
    small = shrunk(recipe)
    assert recipe.sft is not None
    assert recipe.ppo is not None
    assert small.sft is not None
    assert small.ppo is not None
    assert (one_source(small.sft.data).limit, one_source(small.ppo.prompts).limit) == (2000, 2000)
    assert (small.sft.batch, small.sft.token_budget, small.sft.epochs) == (
        16,
        recipe.sft.token_budget,
        recipe.sft.epochs,
    )
    assert (small.ppo.rollout_batch, small.ppo.sampling, small.ppo.update) == (
        recipe.ppo.rollout_batch,
        recipe.ppo.sampling,
        recipe.ppo.update,
    )
    assert small.ppo.iterations == recipe.ppo.iterations  # the schedule is the real one's
    assert small.loggers == ()
    parse_recipe(small.model_dump(mode="json"), "still a recipe")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_the_peak_is_that_since_it_was_reset() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    before = peak(device)
    held = np.ones(256 * MIB, dtype=np.uint8)
    assert peak(device) - before == pytest.approx(256 * MIB, rel=0.2)
    del held
    assert peak(device) - before > 200 * MIB  # high water
    reset_peak(device)
    assert peak(device) - before < 100 * MIB


def test_people_are_not_asked_for_it() -> None:
    small = shrunk(tiny_recipe(["collect.annotator={people: {project: talk}}"]))
    assert small.collect is not None
    annotator = make_annotator(small.collect.annotator)
    pairs = [Pair("p", "long", "s", {}), Pair("p", "s", "long", {})] * 2
    assert [said.first_wins for said in annotator.compare(pairs, [0.1, 0.1, 0.9, 0.9])] == [True, True, False, False]
