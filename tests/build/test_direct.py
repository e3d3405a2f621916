"""The direct stage from a recipe: what it holds, what it keeps on disk, and going on."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from keel.build import run_recipe
from keel.build.shelf import Shelf
from keel.config.model import ModelConfig
from keel.config.recipe import Recipe, parse_recipe
from keel.errors import UserError
from keel.models.load import load_causal_lm
from keel.models.policy import Policy
from keel.pipeline import reference
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.end_to_end.killing import differences
from tests.pipeline.support import Heard, begin_stage
from tests.worlds import save_tiny_lm

CACHE = reference.CACHE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, comparisons with a cut-off response, and labels."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_lm(folder / "model")
    pairs: list[dict[str, Any]] = [
        {"prompt": f"may {n} go ?", "chosen": f"yes {n}, please", "rejected": "no"} for n in range(40)
    ]
    pairs += [{"prompt": "and then", "chosen": "we", "rejected": "I", "chosen_ended": False, "rejected_ended": True}]
    labels = [
        {"prompt": f"may {n} go ?", "response": f"yes {n}" if n % 3 else "no", "accepted": bool(n % 3)}
        for n in range(40)
    ]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe_of(world: Path, data: str = "pairs", model: Mapping[str, Any] | None = None, **settings: Any) -> Recipe:
    direct = {"data": {"path": str(world / f"{data}.jsonl"), "validation": 0.2}, "batch": 8, "lr": 1e-3} | settings
    base = {"base": str(world / "model"), **(model or {})}
    return parse_recipe({"name": "x", "device": "cpu", "model": base, "direct": direct}, "test")


def run(recipe: Recipe, out: Path, console: Heard | None = None) -> list[dict[str, Any]]:
    """The logged lines."""
    run_recipe(recipe, out, console=console or Heard())
    return read_lines(out / "direct" / "metrics.jsonl")


class Stops(Heard):
    """A console out of which an interruption comes at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        super().progress(stage, done, total, numbers)
        if (stage, done) == ("direct", self.step):
            raise KeyboardInterrupt


def looks(console: Heard) -> int:
    """How often the reference was asked."""
    return sum(stage == "reference" for stage, _, _ in console.progressed)


@pytest.mark.parametrize("settings", [{}, {"kind": "kto"}], ids=["dpo", "kto"])
@pytest.mark.parametrize("step", [1, 3])  # 1: the cache is written and no checkpoint yet
def test_interrupted_it_ends_as_the_one_left_alone(
    settings: dict[str, Any], step: int, world: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(world, checkpoint_every=2, validate_every=2, **settings)
    run(recipe, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", first := Stops(step))
    assert looks(first) > 0
    assert (tmp_path / "cut" / "direct" / CACHE).exists()
    run(recipe, tmp_path / "cut", again := Heard())
    assert looks(again) == 0
    assert differences(tmp_path / "alone" / "direct", tmp_path / "cut" / "direct") == []


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_one_model_is_held_and_the_first_step_is_on_the_reference(
    tune: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Heard()
    read: list[weakref.ref[nn.Module]] = []

    def counted(source: str, **options: Any) -> Any:
        assert not any(model() for model in read)  # the reference is gone before the policy comes
        model = load_causal_lm(source, **options)
        read.append(weakref.ref(model))
        return model

    monkeypatch.setattr("keel.build.shelf.load_causal_lm", counted)
    lines = run(recipe_of(world, model={"tune": tune}), tmp_path, console)
    (said,) = [line for line in console.said if "of weights" in line]
    assert "reference" not in said
    assert len(read) == (1 if tune == "lora" else 2)  # an adapter's base is its reference
    assert "policy" in said
    assert lines[0]["direct/margin"] == pytest.approx(0.0, abs=1e-4)
    assert lines[0]["direct/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert lines[-1]["direct/loss"] < lines[0]["direct/loss"]
    assert (tmp_path / "direct" / "adapter").exists() == (tune == "lora")
    start, now = (load_file(path / "model" / "model.safetensors") for path in (world, tmp_path / "direct"))
    assert any(not torch.equal(start[name], now[name]) for name in start)


def test_what_is_released_leaves_the_memory_unless_another_role_holds_it(world: Path, tmp_path: Path) -> None:
    def shelf_of(tune: str) -> Shelf:
        config = ModelConfig.model_validate({"base": str(world / "model"), "tune": tune})
        return Shelf(config, "cpu", begin_stage(tmp_path, tune), Draws(0, "direct"))

    def body(policy: Policy) -> weakref.ref[nn.Module]:
        return weakref.ref(policy.backbone)

    alone = shelf_of("full")
    gone = body(alone.frozen_policy(str(world / "model"), "reference"))
    alone.release("reference")
    assert gone() is None
    shared = shelf_of("lora")
    policy = shared.trained_policy(str(world / "model"))
    frozen = shared.frozen_policy(str(world / "model"), "reference")
    assert frozen.backbone is policy.backbone
    shared.release("reference")
    assert shared.frozen_policy(str(world / "model"), "again").backbone is policy.backbone  # it was not read again


def test_a_cut_off_response_is_not_taught_to_end(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(path: Path, model: str, rows: Any, compute: Any) -> Any:
        seen.extend(rows)
        return reference.cached_logprobs(path, model, rows, compute)

    monkeypatch.setattr("keel.build.direct.cached_logprobs", spy)
    run(recipe_of(world), tmp_path)
    endings = [row.tokens[-1] for row in seen]
    assert endings.count(0) == len(endings) - 1  # 0 ends a text; one response was cut off


@pytest.mark.parametrize(("data", "rows"), [("labels", 1), ("pairs", 2)])
def test_kto_takes_labels_and_comparisons(data: str, rows: int, world: Path, tmp_path: Path) -> None:
    lines = run(recipe_of(world, data, kind="kto", epochs=4, batch=64), tmp_path)
    summary = json.loads((tmp_path / "direct" / "done.json").read_text())
    total = summary["rows"] + summary["validation_rows"]
    assert total == rows * (40 if data == "labels" else 41)
    assert lines[0]["direct/loss"] == pytest.approx(0.5, abs=1e-4)
    assert lines[-1]["direct/reward/chosen"] > lines[-1]["direct/reward/rejected"]
    assert all(line["direct/reference_point"] >= 0 for line in lines)


@pytest.mark.parametrize("kind", ["orpo", "simpo"])
def test_methods_without_a_reference_ask_none(kind: str, world: Path, tmp_path: Path) -> None:
    run(recipe_of(world, kind=kind), tmp_path, console := Heard())
    assert looks(console) == 0
    assert not (tmp_path / "direct" / CACHE).exists()


def test_what_cannot_be_learnt_from_is_refused(world: Path, tmp_path: Path) -> None:
    one_kind = tmp_path / "accepted.jsonl"
    rows = [{"prompt": f"{n}", "response": "a", "accepted": True} for n in range(9)]
    one_kind.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"^direct.data: every response is accepted, and kto learns from both kinds"):
        run(recipe_of(tmp_path, "accepted", {"base": str(world / "model")}, kind="kto"), tmp_path / "one")
    with pytest.raises(UserError, match=r"labels.jsonl: none of its 40 rows can be used"):
        run(recipe_of(world, "labels"), tmp_path / "labels")


def test_margins_that_nobody_reads_are_said(world: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} ?", "chosen": "a", "rejected": "b", "margin": 0.5 * (n % 2)} for n in range(20)]
    (tmp_path / "margins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Heard()
    run(recipe_of(tmp_path, "margins", {"base": str(world / "model")}), tmp_path / "out", console)
    assert any("comparisons have a margin, which direct methods do not read" in line for line in console.said)
