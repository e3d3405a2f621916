"""Ensembles from a recipe to the policy that they judge: transformers alone is the judge of what was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from keel.adapter_config import members_of
from keel.build import run_recipe
from keel.build.export import export_model
from keel.build.judge import score_gaps
from keel.build.workbench import Workbench
from keel.config.recipe import Recipe, parse_recipe
from keel.data.convert import COMPARISONS
from keel.doctor.recipe import check_judge
from keel.engines.base import DrawKey
from keel.engines.sampler import CachedSampler
from keel.errors import UserError
from keel.inputs import stage_inputs
from keel.models.load import load_causal_lm
from keel.records import Samples
from keel.runs.metrics import read_lines
from keel.schema import Comparison, Prompt
from tests.end_to_end.killing import differences
from tests.pipeline.support import Heard, begin_stage
from tests.worlds import save_tiny_lm

MEMBERS = 3
KINDS = [("full", "heads"), ("lora", "heads"), ("lora", "adapters")]
SAMPLING = {"max_new_tokens": 4}
CLASSIFIERS: Any = AutoModelForSequenceClassification  # untyped


class Stops(Heard):
    """A console out of which an interruption comes, as a key that is pressed would."""

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if stage == "reward" and done == 3:
            raise KeyboardInterrupt


def recipe_in(folder: Path, tune: str, of: str, *rewards: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "name": "x",
        "device": "cpu",
        "model": {"base": str(folder / "base"), "tune": tune},
        "reward": {
            "data": {"path": str(folder / "pairs.jsonl"), "validation": 0.25},
            "ensemble": {"members": MEMBERS, "of": of},
            **{"batch": 4, "lr": 0.01, "checkpoint_every": 1, "normalise_samples": 32, "token_budget": 300},
            "normalise_sampling": SAMPLING,
        },
        "ppo": {
            "prompts": {"path": str(folder / "pairs.jsonl"), "validation": 0.25},
            **{"iterations": 1, "rollout_batch": 8, "sampling": SAMPLING, "max_truncated": 1.0},
            "reward": list(rewards) or [{"model": "reward", "combine": "min"}],
        },
    }
    return parse_recipe(tree, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("ensembles")
    save_tiny_lm(top / "base")
    rows = [
        {"prompt": f"Could you {n}", "chosen": f"please {n % 5} thank you", "rejected": "no " * (n % 3 + 1)}
        for n in range(24)
    ]
    (top / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return top


def made(folder: Path, tune: str, of: str) -> Path:
    """That run, made when it is first asked for."""
    out = folder / f"{tune}-{of}"
    if not out.exists():
        run_recipe(recipe_in(folder, tune, of), out, console=Heard())
    return out


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def run(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Recipe]:
    return made(folder, *request.param), recipe_in(folder, *request.param)


def bench_in(folder: Path, recipe: Recipe, out: Path, stage: str = "ppo") -> Workbench:
    return Workbench(recipe, stage_inputs(recipe, out, stage), begin_stage(folder, stage), Heard())


def reference_samples(folder: Path, recipe: Recipe, out: Path) -> Samples:
    """The very samples on which the stage normalised, drawn anew."""
    assert recipe.reward is not None
    bench = bench_in(folder, recipe, out, "reward")
    base = str(recipe.model.base)
    renderer = bench.renderer(base)
    rows = bench.load("reward.data", COMPARISONS, renderer, 1024).train
    items = [renderer.item(Prompt(row.record.prompt)) for row in rows]
    chosen = bench.draws.batch_indices("normalise", len(items), batch=32, start=0)
    key = DrawKey(bench.draws, "normalise response", iteration=0)
    policy = bench.models.frozen_policy(base, "reference")
    return CachedSampler(policy, renderer).sample(
        [items[index] for index in chosen], recipe.reward.normalise_sampling, key
    )


def alone(source: Path, samples: Samples) -> Tensor:
    """Each member's scores [B, k] by transformers, a text at a time, less the shifts that the configs state."""
    columns: list[Tensor] = []
    for member in members_of(str(source)):
        model = CLASSIFIERS.from_pretrained(member).eval()
        config = model.config
        shifts = getattr(config, "keel_reward_shifts", None) or [config.keel_reward_shift]
        assert len(shifts) == config.num_labels
        sequences = samples.sequences
        rows = [row[:length] for row, length in zip(sequences.tokens, sequences.lengths.tolist(), strict=True)]
        with torch.no_grad():
            logits = torch.cat([model(input_ids=row[None]).logits for row in rows])
        columns += (logits - torch.tensor(shifts)).T
    return torch.stack(columns, dim=1)


def test_members_differ_and_have_a_common_zero_and_one_scale(run: tuple[Path, Recipe], tmp_path: Path) -> None:
    out, recipe = run
    scores = alone(out / "reward" / "model", reference_samples(tmp_path, recipe, out)).double()
    assert scores.shape == (32, MEMBERS)
    torch.testing.assert_close(scores.mean(dim=0), torch.zeros(MEMBERS, dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(scores.mean(dim=1).std(correction=0)) == pytest.approx(1, abs=1e-4)
    spreads = scores.std(dim=0, correction=0)
    assert float(spreads.max() - spreads.min()) > 1e-3  # their own scales are kept
    for one in range(MEMBERS):
        assert float((scores[:, one] - scores[:, one - 1]).abs().mean()) > 0.01
    last = read_lines(out / "reward" / "metrics.jsonl")[-1]
    assert last["reward/validation/members/disagreement"] > 0
    assert 0 <= last["reward/validation/members/accuracy"] <= 1


def test_the_worst_case_is_climbed(run: tuple[Path, Recipe]) -> None:
    out, _ = run
    line = read_lines(out / "ppo" / "metrics.jsonl")[-1]
    assert line["reward/reward"] == pytest.approx(line["objective/scores"], abs=1e-6)
    assert line["reward/reward/disagreement"] > 0
    assert (out / "ppo" / "model").exists()


@pytest.mark.parametrize(("tune", "of"), KINDS)
def test_each_combination_scores_as_transformers_alone(tune: str, of: str, folder: Path, tmp_path: Path) -> None:
    """With adapters on the base that is held once."""
    out = made(folder, tune, of)
    ways: dict[str, dict[str, Any]] = {
        "mean": {},
        "least": {"combine": "min"},
        "sure": {"combine": "uncertainty", "uncertainty_coef": 0.3},
    }
    recipe = recipe_in(folder, tune, of, *({"model": "reward", "name": name, **way} for name, way in ways.items()))
    samples = reference_samples(tmp_path, recipe, out)
    bench = bench_in(tmp_path, recipe, out)
    base = bench.models.frozen_policy(str(folder / "base"), "reference")
    scorer: Any = bench.scorer(bench.renderer(str(folder / "base")))
    members = alone(out / "reward" / "model", samples)
    found = scorer.score(samples)
    expected = {
        "mean": members.mean(dim=1),
        "least": members.min(dim=1).values,
        "sure": members.mean(dim=1) - 0.3 * members.var(dim=1, unbiased=False),
    }
    for name, scores in expected.items():
        torch.testing.assert_close(found.parts[name], scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.members[name], members, rtol=0, atol=1e-4)
    assert bool((found.parts["least"] <= found.parts["mean"]).all())
    held = {weight.data_ptr() for weight in base.parameters()}
    embedding = scorer.scorers[0][0].model.parts[-1].classifier.get_input_embeddings().weight
    assert (embedding.data_ptr() in held) == (tune == "lora")


def test_an_interrupted_training_ends_as_the_one_left_alone(run: tuple[Path, Recipe], folder: Path) -> None:
    out, recipe = run
    again = out.with_name(f"{out.name}-interrupted")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, again, console=Stops(), only="reward")
    console = Heard()
    run_recipe(recipe, again, console=console, only="reward")
    assert any("goes on from step" in said for said in console.said)
    assert differences(out / "reward", again / "reward") == []


def test_it_is_exported_judged_and_checked_whole(run: tuple[Path, Recipe], tmp_path: Path) -> None:
    out, recipe = run
    model = out / "reward" / "model"
    samples = reference_samples(tmp_path, recipe, out)
    given = export_model(out, tmp_path / "given", stage="reward")
    assert torch.equal(alone(given, samples), alone(model, samples))
    assert "An ensemble of 3 reward models" in (given / "README.md").read_text()
    half = alone(export_model(model, tmp_path / "half", dtype="bfloat16"), samples)
    torch.testing.assert_close(half, alone(model, samples), rtol=0.05, atol=0.3)
    if recipe.model.tune == "lora":
        adapters = export_model(out, tmp_path / "adapters", stage="reward", adapter_only=True)
        for member in members_of(str(adapters)):
            named = json.loads((Path(member) / "adapter_config.json").read_text())["base_model_name_or_path"]
            assert (Path(member) / named).samefile(str(recipe.model.base))
    assert recipe.ppo is not None
    source = recipe.ppo.reward[0].model_copy(update={"model": str(model)})
    assert "reads 64 tokens" in check_judge(source, trust_remote_code=False).said
    (gap,) = score_gaps(str(model), [Comparison("Could you", " please", " no")], device="cpu")
    assert gap != 0


@pytest.mark.parametrize(("tune", "of"), KINDS)
def test_a_member_alone(tune: str, of: str, folder: Path, tmp_path: Path) -> None:
    out = made(folder, tune, of)
    model = out / "reward" / "model"
    one = {"model": str(model), "label": "member_1"} if of == "heads" else {"model": str(model / "member-1")}
    recipe = recipe_in(folder, tune, of, one | {"name": "one"})
    samples = reference_samples(tmp_path, recipe, out)
    bench = bench_in(tmp_path, recipe, out)
    bench.models.frozen_policy(str(folder / "base"), "reference")
    found = bench.scorer(bench.renderer(str(folder / "base"))).score(samples)
    torch.testing.assert_close(found.total, alone(model, samples)[:, 1], rtol=0, atol=1e-4)
    assert not found.members


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    base, heads, adapters = folder / "base", made(folder, "full", "heads"), made(folder, "lora", "adapters")
    member = adapters / "reward" / "model" / "member-0"
    for reward, said in (
        ({"model": str(member), "combine": "min"}, r"combine of the reward member-0: .*member-0 is one model and no"),
        ({"model": str(member.parent), "label": 1}, r"label of the reward model: .* name one of them, such as .*er-0$"),
    ):
        bench = bench_in(tmp_path, recipe_in(folder, "full", "heads", reward), heads)
        with pytest.raises(UserError, match=said):
            bench.scorer(bench.renderer(str(base)))
    for out in (heads, adapters):
        source = str(out / "reward" / "model")
        with pytest.raises(UserError, match=r"^ppo.critic: network starts from one reward model, and .* is an ensemb"):
            bench.models.trained_policy(str(base), critic="network", critic_source=source)
    with pytest.raises(UserError, match=r"it is an ensemble of 3 reward models; where one model is wanted, give .*-0"):
        load_causal_lm(str(adapters / "reward" / "model"))
    (tmp_path / "ensemble.json").write_text("{}")
    with pytest.raises(UserError, match=r"ensemble\.json does not list the members of an ensemble$"):
        members_of(str(tmp_path))
