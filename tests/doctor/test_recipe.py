from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.config.recipe import Recipe, parse_recipe
from keel.doctor.finding import Finding, Mark
from keel.doctor.recipe import check_recipe
from tests.end_to_end.tiny import tiny_recipe
from tests.starters.support import save_rows, save_world, world_codec
from tests.worlds import encoder_tokenizer, tiny_encoder


@pytest.fixture(autouse=True)
def _in_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_world(tmp_path)
    monkeypatch.chdir(tmp_path)


def whole(**stages: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "a",
        "device": "cpu",
        "model": {"base": "model"},
        "sft": {"data": "demos.jsonl"},
        "reward": {"data": "pairs.jsonl"},
        "ppo": {"prompts": "prompts.jsonl"},
        "evaluate": {"prompts": "prompts.jsonl"},
    }
    return parse_recipe(tree | stages, "test")


def check(recipe: Recipe) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_recipe(recipe, Path("runs/a"))}


def test_a_recipe_whose_parts_are_there() -> None:
    findings = check(whole())
    assert {finding.mark for finding in findings.values()} == {Mark.GOOD}
    assert set(findings) == {"device", "sft.data", "model model", "reward.data", "ppo.prompts", "evaluate.prompts"}
    assert findings["reward.data"].said == "pairs.jsonl: the first 80 rows read as comparisons"
    assert findings["model model"].said == "context 128"


def test_prompts_of_which_none_is_held_out_would_stop_a_run() -> None:
    given = {"path": "prompts.jsonl", "validation": 0}
    findings = check(whole(ppo={"prompts": given}))
    found = findings["ppo, held-out prompts"]
    assert (found.mark, findings["ppo.prompts"].mark) == (Mark.BAD, Mark.GOOD)
    assert found.said == "none of the 40 in prompts.jsonl falls into the share that is held out (0)"
    assert found.mend == (
        "hold some out with --set 'ppo.prompts={path: prompts.jsonl, validation: 0.1}', or name others with "
        "--set ppo.evaluate.prompts=FILE"
    )
    assert "ppo, held-out prompts" not in check(whole(ppo={"prompts": "gone.jsonl"}))
    assert "ppo, held-out prompts" not in check(whole(ppo={"prompts": given, "evaluate": {"prompts": "prompts.jsonl"}}))


def test_kto_takes_labels_or_comparisons_and_dpo_does_not(tmp_path: Path) -> None:
    save_rows(tmp_path / "labels.jsonl", [{"prompt": "a", "response": "b", "accepted": n > 3} for n in range(9)])
    for data, kind, said in (
        ("labels.jsonl", "kto", "labels.jsonl: the first 9 rows read as labels"),
        ("pairs.jsonl", "kto", "pairs.jsonl: the first 80 rows read as comparisons"),
        ("pairs.jsonl", "dpo", "pairs.jsonl: the first 80 rows read as comparisons"),
        ("labels.jsonl", "dpo", "labels.jsonl: none of its 9 rows can be used"),
    ):
        assert check(whole(direct={"data": data, "kind": kind}))["direct.data"].said.startswith(said)


def test_feedback_is_read_as_what_the_objective_trains_on() -> None:
    Path("ratings.jsonl").write_text('{"prompt": "a", "response": "b", "rating": 2}\n', encoding="utf-8")
    said = check(whole(reward={"data": "ratings.jsonl", "objective": "ordinal"}))["reward.data"].said
    assert said == "ratings.jsonl: the first 1 rows read as ratings"
    assert check(whole(reward={"data": "ratings.jsonl"}))["reward.data"].mark == Mark.BAD


def test_every_stage_from_nothing_with_functions() -> None:
    findings = check(tiny_recipe())
    assert {finding.mark for finding in findings.values()} == {Mark.GOOD}
    assert "function keel.demo:polite" in findings
    assert "reward.data" not in findings  # collect will make it


@pytest.mark.parametrize(
    ("stages", "what", "sentence"),
    [
        ({"sft": {"data": "gone.jsonl"}}, "sft.data", "There is no file gone.jsonl"),
        ({"sft": {"data": "prompts.jsonl"}}, "sft.data", "none of its 40 rows can be used"),
        ({"model": {"base": "./gone"}}, "model ./gone", "no model could be loaded"),
        ({"device": "cuda:99"}, "device", "cannot be used here"),
        (
            {"ppo": {"prompts": "prompts.jsonl", "reward": [{"function": "my_rules:nice"}]}},
            "function my_rules:nice",
            'there is no module "my_rules"',
        ),
        (
            {"ppo": {"prompts": "prompts.jsonl", "reward": [{"model": "judge"}]}},
            "reward model judge",
            "no model could be",
        ),
        ({"model": {"base": "model", "chat_template": "gone.jinja"}}, "model model", "gone.jinja cannot be read"),
    ],
)
def test_what_is_missing_is_bad_and_has_a_mend(stages: dict[str, Any], what: str, sentence: str) -> None:
    finding = check(whole(**stages))[what]
    assert finding.mark is Mark.BAD
    assert sentence in finding.said
    assert finding.mend


def test_a_given_tokenizer_needs_no_weights() -> None:
    Path("model/model.safetensors").unlink()
    scratch = {"hidden": 16, "layers": 1, "heads": 2, "context": 128}
    findings = check(whole(model={"scratch": scratch | {"tokenizer": "model"}}))
    assert findings["tokenizer model"].mark is Mark.GOOD
    assert findings["tokenizer model"].said == f"{len(world_codec().hf)} tokens"
    assert "model model" not in findings
    gone = check(whole(model={"scratch": scratch | {"tokenizer": "gone"}}))["tokenizer gone"]
    assert (gone.mark, bool(gone.mend)) == (Mark.BAD, True)


def test_an_adapter_needs_its_base() -> None:
    Path("adapter").mkdir()
    for file in Path("model").glob("token*"):
        (Path("adapter") / file.name).write_bytes(file.read_bytes())
    Path("adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "../model"})
    )
    Path("adapter/adapter_model.safetensors").touch()
    recipe = whole(model={"base": "adapter"})
    assert check(recipe)["model adapter"].said == "context 128"
    Path("model/model.safetensors").unlink()
    assert "model holds no safetensors weights" in check(recipe)["model adapter"].said


def test_a_judge_needs_no_end_token_and_a_template_that_can_be_read() -> None:
    encoder: Any = tiny_encoder("bert")
    encoder.save_pretrained("judge")
    encoder_tokenizer().save_pretrained("judge")
    reward = {"model": "judge", "template": "auto"}
    finding = check(whole(ppo={"prompts": "prompts.jsonl", "reward": [reward]}))["reward model judge"]
    assert (finding.mark, finding.said) == (Mark.GOOD, "reads 64 tokens")
    reward["template"] = "gone.jinja"
    finding = check(whole(ppo={"prompts": "prompts.jsonl", "reward": [reward]}))["reward model judge"]
    assert finding.mark is Mark.BAD
    assert "template of the reward judge: gone.jinja cannot be read" in finding.said


def test_pickled_weights_do_not_count() -> None:
    Path("model/model.safetensors").rename("model/pytorch_model.bin")
    assert "no safetensors weights" in check(whole())["model model"].said


def test_many_unusable_first_rows_are_a_note() -> None:
    rows = [{"prompt": "a", "response": "b"}] * 9 + [{"prompt": "a", "response": ""}]
    save_rows(Path("some.jsonl"), rows)
    finding = check(whole(sft={"data": "some.jsonl"}))["sft.data"]
    assert (finding.mark, "1 of them cannot be used" in finding.said) == (Mark.NOTE, True)


def test_each_of_several_sources_is_looked_at() -> None:
    findings = check(whole(sft={"data": ["demos.jsonl", "gone.jsonl"]}))
    assert (findings["sft.data[0]"].mark, findings["sft.data[1]"].mark) == (Mark.GOOD, Mark.BAD)
    assert "read as demonstrations" in findings["sft.data[0]"].said
    assert findings["sft.data[1]"].mend == "mend the rows, or name others at sft.data[1]"


def test_only_the_first_rows_are_read() -> None:
    rows = [{"prompt": "a", "response": "b"}] * 100 + [{}] * 100
    save_rows(Path("long.jsonl"), rows)
    finding = check(whole(sft={"data": "long.jsonl"}))["sft.data"]
    assert (finding.mark, finding.said) == (Mark.GOOD, "long.jsonl: the first 100 rows read as demonstrations")


def test_a_stage_that_cannot_start_is_named() -> None:
    recipe = parse_recipe({"name": "a", "model": {"base": "model"}, "evaluate": {"prompts": "prompts.jsonl"}}, "test")
    finding = check(recipe)["evaluate"]
    assert finding.mark is Mark.BAD
    assert "evaluate.policy is missing" in finding.said
