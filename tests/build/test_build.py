"""The composition root: what a stage is built with, and what it says when something does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.batching import pad_rows
from keel.build import generate_responses, run_recipe
from keel.build.stages import RUNNERS
from keel.build.workbench import Workbench
from keel.config.recipe import Recipe, parse_recipe
from keel.config.sampling import SamplingConfig
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.inputs import stage_inputs
from keel.models.load import load_classifier
from keel.models.reward import RewardModel
from keel.records import EncodedRow, PromptItem, Samples
from keel.runs.metrics import read_lines
from keel.schema import Prompt
from tests.pipeline.support import Heard, begin_stage
from tests.worlds import (
    prefix_space_codec,
    save_tiny_lm,
    tiny_classifier,
    tiny_codec,
)

PPO: dict[str, Any] = {
    "iterations": 1,
    "rollout_batch": 4,
    "sampling": {"max_new_tokens": 4},
    "update": {"epochs": 1, "minibatches": 1},
    "max_truncated": 1.0,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tiny Llama of 64 tokens of context."""
    return str(save_tiny_lm(tmp_path / "model"))


def prompts_file(tmp_path: Path, texts: list[str]) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "wanted": n}) + "\n" for n, text in enumerate(texts)))
    return {"path": str(file), "validation": 0.3}


def recipe_of(model: str, **stages: Any) -> Recipe:
    return parse_recipe({"name": "x", "device": "cpu", "model": {"base": model}, **stages}, "test")


def bench_of(recipe: Recipe, tmp_path: Path, stage: str = "ppo") -> tuple[Workbench, Heard]:
    console = Heard()
    inputs = stage_inputs(recipe, tmp_path / "run", stage)
    return Workbench(recipe, inputs, begin_stage(tmp_path / "run", stage), console), console


def ppo_with(reward: str, model: str, tmp_path: Path) -> list[dict[str, Any]]:
    """The metrics of one iteration with that function in ./taste.py."""
    prompts = prompts_file(tmp_path, [f"Could you {n}" for n in range(20)])
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts, "reward": [{"function": reward}]})
    run_recipe(recipe, tmp_path / "out", console=Heard())
    return read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")


def test_a_function_sees_prompts_responses_and_the_other_columns(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build_taste.py").write_text(
        "def even(prompts, responses, rows):\n"
        "    assert all(p == f'Could you {row[\"wanted\"]}' for p, row in zip(prompts, rows))\n"
        "    assert all(isinstance(r, str) for r in responses)\n"
        "    return [1.0 if row['wanted'] % 2 == 0 else None for row in rows]\n"
    )
    _, line = ppo_with("build_taste:even", model, tmp_path)
    missing = line["reward/build_taste.even/missing"]
    assert 0 < missing < 1
    assert line["reward/build_taste.even"] == 1.0
    assert line["objective/scores"] == pytest.approx(1 - missing)  # no opinion counts as 0


def test_a_function_that_fails_is_named(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build_broken.py").write_text("def f(prompts, responses, rows):\n    return [1 / 0]\n")
    with pytest.raises(UserError, match="the function build_broken:f raised ZeroDivisionError"):
        ppo_with("build_broken:f", model, tmp_path)
    with pytest.raises(UserError, match=r'there is no module "build_brokem".*Did you mean "build_broken"'):
        ppo_with("build_brokem:f", model, tmp_path)


def test_a_stage_says_once_that_it_samples_slowly(tmp_path: Path) -> None:
    model = str(save_tiny_lm(tmp_path / "mamba", family="mamba"))
    config = {"prompts": "none.jsonl", "policy": model, "reference": model, "reward": [{"function": "math:cos"}]}
    bench, console = bench_of(recipe_of(model, evaluate=config), tmp_path, "evaluate")
    policy, renderer = bench.models.frozen_policy(model, "policy"), bench.renderer(model)
    for _ in range(2):
        bench.sampler(policy, renderer)
    assert [line for line in console.said if "generate" in line] == [
        "evaluate: note: MambaForCausalLM is sampled by transformers' generate, which is slower: Keel's cache does not "
        "fit it (it keeps a state of its own kind)."
    ]


def test_prompts_leave_room_for_the_response(model: str, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, ["Could you lend me the ladder on Sunday?"] * 19 + ["the ladder " * 40])
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts, "reward": [{"function": "keel.demo:polite"}]})
    bench, console = bench_of(recipe, tmp_path)
    sampling = SamplingConfig(max_new_tokens=60)
    assert bench.room([model], 512, sampling) == 4
    assert bench.room([model], 3, sampling) == 3
    assert bench.room([model], 512) == 64
    loaded = bench.prompts("ppo.prompts", bench.renderer(model), 60)
    assert len(loaded.train) + len(loaded.validation) == 19
    assert console.said == [f"ppo: {tmp_path / 'prompts.jsonl'}: 1 of 20 rows left out (1 too long)."]
    with pytest.raises(UserError) as raised:
        bench.room([model], 512, SamplingConfig(max_new_tokens=64))
    assert str(raised.value) == "ppo: max_new_tokens leaves no prompt room in 64 tokens of context; lower it"
    short = str(save_tiny_lm(tmp_path / "short"))
    config = Path(short) / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 64', '"max_position_embeddings": 32'))
    assert bench.room([model, short], 512) == 32  # the reference reads it too


def test_prompts_that_are_cut_bring_no_warning(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    prompts = prompts_file(tmp_path, ["Could you lend me the ladder?"] * 3 + ["the ladder " * 40])
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts, "reward": [{"function": "keel.demo:polite"}]})
    bench, _ = bench_of(recipe, tmp_path)
    renderer = bench.renderer(model)
    loaded = bench.prompts("ppo.prompts", renderer, 60, "cut")
    items = bench.items(renderer, [*loaded.train, *loaded.validation], 60)
    assert max(len(item.tokens) for item in items) == 60
    assert not caplog.messages
    bench.renderer(model).length(Prompt("the ladder " * 40))
    assert "Token indices sequence length is longer" in caplog.text  # so it would have been heard


def save_reward_model(folder: Path, codec: Any) -> str:
    model: Any = tiny_classifier(vocab=len(codec.hf))
    model.config.pad_token_id = codec.hf.pad_token_id
    model.save_pretrained(folder)
    codec.save(folder)
    return str(folder)


@pytest.mark.parametrize("other_tokenizer", [False, True])
def test_a_reward_model_sees_the_ids_or_the_text(other_tokenizer: bool, model: str, tmp_path: Path) -> None:
    """With the policy's tokenizer the very ids that were sampled; with its own, the text that they say."""
    codec = prefix_space_codec() if other_tokenizer else tiny_codec()
    judge = save_reward_model(tmp_path / "judge", codec)
    reward = [{"model": judge, "weight": 2.0}]
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts_file(tmp_path, ["a"]), "reward": reward})
    bench, _ = bench_of(recipe, tmp_path)
    renderer = bench.renderer(model)
    prompt = "Could you lend"
    # ids that the tokenizer itself would not choose for this text: one token a byte
    ids = [token for char in " the ladder" for token in renderer.codec.encode(char)]
    samples = samples_of(renderer.item(Prompt(prompt)), ids)
    found = bench.scorer(renderer).score(samples)
    alone = RewardModelScorer("judge", RewardModel(load_classifier(judge)), token_budget=1000)
    theirs = bench.renderer(judge)
    by_text = float(alone.score_rows([theirs.encode(prompt, " the ladder", ended=False)])[0])
    by_ids = float(alone.score(samples).total[0]) if not other_tokenizer else None
    assert float(found.parts["judge"][0]) == pytest.approx(by_text if other_tokenizer else by_ids, abs=1e-5)
    assert float(found.total[0]) == pytest.approx(2 * float(found.parts["judge"][0]))
    if not other_tokenizer:
        assert by_ids != pytest.approx(by_text, abs=1e-3)


def samples_of(item: PromptItem, ids: list[int]) -> Samples:
    row = EncodedRow((*item.tokens, *ids), len(item.tokens))
    return Samples(pad_rows([row]), None, torch.tensor([False]), (item,), (" the ladder",))


def test_responses_depend_on_their_own_number_alone(model: str) -> None:
    sampling = SamplingConfig(max_new_tokens=6)
    prompts = [Prompt("Could you"), Prompt("the market opens at")]
    rows = generate_responses(model, prompts, sampling, samples=3, seed=4, device="cpu")
    assert [row["prompt"] for row in rows] == ["Could you"] * 3 + ["the market opens at"] * 3
    assert len({row["response"] for row in rows[:3]}) == 3
    assert generate_responses(model, prompts[:1], sampling, samples=3, seed=4, device="cpu") == rows[:3]
    assert generate_responses(model, prompts, sampling, samples=3, seed=5, device="cpu") != rows


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(
        str(tmp_path / "nowhere"),
        ppo={"prompts": prompts_file(tmp_path, list("abcdefgh")), "reward": [{"function": "keel.demo:polite"}]},
    )
    with pytest.raises(UserError, match="nowhere"):
        run_recipe(recipe, tmp_path / "out", console=Heard())
    with pytest.raises(UserError, match="nowhere"):
        generate_responses(str(tmp_path / "nowhere"), [Prompt("a")], SamplingConfig(), samples=1, seed=0, device="cpu")


def test_two_models_that_read_ids_as_other_words_are_refused(model: str, tmp_path: Path) -> None:
    other = str(save_tiny_lm(tmp_path / "other", prefix_space_codec()))
    prompts = prompts_file(tmp_path, ["a"])
    recipe = recipe_of(
        model, ppo={**PPO, "prompts": prompts, "reference": other, "reward": [{"function": "keel.demo:polite"}]}
    )
    bench, _ = bench_of(recipe, tmp_path)
    with pytest.raises(UserError, match=f"^ppo.reference \\({other}\\) has another tokenizer"):
        RUNNERS["ppo"](bench)


def test_margins_exclude_a_noise_model(model: str, tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}\n')
    recipe = recipe_of(model, reward={"data": {"path": str(rows), "validation": 0}, "flip_probability": 0.1})
    bench, _ = bench_of(recipe, tmp_path, "reward")
    with pytest.raises(UserError, match="has margins, which exclude flip_probability and label_smoothing; drop either"):
        RUNNERS["reward"](bench)


def test_prompts_that_hold_none_out_are_told_before_the_first_stage(model: str, tmp_path: Path) -> None:
    """Else people would have judged, and a reward model been trained, before ppo says so."""
    prompts = prompts_file(tmp_path, ["Could you lend me the ladder?"]) | {"validation": 0.05}
    collect = {"prompts": prompts, "annotator": {"script": "keel.demo:polite"}}
    ppo = {**PPO, "prompts": prompts, "reward": [{"model": "reward"}]}
    recipe = recipe_of(model, collect=collect, reward={}, ppo=ppo)
    with pytest.raises(UserError, match="ppo has no held-out prompts: none of the 1 in .*; give more prompts, or name"):
        run_recipe(recipe, tmp_path / "out", console=Heard())
    assert not (tmp_path / "out").exists()
