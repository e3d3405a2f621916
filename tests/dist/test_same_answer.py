"""Two and four processes do what one does: the same samples, the same losses, the same weights to rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.dist.launcher import Dismissed
from keel.errors import UserError
from keel.runs.console import SilentConsole
from tests.dist.crowd import in_processes
from tests.end_to_end.tiny import tiny_recipe

CLOSE = 1e-5
CLOSE_SAMPLE = 1e-4  # a single response's score, not a mean
LAYOUTS = {
    "head": [],
    "network": ["ppo.critic=network"],
    "lora head": ["model.tune=lora"],
    "lora network": ["model.tune=lora", "ppo.critic=network"],
    "grpo": ["ppo.critic=none", "ppo.advantage={kind: grpo}", "ppo.per_prompt=4"],
    "odd": ["ppo.rollout_batch=14", "ppo.update.minibatches=1", "ppo.update.token_budget=100"],
    "recomputed": ["model.gradient_checkpointing=true"],
    "copies": ["parallel.shard=1"],
}


def run(recipe: Recipe, out: Path, **options: Any) -> None:
    run_recipe(recipe, out, console=SilentConsole(), **options)


def lines(out: Path, stage: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / stage / name).read_text(encoding="utf-8").splitlines()]


def apart(one: Any, other: Any, where: str, close: float) -> list[str]:
    """Where two trees differ, numbers by more than `close`, times left out."""
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(one.keys() ^ other.keys())}"]
        return [w for key in one if "time/" not in key for w in apart(one[key], other[key], f"{where}.{key}", close)]
    if isinstance(one, list):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        return [w for n, pair in enumerate(zip(one, other, strict=True)) for w in apart(*pair, f"{where}[{n}]", close)]
    if isinstance(one, float) and isinstance(other, float):
        return [] if math.isclose(one, other, rel_tol=close, abs_tol=close) else [f"{where}: {one} and {other}"]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the first accuracy of a policy that still is its reference: the sign of what is 0 but for rounding."""
    return [{k: v for k, v in row.items() if n or k != "direct/accuracy"} for n, row in enumerate(rows)]


def differences(one: Path, other: Path, stages: Sequence[str]) -> list[str]:
    found = []
    for stage in stages:
        for name, close in (("metrics.jsonl", CLOSE), ("samples.jsonl", CLOSE_SAMPLE)):
            if (one / stage / name).exists():
                first, second = (comparable(lines(out, stage, name)) for out in (one, other))
                found += apart(first, second, f"{stage}/{name}", close)
        for file in (one / stage).glob("*/*.safetensors"):
            ours, theirs = load_file(file), load_file(other / stage / file.parent.name / file.name)
            assert ours.keys() == theirs.keys()
            found += [f"{file.name} {name}" for name in ours if not (ours[name] - theirs[name]).abs().max() < CLOSE]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(tiny_recipe(), out)
    return out


@pytest.mark.parametrize("count", [2, 4])
def test_every_stage(alone: Path, tmp_path: Path, count: int) -> None:
    in_processes(count, lambda: run(tiny_recipe(), tmp_path / "run"))
    assert differences(alone, tmp_path / "run", ["sft", "collect", "reward", "direct", "ppo", "evaluate"]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ppo_in_each_layout(alone: Path, tmp_path: Path, layout: str) -> None:
    recipe = tiny_recipe(
        ["direct=null", "evaluate=null", "ppo.iterations=5", "ppo.reward=[{model: reward}]", *LAYOUTS[layout]]
    )
    run(recipe, tmp_path / "one", reuse=alone)
    in_processes(2, lambda: run(recipe, tmp_path / "two", reuse=alone))
    assert differences(tmp_path / "one", tmp_path / "two", ["ppo"]) == []


def test_bfloat16(alone: Path, tmp_path: Path) -> None:
    """The sums of gradients are float32's: a step moves the weights as it does alone, to what bfloat16 rounds off."""
    recipe = tiny_recipe(
        ["direct=null", "evaluate=null", "collect=null", "reward=null", "ppo=null", "model.precision=bfloat16"]
    )
    run(recipe, tmp_path / "one")
    in_processes(2, lambda: run(recipe, tmp_path / "two"))
    first, second = (lines(tmp_path / name, "sft", "metrics.jsonl")[-1] for name in ("one", "two"))
    assert first["sft/loss"] == pytest.approx(second["sft/loss"], rel=2e-2)


@pytest.mark.parametrize("objective", ["ordinal", "accept"])
def test_what_trains_beside_a_model(tmp_path: Path, objective: str) -> None:
    """Thresholds are read outside of the model's forward."""
    kinds: dict[str, tuple[str, list[Any]]] = {
        "ordinal": ("rating", [1, 2, 3, 4, 5]),
        "accept": ("accepted", [True, False]),
    }
    key, values = kinds[objective]
    data = tmp_path / "judged.jsonl"
    rows = [{"prompt": f"say {n}", "response": "yes " * (n % 7 + 1), key: values[n % len(values)]} for n in range(80)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tiny_recipe(
        [
            "direct=null",
            "evaluate=null",
            "collect=null",
            "ppo=null",
            f"reward.objective={objective}",
            f"reward.data={data}",
        ]
    )
    run(recipe, tmp_path / "one")
    in_processes(2, lambda: run(recipe, tmp_path / "two"))
    assert differences(tmp_path / "one", tmp_path / "two", ["reward"]) == []


def test_the_first_ratio_is_explained_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader stops before the first step, and the others take part in looking for the cause."""
    monkeypatch.setattr("keel.build.ppo.RATIO_TOLERANCE", -1.0)
    without = [f"{stage}=null" for stage in ("collect", "reward", "direct", "evaluate")]
    recipe = tiny_recipe([*without, "sft.epochs=1", "ppo.reward=[{function: 'keel.demo:polite'}]"])

    def work() -> str:
        try:
            run(recipe, tmp_path / "run")
        except (UserError, Dismissed) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    first, second = in_processes(2, work)
    assert first.startswith("UserError: ")
    assert "ratio" in first
    assert second == "Dismissed: "
