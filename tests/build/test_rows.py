"""Which rows a stage trains on: several sources, and prompts that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.build import run_recipe
from keel.build.evaluate import run_evaluate
from keel.build.workbench import load_renderer
from keel.records import EncodedRow
from keel.runs.metrics import read_lines
from keel.schema import Prompt
from tests.build.test_build import PPO, bench_of, model, prompts_file, recipe_of
from tests.pipeline.support import Heard

__all__ = ["model"]  # the fixture
TASTE = [{"function": "keel.demo:polite"}]
SHORT = {"max_new_tokens": 4}
LONG = "the ladder " * 40


def rows_file(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / name)


def test_long_prompts_are_cut_to_the_room_they_have(model: str, tmp_path: Path) -> None:
    texts = ["Could you lend me the ladder on Sunday?"] * 19 + [LONG]
    prompts = prompts_file(tmp_path, texts) | {"validation": 0}
    bench, console = bench_of(recipe_of(model, ppo={**PPO, "prompts": prompts, "reward": TASTE}), tmp_path)
    renderer = bench.renderer(model)
    kept = bench.prompts("ppo.prompts", renderer, 30, "cut")
    assert console.said == [f"ppo: {tmp_path / 'prompts.jsonl'}: 1 prompts lose their oldest tokens to fit 30."]
    items = bench.items(renderer, kept.train, 30)
    assert [item.tokens for item in items[:-1]] == [renderer.item(Prompt(texts[0])).tokens] * 19
    assert items[-1].tokens == renderer.item(Prompt(LONG)).tokens[-30:]


@pytest.mark.parametrize("long_prompts", ["drop", "cut"])
def test_every_stage_knows_what_becomes_of_long_prompts(long_prompts: str, model: str, tmp_path: Path) -> None:
    texts = ("Could you", LONG)
    data = {"validation": 0, "max_unusable": 0.6}
    prompts = {"path": rows_file(tmp_path, "prompts.jsonl", [{"prompt": text} for text in texts]), **data}
    demos = [{"prompt": text, "response": "No."} for text in texts]
    pairs = [{"prompt": text, "chosen": "Of course.", "rejected": "No."} for text in texts]
    both = {"long_prompts": long_prompts, "prompts": prompts}
    trained = {"long_prompts": long_prompts, "epochs": 1}
    answered = {"path": rows_file(tmp_path, "demos.jsonl", demos), **data}
    judged = {"demonstrations": answered, "sampling": SHORT, "frontier_samples": 2, "per_prompt": 1}
    recipe = recipe_of(
        model,
        sft={"data": answered, **trained},
        collect={**both, "annotator": {"script": "keel.demo:polite"}, "sampling": SHORT},
        reward={
            "data": {"path": rows_file(tmp_path, "pairs.jsonl", pairs), **data},
            "normalise_samples": 8,
            "normalise_sampling": SHORT,
            **trained,
        },
        ppo={**PPO, **both, "evaluate": {"prompts": prompts}, "reward": TASTE},
        evaluate={**both, **judged, "reward": TASTE},
    )
    console = Heard()
    run_recipe(recipe, tmp_path / "out", console=console)
    told = "lose their oldest tokens" if long_prompts == "cut" else "rows left out (1 too long)"
    stages = [line.split(":")[0] for line in console.said if told in line]
    normalisation = ["reward"] if long_prompts == "cut" else []  # else its prompts are left out with their rows
    assert stages == ["sft", "collect", "reward", *normalisation, "ppo", "ppo", "evaluate", "evaluate"]


def test_demonstrations_are_judged_as_they_were_cut(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[EncodedRow] = []
    monkeypatch.setattr("keel.build.evaluate.evaluate", lambda *given, **_: judged.extend(given[3]))
    demos = rows_file(tmp_path, "demos.jsonl", [{"prompt": LONG.strip(), "response": "No."}])
    prompts = {"path": rows_file(tmp_path, "prompts.jsonl", [{"prompt": "Could you"}]), "validation": 0}
    config = {"prompts": prompts, "demonstrations": demos, "long_prompts": "cut", "policy": model, "reference": model}
    recipe = recipe_of(model, evaluate={**config, "sampling": SHORT, "reward": TASTE})
    bench, _ = bench_of(recipe, tmp_path, "evaluate")
    run_evaluate(bench)
    [row] = judged
    assert len(row.tokens) == 64  # the model's context
    assert (
        row.tokens[row.prompt_length :]
        == load_renderer(model).encode("Could you", "No.").tokens[-row.response_length :]
    )


def test_prompts_that_leave_normalisation_no_room_are_counted(model: str, tmp_path: Path) -> None:
    texts = ["Could you", "Could you", "Could you lend me the ladder on Sunday?"]
    pairs = [{"prompt": text, "chosen": "Of course.", "rejected": "No."} for text in texts]
    data = {"path": rows_file(tmp_path, "pairs.jsonl", pairs), "validation": 0}
    renderer = load_renderer(model)
    room = renderer.length(Prompt(texts[-1])) - 1
    reward = {
        "data": data,
        "normalise_samples": 8,
        "normalise_sampling": {"max_new_tokens": 64 - room},
        "epochs": 1,
    }
    console = Heard()
    run_recipe(recipe_of(model, reward=reward), tmp_path / "out", console=console)
    [line] = [line for line in console.said if "left out" in line]
    assert line.startswith(f"reward: normalisation: 1 of 3 prompts left out (longer than the {room} tokens that")


def test_sources_are_mixed_and_reported_by_kind(model: str, tmp_path: Path) -> None:
    words = [f"{a}{b}" for a in "abcdefg" for b in "aeiou"]
    rows = [{"prompt": f"Could you {word}", "response": f"No {word}."} for word in words]
    kinds = [
        {"path": rows_file(tmp_path, f"{kind}.jsonl", rows), "validation": 0.3, "kind": kind}
        for kind in ("domain", "safety")
    ]
    data = [{**kinds[0], "weight": 0.5}, kinds[1]]
    recipe = recipe_of(
        model,
        sft={"data": data, "epochs": 1, "batch": 8},
        ppo={**PPO, "prompts": data, "rollout_batch": 16, "reward": TASTE},
        evaluate={"prompts": kinds, "sampling": SHORT, "frontier_samples": 2, "frontier_prompts": 2, "per_prompt": 2},
    )
    run_recipe(recipe, tmp_path / "out", console=Heard())

    def done(stage: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((tmp_path / "out" / stage / "done.json").read_text())
        return content

    sft = done("sft")
    assert set(sft["validation_loss_by_kind"]) == {"domain", "safety"}
    each = sft["rows"] // 2  # the same prompts, so the same ones are held out of both
    assert sft["steps"] == -(-(each + round(each / 2)) // 8)
    line = read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")[1]
    by_kind = {name for name in line if name.startswith("objective/scores/")}
    assert by_kind == {"objective/scores/domain", "objective/scores/safety"}
    assert set(done("evaluate")["kinds"]) == {"domain", "safety"}
    assert all(0 <= kind["win_rate"] <= 1 for kind in done("evaluate")["kinds"].values())
