"""The direct stage on a toy language: its first step, and what it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from keel.config.data import DataConfig
from keel.config.direct import DirectConfig
from keel.engines.direct import choices_loss
from keel.engines.learner import GradientLearner
from keel.engines.scorers import PolicyScorer
from keel.models.policy import Policy
from keel.pipeline.direct import DirectEngines, train_direct
from keel.pipeline.epochs import total_steps
from keel.pipeline.judgements import by_prompt, microbatches
from keel.pipeline.preferences import EncodedChoice, choices_batch
from keel.pipeline.reference import response_logprobs
from keel.records import Choices, EncodedRow
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.pipeline.support import EOS, Heard, begin_stage, toy_policy


def pair(prompt: int, chosen: tuple[int, ...], rejected: tuple[int, ...], kind: str | None = None) -> EncodedChoice:
    one, other = (EncodedRow((2, prompt, *side), 2) for side in (chosen, rejected))
    return EncodedChoice(one, other, kind=kind)


TRAIN = [pair(prompt, (3, EOS), (other, other, EOS)) for prompt in (2, 3, 4, 5) for other in (5, 6)]
HELD_OUT = [pair(6, (3, EOS), (5, 5, EOS), "seen"), pair(7, (7, EOS), (4, EOS), "new")]


def train(folder: Path, policy: Policy, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": 10, "batch": 4, "lr": 1e-2, "checkpoint_every": 3, "validate_every": 5}
    config = DirectConfig(data=DataConfig(path="toy.jsonl"), token_budget=16, **settings | changes)
    rows = list(dict.fromkeys(row for one in (*TRAIN, *HELD_OUT) for row in one.rows))
    start = PolicyScorer(toy_policy(), temperature=1.0, token_budget=100)
    reference = dict(zip(rows, response_logprobs(start, rows, 100).tolist(), strict=True))
    steps = total_steps(config, len(by_prompt(TRAIN, config.max_pairs)))

    def batches(groups: Sequence[Sequence[EncodedChoice]]) -> list[Choices]:
        return microbatches(groups, config.token_budget, choices_batch(reference))

    return train_direct(
        config,
        DirectEngines(
            learner=GradientLearner[Choices]("direct", policy, choices_loss(config), config, total_steps=steps),
            batches=batches,
            export=lambda target: save_file(dict(policy.named_parameters()), target / "weights.safetensors"),
        ),
        TRAIN,
        HELD_OUT,
        weights=[1.0],
        stage=begin_stage(folder, "direct"),
        draws=Draws(0, "direct"),
        console=Heard(),
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    rows = read_lines(folder / "direct" / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize(("kind", "loss"), [("dpo", math.log(2)), ("ipo", 25.0), ("hinge", 1.0)])
def test_at_the_first_step_policy_and_reference_are_one(tmp_path: Path, kind: str, loss: float) -> None:
    train(tmp_path, toy_policy(), epochs=1, kind=kind)
    first = lines_of(tmp_path)[0]
    assert first["direct/loss"] == pytest.approx(loss, abs=1e-5)
    for name in ("margin", "reward/chosen", "reward/rejected"):
        assert first[f"direct/{name}"] == pytest.approx(0.0, abs=1e-6)


def test_it_learns_what_was_preferred_and_says_so(tmp_path: Path) -> None:
    policy = toy_policy()
    summary = train(tmp_path, policy)
    lines = lines_of(tmp_path)
    assert lines[-1]["direct/loss"] < 0.9 * lines[0]["direct/loss"]
    assert lines[-1]["direct/accuracy"] == 1.0
    assert lines[-1]["direct/logprobs/chosen"] > lines[0]["direct/logprobs/chosen"]
    assert (summary["steps"], summary["rows"], summary["prompts"], summary["validation_rows"]) == (10, 8, 4, 2)
    held_out = {name: value for name, value in lines[-1].items() if name.startswith("direct/validation/")}
    assert {f"direct/validation/{name}": value for name, value in summary["validation"].items()} == held_out
    assert summary["validation"]["accuracy/seen"] == 1.0
    both = (summary["validation"][f"accuracy/{kind}"] for kind in ("seen", "new"))
    assert sum(both) / 2 == summary["validation"]["accuracy"]
    margin = summary["validation"]["margin"]
    assert margin == pytest.approx(0.1 * implicit_margin(policy), abs=1e-5)


@torch.no_grad()
def implicit_margin(policy: Policy) -> float:
    """Mean over the held-out pairs of log-ratio chosen - rejected, from the models' own logits, a row at a time."""
    total = 0.0
    for one in HELD_OUT:
        for row, sign in ((one.chosen, 1), (one.rejected, -1)):
            for model, part in ((policy, 1), (toy_policy(), -1)):
                backbone: Any = model.backbone
                logits = backbone(input_ids=torch.tensor([row.tokens])).logits[0].double().log_softmax(dim=-1)
                for position in range(row.prompt_length, len(row.tokens)):
                    total += sign * part * float(logits[position - 1, row.tokens[position]])
    return total / len(HELD_OUT)
