"""Numbers that are not finite: the rows that were planted are named, saved and found again, and no weight moves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keel.config.data import DataConfig
from keel.config.sft import SFTConfig
from keel.data.mix import Mixture
from keel.engines.base import DrawKey
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.errors import UserError
from keel.microbatches import read_batch, tokens_of
from keel.models.policy import Policy
from keel.pipeline.epochs import total_steps
from keel.pipeline.faults import saving_rollouts
from keel.pipeline.rollouts import RolloutFault, collect_rollout, not_finite
from keel.pipeline.sft import train_sft
from keel.records import EncodedText, PolicyBatch, Samples, Scores, Texts
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from keel.tally import Tally
from tests.pipeline.support import EOS, PROMPT, Heard, Response, TableScorer, begin_stage, responses_of, toy_policy
from tests.pipeline.toy_ppo import DRAWS, Toy, toy, toy_config, toy_scores

BAD = 6  # the word whose rows are planted


def text(*tokens: int) -> EncodedText:
    return EncodedText(tokens, tuple(position >= 2 for position in range(len(tokens))))


TRAIN = [text(2, 3, word, EOS) for word in (4, 5, BAD, 7)]  # row 3 is planted


def planted(factor: float, only: Callable[[], bool] = lambda: True) -> Any:
    """The loss of sft, in which rows that hold the bad word count `factor` times more, beside the sum as it is."""

    def loss(module: nn.Module, batch: Texts, denominator: float) -> tuple[Tensor, Tally]:
        value, tally = sft_loss(module, batch, denominator)
        rows = (batch.tokens == BAD).any(dim=1)
        return (value * factor if bool(rows.any()) and only() else value), tally

    return loss


class Killed(Exception):
    pass


class Mortal(Heard):
    """A console that hears of a step that is saved, and then nothing more."""

    def __init__(self, killed_after: int | None) -> None:
        super().__init__()
        self.killed_after = killed_after

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done == self.killed_after:
            raise Killed


def train(
    folder: Path, loss: Any, *, killed_after: int | None = None, policy: Policy | None = None, **changes: Any
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights at the end, and what was said."""
    policy, heard = policy or toy_policy(), Mortal(killed_after)
    settings: dict[str, Any] = {"epochs": 2, "batch": 1, "lr": 1e-2, "checkpoint_every": 1} | changes
    config = SFTConfig(data=DataConfig(path="toy.jsonl"), **settings)
    learner = GradientLearner[Texts]("sft", policy, loss, config, total_steps=total_steps(config, len(TRAIN)))
    stage = begin_stage(folder, "sft")
    train_sft(
        config,
        learner,
        TRAIN,
        [],
        mixture=Mixture.whole(len(TRAIN)),
        export=lambda target: (target / "weights").touch(),
        stage=stage,
        draws=Draws(0, "sft"),
        console=heard,
    )
    return {name: weight.detach().clone() for name, weight in policy.named_parameters()}, heard.said


def fault_of(step: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((step / "fault.json").read_text())
    return content


def log(folder: Path) -> list[dict[str, Any]]:
    lines = read_lines(folder / "sft" / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.parametrize(("factor", "problem"), [(math.nan, "loss"), (math.inf, "loss"), (1e37, "gradient")])
def test_the_planted_row_is_named_and_saved(factor: float, problem: str, tmp_path: Path) -> None:
    policy = toy_policy()
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    with pytest.raises(UserError) as raised:
        train(tmp_path, planted(factor), policy=policy, batch=4, epochs=1, token_budget=8)
    said = str(raised.value)
    assert said.startswith(f"sft: the {problem} of step 1 is not finite (sft/loss ")
    first = "the loss" if problem == "loss" else "the norm of the gradients, each of which is finite"
    assert f"It comes from row 3 of the training data, '(2, 3, 6, 0)' (4 tokens; first not finite: {first}; " in said
    step = tmp_path / "sft" / "faults" / "step-1"
    assert f"`keel debug replay {step}`" in said
    assert sorted(path.name for path in step.parent.iterdir()) == ["step-1"]
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())
    (shard,) = (step / "learner").glob("*.safetensors")
    saved = load_file(shard)
    assert {name: saved[f"model.{name}"].tolist() for name in before} == {n: w.tolist() for n, w in before.items()}
    (file,) = (step / "batches").iterdir()  # of two micro-batches of two rows
    batch = read_batch(file)
    assert len(batch.tokens) == 2
    (row,) = fault_of(step)["rows"]
    assert batch.tokens[row["rows"][0]].tolist() == [2, 3, BAD, EOS]
    assert row["known"] == ["row 3 of the training data"]
    assert fault_of(step)["denominator"] == 8.0  # two tokens a row
    assert not log(tmp_path)


def test_a_weight_that_is_not_finite_is_named_itself(tmp_path: Path) -> None:
    policy = toy_policy()
    backbone: Any = policy.backbone
    with torch.no_grad():
        backbone.model.layers[0].mlp.up_proj.weight[1, 2] = torch.inf
    with pytest.raises(UserError, match=r"Weights are not finite already: backbone\.model\.layers\.0\.mlp\.up_proj"):
        train(tmp_path, sft_loss, policy=policy, batch=4)
    fault = fault_of(tmp_path / "sft" / "faults" / "step-1")
    assert fault["weights"] == ["backbone.model.layers.0.mlp.up_proj.weight"]
    assert fault["rows"][0]["where"] == "the output of backbone.model.layers.0.mlp.up_proj"
    assert len(fault["rows"]) == 4


def test_rows_that_are_finite_alone_are_not_blamed(tmp_path: Path) -> None:
    def together(module: nn.Module, batch: Texts, denominator: float) -> tuple[Tensor, Tally]:
        value, tally = sft_loss(module, batch, denominator)
        return (value * math.nan if len(batch.tokens) > 1 else value), tally

    with pytest.raises(UserError, match="Each row alone is finite"):
        train(tmp_path, together, batch=4)
    assert fault_of(tmp_path / "sft" / "faults" / "step-1")["rows"] == []


def test_what_is_left_out_changes_nothing_but_the_schedule(tmp_path: Path) -> None:
    """Row 3 is met once an epoch: at its steps the weights stay, and the rate goes on."""
    weights, said = train(tmp_path / "left-out", planted(math.nan), skip_faults=2)
    lines = log(tmp_path / "left-out")
    skipped = [line["iteration"] for line in lines if "sft/skipped" in line]
    assert [line["sft/skipped"] for line in lines if "sft/skipped" in line] == [1, 2]
    assert len(lines) == 8
    assert [line for line in said if "Left out" in line] == said
    assert said[1].endswith("Left out, the 2. of at most 2 (skip_faults).")
    faults = sorted(path.name for path in (tmp_path / "left-out" / "sft" / "faults").iterdir())
    assert faults == [f"step-{step}" for step in skipped]

    by_hand = toy_policy()  # the same rows and rates, without the planted ones
    config = SFTConfig(data=DataConfig(path="toy.jsonl"), lr=1e-2)
    learner = GradientLearner[Texts]("sft", by_hand, sft_loss, config, total_steps=8)
    order = Mixture.whole(4).batch(Draws(0, "sft"), "order", batch=8, start=0)
    for number, row in enumerate(order):
        assert (row == 2) == (number + 1 in skipped)
        if row == 2:
            learner._steps += 1
        else:
            rows = torch.tensor([TRAIN[row].tokens])
            batch = Texts(rows, torch.tensor([TRAIN[row].trains]), torch.tensor([4]))
            assert learner.step([batch]).means() == {
                key: lines[number][key] for key in ("sft/loss", "sft/grad_norm", "sft/lr")
            }
    assert all(torch.equal(weight, weights[name]) for name, weight in by_hand.named_parameters())


def test_the_last_three_snapshots_are_kept(tmp_path: Path) -> None:
    train(tmp_path, planted(math.nan), epochs=5, skip_faults=5)
    skipped = [line["iteration"] for line in log(tmp_path) if "sft/skipped" in line]
    assert len(skipped) == 5  # row 3 is met once an epoch
    kept = {path.name for path in (tmp_path / "sft" / "faults").iterdir()}
    assert kept == {f"step-{step}" for step in skipped[-3:]}


def test_the_limit_holds_across_an_interruption(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", planted(math.nan), skip_faults=2)
    first = next(line["iteration"] for line in log(tmp_path / "whole") if "sft/skipped" in line)
    for limit in (0, 1, 2):
        folder = tmp_path / str(limit)
        with pytest.raises(Killed):
            train(folder, planted(math.nan), skip_faults=2, killed_after=first)
        if limit < 2:
            with pytest.raises(UserError, match=r"1 were left out before \(skip_faults\)"):
                train(folder, planted(math.nan), skip_faults=limit)
        else:
            again, _ = train(folder, planted(math.nan), skip_faults=limit)
            assert all(torch.equal(weight, whole[name]) for name, weight in again.items())
            assert log(folder) == log(tmp_path / "whole")


# --- ppo


def ppo_losses(run: Toy, plants: Callable[[PolicyBatch], bool]) -> None:
    """The learner's loss is NaN where the micro-batch is one that `plants` names."""
    real = run.learner.loss

    def loss(module: nn.Module, batch: PolicyBatch, denominator: float) -> tuple[Tensor, Tally]:
        value, tally = real(module, batch, denominator)
        return (value * math.nan if plants(batch) else value), tally

    run.learner.loss = loss


def weights_of(run: Toy) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in run.policy.named_parameters()}


class Spoilt:
    """The table's scores, one of them another."""

    def __init__(self, response: Response, score: float) -> None:
        self.table = TableScorer("table", toy_scores(2))
        self.response = response
        self.spoilt = score

    def score(self, samples: Samples) -> Scores:
        scores = self.table.score(samples)
        bad = torch.tensor([response == self.response for response in responses_of(samples)])
        return replace(scores, total=torch.where(bad, self.spoilt, scores.total))


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_not_finite_stops_before_anything_is_trained(score: float, tmp_path: Path) -> None:
    run = toy(toy_config(rollout_batch=32), objectives=[0.0] * 5)
    actors = replace(run.engines.actors, scorer=Spoilt((4, 5), score))
    run = replace(run, engines=replace(run.engines, actors=actors))
    before, stage = weights_of(run), begin_stage(tmp_path, "ppo")
    with pytest.raises(UserError) as raised, saving_rollouts(stage, run.learner):
        run.train(stage)
    said = str(raised.value)
    assert said.startswith("ppo: 1 of 32 responses have numbers that are not finite: row 24, prompt 'a b', ")
    assert f"response 'c d': score {score:g}; nothing was trained on it. " in said
    step = tmp_path / "ppo" / "faults" / "step-1"
    assert said.endswith(f"`keel debug replay {step}` looks closer")
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())
    (file,) = (step / "batches").iterdir()
    batch = read_batch(file)
    assert batch.sequences.tokens.tolist() == [[2, 3, 4, 5]]
    assert not batch.paired
    (found,) = run.learner.suspects(batch, 0, batch.weight)
    assert not math.isfinite(found.loss)


def test_each_number_of_a_rollout_is_looked_at_where_there_is_a_token() -> None:
    run = toy(toy_config())
    key = DrawKey(DRAWS, "rollout", iteration=0)
    rollout = collect_rollout(run.engines.actors, [PROMPT] * 32, run.config.sampling, key)
    assert not_finite(rollout) == {}
    (short, *_) = (rollout.sequences.response_lengths == 1).nonzero().flatten().tolist()
    for name, called in (
        ("logprobs", "log-probability nan"),
        ("ref_logprobs", "log-probability under the reference nan"),
        ("values", "value nan"),
        ("sampler_logprobs", "log-probability under the sampler nan"),
    ):
        spoilt = rollout.logprobs.clone()
        spoilt[short, 1] = math.nan  # padding
        changed: Any = {name: spoilt}
        assert not_finite(replace(rollout, **changed)) == {}
        spoilt[short, 0] = math.nan
        found = not_finite(replace(rollout, **changed))
        assert list(found) == [short]
        assert found[short].endswith(f": a {called}")
    no_opinion = {"table": torch.full((32,), math.nan)}
    assert not_finite(replace(rollout, scores=replace(rollout.scores, parts=no_opinion))) == {}


def test_the_first_minibatch_is_left_out_and_the_ratio_held_to_1_on_the_next(tmp_path: Path) -> None:
    run = toy(toy_config(iterations=1, update={"epochs": 1, "minibatches": 2, "skip_faults": 1}), objectives=[0.0] * 2)
    seen: list[PolicyBatch] = []

    def first(batch: PolicyBatch) -> bool:
        seen.append(batch)
        return batch is seen[0]

    ppo_losses(run, first)
    console = Heard()
    run.train(begin_stage(tmp_path, "ppo"), console)
    (line,) = [line for line in read_lines(tmp_path / "ppo" / "metrics.jsonl") if line["iteration"] == 1]
    assert line["ppo/skipped"] == 1
    assert 0 <= line["ppo/policy/first_ratio_gap"] < 1e-4
    assert run.learner.steps == 2
    assert any("Left out, the 1. of at most 1" in said for said in console.said)


def test_a_planted_response_is_found_in_the_rollout(tmp_path: Path) -> None:
    run = toy(toy_config(rollout_batch=8), objectives=[0.0] * 5)
    planted = set[tuple[int, ...]]()

    def holds(batch: PolicyBatch) -> bool:
        rows = {tokens_of(batch, row) for row in range(len(batch.sequences))}
        if not planted:
            planted.add(sorted(rows)[0])
        return bool(rows & planted)

    ppo_losses(run, holds)
    with pytest.raises(
        UserError,
        match=r"It comes from row \d of the rollout, score [\d.]+, '\(.*\)' \(\d tokens; first not finite: the loss; ",
    ):
        run.train(begin_stage(tmp_path, "ppo"))
    fault = fault_of(tmp_path / "ppo" / "faults" / "step-1")
    assert fault["rows"]
    assert "advantages" in fault["rows"][0]["numbers"]


def test_a_policy_whose_logits_are_not_finite_is_saved_with_the_prompts(tmp_path: Path) -> None:
    run = toy(toy_config(rollout_batch=8), objectives=[0.0] * 5)
    backbone: Any = run.policy.backbone
    with torch.no_grad():
        backbone.lm_head.weight[3, 0] = torch.nan
    stage = begin_stage(tmp_path, "ppo")
    sentence = r"8 of 8 responses have .* row 0, prompt 'a b', .*: a log-probability nan"
    with pytest.raises(UserError, match=sentence), saving_rollouts(stage, run.learner):
        run.train(stage)
    (file,) = (tmp_path / "ppo" / "faults" / "step-1" / "batches").iterdir()
    (first, *_) = run.learner.suspects(read_batch(file), 0, 8.0)
    assert first.tokens == ((2, 3, 3),)
    assert first.where == "the output of backbone.lm_head"


def test_where_responses_are_pairs_both_are_saved(tmp_path: Path) -> None:
    run = toy(toy_config(rollout_batch=8, update={"loss": "dpo"}), objectives=[0.0] * 5)
    key = DrawKey(DRAWS, "rollout", iteration=0)
    rollout = collect_rollout(run.engines.actors, [PROMPT] * 8, run.config.sampling, key, per_prompt=2)
    spoilt = rollout.ref_logprobs.clone()
    spoilt[5, 0] = math.nan
    rollout = replace(rollout, ref_logprobs=spoilt)
    with (
        pytest.raises(UserError, match="1 of 8"),
        saving_rollouts(begin_stage(tmp_path, "ppo"), run.learner, paired=True),
    ):
        raise RolloutFault(rollout, not_finite(rollout))
    step = tmp_path / "ppo" / "faults" / "step-1"
    batch = read_batch(next((step / "batches").iterdir()))
    assert [tokens_of(batch, row) for row in (0, 1)] == [tokens_of(rollout.sequences, row) for row in (4, 5)]
    assert fault_of(step)["rows"][0]["rows"] == [1]
    (pair,) = run.learner.suspects(batch, 0, batch.weight)
    assert not math.isfinite(pair.loss)
