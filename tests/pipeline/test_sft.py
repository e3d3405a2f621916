"""Supervised fine-tuning: its loss is the token mean of what it trains on, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from keel.config.data import DataConfig
from keel.config.sft import SFTConfig
from keel.data.mix import Mixture
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.models.policy import Policy
from keel.pipeline.epochs import total_steps
from keel.pipeline.sft import train_sft
from keel.records import EncodedText, Texts
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.pipeline.support import EOS, Heard, begin_stage, toy_policy


def text(*tokens: int, prompt: int, kind: str | None = None) -> EncodedText:
    return EncodedText(tokens, tuple(position >= prompt for position in range(len(tokens))), kind)


TRAIN = [text(2, word, word, EOS, prompt=2) for word in (3, 4, 5, 6)] + [text(3, 2, EOS, prompt=1)]
HELD_OUT = [text(2, 7, 7, EOS, prompt=2), text(3, 3, 5, 6, 2, EOS, prompt=1)]


def train(
    folder: Path, policy: Policy, validation: list[EncodedText], mixture: Mixture | None = None, **changes: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": 1, "batch": 5, "lr": 1e-2, "token_budget": 8, "validate_every": 1} | changes
    config = SFTConfig(data=DataConfig(path="toy.jsonl"), **settings)
    learner = GradientLearner[Texts]("sft", policy, sft_loss, config, total_steps=total_steps(config, len(TRAIN)))
    return train_sft(
        config,
        learner,
        TRAIN,
        validation,
        mixture=mixture or Mixture.whole(len(TRAIN)),
        export=lambda target: (target / "weights").touch(),
        stage=begin_stage(folder, "sft"),
        draws=Draws(0, "sft"),
        console=Heard(),
    )


@torch.no_grad()
def token_mean(policy: Policy, rows: list[EncodedText]) -> float:
    """-log p of every token that trains, a row and a token at a time through the model's own logits."""
    model: Any = policy.backbone
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0].double()
        for position in range(1, len(row.tokens)):
            if row.trains[position]:
                total -= float(logits[position - 1].log_softmax(dim=-1)[row.tokens[position]])
                count += 1
    return total / count


def test_the_first_loss_is_the_token_mean_over_the_responses(tmp_path: Path) -> None:
    policy = toy_policy()
    expected = token_mean(policy, TRAIN)
    train(tmp_path, policy, HELD_OUT)
    (line,) = read_lines(tmp_path / "sft" / "metrics.jsonl")
    assert line["sft/loss"] == pytest.approx(expected, abs=1e-5)
    assert line["sft/validation/loss"] == pytest.approx(token_mean(policy, HELD_OUT), abs=1e-5)  # after the step


def test_it_learns_and_says_what_it_did(tmp_path: Path) -> None:
    policy = toy_policy()
    before = token_mean(policy, TRAIN)
    summary = train(tmp_path, policy, HELD_OUT, epochs=30)
    assert token_mean(policy, TRAIN) < before - 1.0
    assert summary == {
        "steps": 30,
        "rows": 5,
        "response_tokens": 4 * 2 + 2,
        "validation_rows": 2,
        "validation_loss": pytest.approx(token_mean(policy, HELD_OUT), abs=1e-5),
        "validation_loss_by_kind": {},
    }
    assert (tmp_path / "sft" / "model" / "weights").exists()


def test_without_held_out_rows_there_is_no_validation(tmp_path: Path) -> None:
    assert train(tmp_path, toy_policy(), [])["validation_loss"] is None
    (line,) = read_lines(tmp_path / "sft" / "metrics.jsonl")
    assert not any(name.startswith("sft/validation") for name in line)


def test_validation_is_reported_by_kind_too(tmp_path: Path) -> None:
    policy = toy_policy()
    safety = [text(2, 7, 7, EOS, prompt=2, kind="safety"), text(4, 5, EOS, prompt=1, kind="safety")]
    domain = [text(3, 3, 5, 6, 2, EOS, prompt=1, kind="domain")]
    none = [text(5, 2, EOS, prompt=1)]
    mixed = [safety[0], none[0], domain[0], safety[1]]
    summary = train(tmp_path, policy, mixed)
    (line,) = read_lines(tmp_path / "sft" / "metrics.jsonl")
    assert line["sft/validation/loss"] == pytest.approx(token_mean(policy, mixed), abs=1e-5)
    losses = {"safety": token_mean(policy, safety), "domain": token_mean(policy, domain)}
    assert summary["validation_loss_by_kind"] == pytest.approx(losses, abs=1e-5)
    by_kind = {name: value for name, value in line.items() if name.count("/") == 3}
    assert by_kind == pytest.approx({f"sft/validation/loss/{kind}": loss for kind, loss in losses.items()}, abs=1e-5)


def test_rows_are_met_as_the_mixture_says(tmp_path: Path) -> None:
    mixture = Mixture((3, 2), (2.0, 0.5))
    summary = train(tmp_path, toy_policy(), [], mixture=mixture, epochs=4, batch=7)
    assert summary["steps"] == 4
    assert summary["rows"] == 5
