"""What is given away loads without Keel, is what was trained, and says what it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.build import run_recipe
from keel.build.export import export_model
from keel.errors import UserError
from keel.runs.console import SilentConsole
from tests.end_to_end.tiny import tiny_recipe

TOKENS = torch.tensor([[5, 9, 40, 17, 33]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft, collect, reward and ppo with adapters, of demonstrations in a file."""
    folder = tmp_path_factory.mktemp("export")
    rows = [{"prompt": f"say {word}", "response": f"{word} it is"} for word in ("red", "blue", "gold", "jade") * 10]
    data = folder / "demos.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = ["model.tune=lora", "ppo.iterations=1", f"sft.data={{path: {data}, validation: 0.3}}", "evaluate=null"]
    run_recipe(tiny_recipe(shape), folder / "run", console=SilentConsole())
    return folder / "run"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=TOKENS).logits
    return result


def test_the_last_stage_is_exported_whole_and_transformers_loads_it(run: Path, tmp_path: Path) -> None:
    out = export_model(run, tmp_path / "out")
    ours: Any = AutoModelForCausalLM.from_pretrained(run / "ppo" / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(ours))
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # nothing half-written beside it


def test_an_adapter_alone_goes_on_its_base_by_peft(run: Path, tmp_path: Path) -> None:
    out = export_model(run, tmp_path / "deeper" / "out", adapter_only=True)
    name = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (out / name).resolve() == (run / "sft" / "model").resolve()
    base: Any = AutoModelForCausalLM.from_pretrained(out / name)
    start = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, str(out)))
    ours: Any = AutoModelForCausalLM.from_pretrained(run / "ppo" / "model")
    assert torch.allclose(adapted, logits(ours), atol=1e-6)
    assert not torch.allclose(adapted, start, atol=1e-6)


def test_a_directory_with_an_adapter_is_merged(run: Path, tmp_path: Path) -> None:
    out = export_model(run / "ppo" / "adapter", tmp_path / "merged", dtype="bfloat16")
    merged: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.dtype == torch.bfloat16
    ours: Any = AutoModelForCausalLM.from_pretrained(run / "ppo" / "model", dtype=torch.bfloat16)
    assert torch.allclose(logits(merged), logits(ours), atol=1e-2)


def test_a_reward_model_scores_as_it_did(run: Path, tmp_path: Path) -> None:
    out = export_model(run, tmp_path / "out", stage="reward")
    ours: Any = AutoModelForSequenceClassification.from_pretrained(run / "reward" / "model")
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(out)), logits(ours))
    card = (out / "README.md").read_text()
    assert "right on held-out pairs" in card
    assert "pipeline_tag: text-classification" in card


def test_the_card_names_what_it_was_made_from_and_no_place(run: Path, tmp_path: Path) -> None:
    card = (export_model(run, tmp_path / "out") / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["keel", "ppo"]
    assert hashlib.sha256((run.parent / "demos.jsonl").read_bytes()).hexdigest() in card
    assert str(run.parent) not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["ppo"]["kl"]["coef"] == 0.1
    assert recipe["sft"]["data"]["path"] == "demos.jsonl"


def test_refusals(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"full is there already; give a directory that is not"):
        export_model(run, tmp_path / "full")
    with pytest.raises(UserError, match=r"--stage sft belongs to a run"):
        export_model(run / "ppo" / "model", tmp_path / "out", stage="sft")
    with pytest.raises(UserError, match=r"--dtype converts a whole model"):
        export_model(run, tmp_path / "out", adapter_only=True, dtype="bfloat16")
    with pytest.raises(UserError, match=r"holds no adapter, for it was trained with tune: full"):
        export_model(run / "ppo" / "model", tmp_path / "out", adapter_only=True)
    copy = tmp_path / "unfinished"
    shutil.copytree(run, copy)
    for name in ("sft", "reward", "direct", "ppo"):
        (copy / name / "done.json").unlink()
    with pytest.raises(UserError, match=r"no finished sft, reward, direct or ppo stage to export \(finished: none\)"):
        export_model(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reward_models_directory_keeps_its_head_when_it_is_converted(run: Path, tmp_path: Path) -> None:
    out = export_model(run / "reward" / "model", tmp_path / "out", dtype="bfloat16")
    ours: Any = AutoModelForSequenceClassification.from_pretrained(run / "reward" / "model")
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(logits(theirs), logits(ours), atol=0.05)
    assert (out / "keel_reward.json").read_bytes() == (run / "reward" / "model" / "keel_reward.json").read_bytes()


def test_merging_keeps_the_precision_of_the_base(run: Path, tmp_path: Path) -> None:
    base = export_model(run, tmp_path / "base", stage="sft", dtype="bfloat16")
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "ppo" / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    merged: Any = AutoModelForCausalLM.from_pretrained(export_model(adapter, tmp_path / "merged"), dtype="auto")
    assert merged.dtype == torch.bfloat16
