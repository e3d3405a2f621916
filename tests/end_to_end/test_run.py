"""All stages of a recipe on a model of a few thousand parameters, and every way to go on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.batching import pad_rows
from keel.build import generate_responses, load_renderer, run_recipe
from keel.build.export import export_model
from keel.config.data import DataConfig
from keel.config.recipe import Recipe, parse_recipe
from keel.config.sampling import SamplingConfig
from keel.data.load import load_comparisons
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.models.load import load_classifier
from keel.models.reward import RewardModel
from keel.report.page import write_report
from keel.runs.layout import STAGES
from keel.runs.metrics import read_lines
from keel.runs.run import Run
from keel.schema import Prompt
from tests.checkpoints import weights_in
from tests.end_to_end.killing import differences
from tests.end_to_end.tiny import tiny_recipe
from tests.pipeline.support import Heard

POLICIES: Any = AutoModelForCausalLM  # untyped
CLASSIFIERS: Any = AutoModelForSequenceClassification
TOKENIZERS: Any = AutoTokenizer

PROMPTS = ["how do i clean my kettle ?", "what is tea ?", "where"]


def run(out: Path, recipe: Recipe | None = None, **options: Any) -> list[str]:
    """What the run said."""
    console = Heard()
    run_recipe(recipe or tiny_recipe(), out, console=console, **options)
    return console.said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "tiny"
    run(out)
    return out


def summary(out: Path, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / stage / "done.json").read_text())
    return content


def bytes_below(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


SUMMARIES = {
    "sft": "steps rows response_tokens validation_rows validation_loss validation_loss_by_kind",
    "collect": "comparisons identical_pairs prompts annotator noise_ceiling",
    "reward": "steps pairs validation_judgements validation_pairs validation_ties validation score_mean_before "
    "score_scale accuracy accuracy_interval longer_wins noise_ceiling reliability kinds thresholds",
    "direct": "steps rows prompts validation_rows validation",
    "ppo": "iterations stopped kl_coef best_iteration best_objective model_of_iteration fits",
    "evaluate": "prompts per_prompt policy reference best_of kl kl_standard_error kl_per_token score utility kinds "
    "demonstrations frontier",
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_did(finished: Path, stage: str) -> None:
    assert set(summary(finished, stage)) == {*SUMMARIES[stage].split(), "seconds"}


def test_at_the_first_step_ratio_is_one_and_kl_zero(finished: Path) -> None:
    lines = read_lines(finished / "ppo" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == list(range(7))
    first = lines[1]
    assert first["ppo/policy/first_ratio_gap"] < 1e-5
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    for line in lines[1:]:
        assert line["objective/kl"] > -5 * line["objective/kl_standard_error"] - 1e-3
        assert line["ppo/policy/first_ratio_gap"] < 1e-4
    assert lines[-1]["objective/kl"] > 1e-3  # it has moved


def test_each_reward_is_logged_by_the_recipes_name(finished: Path) -> None:
    for line in read_lines(finished / "ppo" / "metrics.jsonl")[1:]:
        assert line["objective/scores"] == pytest.approx(
            line["reward/reward"] + 0.1 * line["reward/keel.demo.polite"], abs=1e-5
        )
        assert line["reward/reward/missing"] == 0.0


def test_the_reward_model_was_normalised_on_its_reference(finished: Path) -> None:
    start = read_lines(finished / "ppo" / "metrics.jsonl")[1]  # other samples of the same policy
    assert abs(start["reward/reward"]) < 1.0


# --- what the stages hand on ---


@pytest.mark.parametrize("stage", ["sft", "direct", "ppo"])
def test_a_saved_policy_generates_in_transformers_what_it_generates_here(finished: Path, stage: str) -> None:
    folder = finished / stage / "model"
    greedy = SamplingConfig(max_new_tokens=12, temperature=0.0)
    ours = generate_responses(str(folder), [Prompt(text) for text in PROMPTS], greedy, samples=1, seed=0, device="cpu")
    tokenizer = TOKENIZERS.from_pretrained(folder)
    model = POLICIES.from_pretrained(folder).eval()
    for text, response in zip(PROMPTS, ours, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert response["response"] == tokenizer.decode(new, skip_special_tokens=True)
        assert response["ended"] == (int(new[-1]) == tokenizer.eos_token_id)


def test_the_saved_reward_model_scores_in_transformers_as_here(finished: Path) -> None:
    folder = finished / "reward" / "model"
    renderer = load_renderer(str(folder))
    data = DataConfig(path=str(finished / "collect" / "comparisons" / "comparisons.jsonl"), limit=12)
    rows = [side for row in load_comparisons(data).train for side in renderer.comparison(row)]
    ours = RewardModelScorer("r", RewardModel(load_classifier(str(folder))), token_budget=200).score_rows(rows)
    model = CLASSIFIERS.from_pretrained(folder).eval()
    assert model.config.pad_token_id == TOKENIZERS.from_pretrained(folder).pad_token_id
    batch = pad_rows(rows)
    inside = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    with torch.no_grad():
        logits = model(input_ids=torch.where(inside, batch.tokens, model.config.pad_token_id)).logits.squeeze(-1)
    torch.testing.assert_close(logits - model.config.keel_reward_shift, ours, rtol=0, atol=1e-5)
    assert float(ours.std()) > 0.05


def test_the_best_of_n_responses_score_higher_and_say_how_high(finished: Path) -> None:
    def drawn(best_of: int) -> list[dict[str, Any]]:
        settings = SamplingConfig(max_new_tokens=12)
        reward = str(finished / "reward" / "model")
        prompts = [Prompt(text) for text in PROMPTS]
        return generate_responses(
            str(finished / "sft" / "model"), prompts, settings, samples=8, seed=0, device="cpu",
            best_of=best_of, reward=reward,
        )  # fmt: skip

    one, best = drawn(1), drawn(6)
    assert [row["prompt"] for row in best] == [text for text in PROMPTS for _ in range(8)]
    assert sum(row["score"] for row in best) > sum(row["score"] for row in one) + 5


def test_the_ppo_checkpoint_is_the_model_that_was_handed_on(finished: Path) -> None:
    published = load_file(finished / "ppo" / "model" / "model.safetensors")
    last = weights_in(finished / "ppo" / "checkpoints" / "step-00000006")
    start = load_file(finished / "sft" / "model" / "model.safetensors")
    for name, tensor in published.items():
        assert torch.equal(tensor, last[f"backbone.{name}"])
    assert any(not torch.equal(tensor, start[name]) for name, tensor in published.items())


# --- going on ---


def test_a_second_start_skips_everything(finished: Path) -> None:
    before = bytes_below(finished)
    assert run(finished)[:-1] == [f"{stage}: finished before, skipped." for stage in STAGES]
    after = bytes_below(finished)
    assert {name for name in after if after[name] != before.get(name)} == {"run.json"}  # another start


def test_a_changed_key_is_refused_with_both_ways_on(finished: Path) -> None:
    before = bytes_below(finished)
    with pytest.raises(UserError) as raised:
        run(finished, tiny_recipe(["ppo.kl.coef=0.2"]))
    assert str(raised.value) == (
        f"Stage ppo in {finished} was made otherwise (ppo.kl.coef: 0.1 → 0.2); make it and all later stages anew with "
        f"--fresh-from ppo, or keep it and start another run with --out NEW --reuse {finished}."
    )
    with pytest.raises(UserError, match=r"Stage sft .*seed: 0 → 1"):
        run(finished, tiny_recipe(["seed=1"]))
    after = bytes_below(finished)
    assert {name for name in after if after[name] != before.get(name)} == {"run.json"}  # the recipe is still its own


def test_a_stage_alone_is_refused_where_an_earlier_one_was_made_otherwise(finished: Path) -> None:
    with pytest.raises(UserError, match=r"Stage sft .*sft\.lr: 0\.003 → 0\.001"):
        run(finished, tiny_recipe(["sft.lr=1e-3"]), only="ppo")


def test_what_has_no_effect_may_change(finished: Path) -> None:
    said = run(finished, tiny_recipe(["sft.checkpoint_every=7", "ppo.checkpoint_every=3"]))
    assert said[:-1] == [f"{stage}: finished before, skipped." for stage in STAGES]
    run(finished)


def test_another_run_links_what_is_unchanged(finished: Path, tmp_path: Path) -> None:
    said = run(tmp_path / "new", tiny_recipe(["ppo.kl.coef=0.2"]), reuse=finished)
    assert said[:4] == [f"{stage}: reused from {finished / stage}." for stage in STAGES[:4]]
    assert "ppo.kl.coef: 0.1 → 0.2" in said[4]
    assert [(tmp_path / "new" / stage).is_symlink() for stage in STAGES] == [True] * 4 + [False] * 2
    assert read_lines(tmp_path / "new" / "ppo" / "metrics.jsonl")[1]["objective/kl_coef"] == 0.2
    assert summary(tmp_path / "new", "evaluate")["kl"] != summary(finished, "evaluate")["kl"]


def test_making_stages_afresh_gives_the_same_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    run(out)
    assert differences(finished, out) == []  # two runs of one recipe are equal bit by bit
    said = run(out, fresh_from="reward")
    assert said[:6] == [
        f"{stage}: moved aside to {stage}.old-1." for stage in ("evaluate", "ppo", "direct", "reward")
    ] + [
        "sft: finished before, skipped.",
        "collect: finished before, skipped.",
    ]
    assert (out / "ppo.old-1" / "done.json").exists()
    for stage in STAGES:
        assert differences(finished / stage, out / stage) == []


# --- a stage alone ---


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("collect", "sft"), ("reward", "sft"), ("direct", "sft"), ("ppo", "sft"), ("evaluate", "ppo")],
)
def test_a_stage_that_lacks_an_earlier_one_says_which(stage: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run(tmp_path, only=stage)
    sentence = f"{stage} needs the {missing} stage, which has not finished in {tmp_path}; run it first"
    assert str(raised.value) == sentence
    assert not (tmp_path / stage).exists()


def test_stages_run_one_at_a_time_give_the_same(finished: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    for stage in ("sft", "collect"):
        run(tmp_path, recipe, only=stage)
    assert not (tmp_path / "reward").exists()
    run(tmp_path, recipe, only="reward")
    for stage in ("sft", "collect", "reward"):
        assert differences(finished / stage, tmp_path / stage) == []


def test_ppo_alone_from_a_model_a_reward_model_and_prompts(finished: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{text} {n}"}) + "\n" for n in range(8) for text in PROMPTS))
    recipe = parse_recipe(
        {
            "name": "alone",
            "device": "cpu",
            "model": {"base": str(finished / "sft" / "model")},
            "ppo": {
                "prompts": {"path": str(prompts), "validation": 0.3},
                "iterations": 2,
                "rollout_batch": 8,
                "reward": [{"model": str(finished / "reward" / "model"), "weight": 2.0}],
                "sampling": {"max_new_tokens": 8},
                "update": {"epochs": 1, "minibatches": 2},
                "max_truncated": 1.0,
            },
        },
        "test",
    )
    run(tmp_path / "out", recipe)
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "ppo", "recipe.json", "run.json"]
    first = read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")[1]
    assert first["objective/scores"] == pytest.approx(2 * first["reward/model"], abs=1e-5)  # by its directory
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    POLICIES.from_pretrained(tmp_path / "out" / "ppo" / "model")


def test_direct_in_place_of_ppo_is_judged_reported_and_given_away(finished: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(["ppo=null"])
    said = run(tmp_path / "dpo", recipe, reuse=finished)
    assert said[:4] == [f"{stage}: reused from {finished / stage}." for stage in STAGES[:4]]
    found, other = summary(tmp_path / "dpo", "evaluate"), summary(finished, "evaluate")
    assert found["kl"] > 0.01
    assert found["kl"] != other["kl"]
    assert found["reference"]["utility"] == other["reference"]["utility"]
    page = write_report([tmp_path / "dpo"], tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Direct preferences", "Implicit margin", "Log-probability of the responses", "by the true utility"):
        assert words in page
    card = (export_model(tmp_path / "dpo", tmp_path / "model") / "README.md").read_text(encoding="utf-8")
    assert "trained on preferences themselves by DPO" in card
    assert "wins by true utility" in card
    POLICIES.from_pretrained(tmp_path / "model")


def test_ppo_goes_on_from_direct(finished: Path, tmp_path: Path) -> None:
    settings = ["ppo.policy=direct", "ppo.iterations=1", "evaluate=null"]
    run(tmp_path / "both", tiny_recipe(settings), reuse=finished)
    first = read_lines(tmp_path / "both" / "ppo" / "metrics.jsonl")[1]
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)  # the leash is tied to what direct made
    start, now = (
        load_file(path / "model" / "model.safetensors") for path in (finished / "direct", tmp_path / "both/ppo")
    )
    assert 0 < max(float((start[name] - now[name]).abs().max()) for name in start) < 0.02


def test_no_held_out_prompts_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^ppo has no held-out prompts: none of the 100 in keel.demo:prompts falls"):
        run(tmp_path, tiny_recipe(["ppo.prompts.validation=0"]), reuse=finished)


def test_a_run_is_held_by_one_process_at_a_time(finished: Path) -> None:
    with Run.open(finished, "tiny", console=print), pytest.raises(UserError, match="is held by process"):
        run(finished)
