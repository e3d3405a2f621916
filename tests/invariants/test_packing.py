"""Rows that lie side by side are what they are apart: in loss, gradient and score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import keel.models.attention
import keel.models.packing
from keel.batching import flatten, pad_rows, text_batches
from keel.engines.losses import sft_loss
from keel.models.attention import use_attention
from keel.models.hidden import last_hidden
from keel.models.packing import longest_kept_apart
from keel.models.policy import Policy
from keel.records import EncodedRow, EncodedText
from tests.engines.helpers import distance, loss_and_gradient, tiny_policy, tiny_reward_model
from tests.worlds import VOCAB

LENGTHS = (3, 17, 9, 2, 6, 11, 4, 4, 1, 8)
FAMILIES = ("llama", "gpt2", "granite", "cohere")


def rows() -> list[EncodedText]:
    """Texts of random ids of which two in three train, stretches of several among them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        tokens = torch.randint(VOCAB, (length,), generator=generator).tolist()
        trains = (torch.rand(length, generator=generator) < 0.67).tolist()
        found.append(EncodedText(tuple(tokens), (False, *trains[1:])))
    return found


def policy_of(family: str) -> Policy:
    policy = tiny_policy(family)
    use_attention(policy.backbone)
    assert longest_kept_apart(policy.backbone) > 0
    return policy.double()


@torch.no_grad()
def naive_loss(policy: Policy, texts: list[EncodedText]) -> float:
    """-log p of every token that trains, each text alone through transformers' own logits, summed."""
    model: Any = policy.backbone
    total = 0.0
    for text in texts:
        logits = model(input_ids=torch.tensor([text.tokens])).logits[0].double().log_softmax(dim=-1)
        for position, trains in enumerate(text.trains):
            total -= float(logits[position - 1, text.tokens[position]]) if trains else 0.0
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize("short", [0, 256])
def test_side_by_side_changes_neither_loss_nor_gradient(
    family: str, budget: int, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keel.models.attention, "_SHORT", short)  # 0: torch's own kernel computes the rows
    policy, texts = policy_of(family), rows()
    packed = loss_and_gradient(policy, sft_loss, text_batches(texts, budget))
    monkeypatch.setattr(keel.models.packing, "flatten", lambda tokens, lengths: None)
    apart = loss_and_gradient(policy, sft_loss, text_batches(texts, budget))
    tokens = sum(sum(text.trains) for text in texts)
    assert packed[0] * tokens == pytest.approx(naive_loss(policy, texts), rel=1e-5)
    assert packed[0] == pytest.approx(apart[0], rel=1e-6)
    assert distance(packed[1], apart[1]) < 1e-5


def test_only_real_tokens_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = policy_of("llama"), []

    def watched(backbone: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(tokens.numel())
        return last_hidden(backbone, tokens, **options)

    monkeypatch.setattr(keel.models.packing, "last_hidden", watched)
    loss_and_gradient(policy, sft_loss, text_batches(rows(), 10_000))
    assert sum(LENGTHS) <= seen[0] < sum(LENGTHS) + 32


def test_without_knowing_where_they_stand_the_rows_would_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, texts = policy_of("llama"), rows()
    apart = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))

    def deaf(backbone: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        return last_hidden(backbone, tokens, position_ids=options["position_ids"][:, : tokens.shape[1]] * 0)

    monkeypatch.setattr(keel.models.packing, "last_hidden", deaf)
    mixed = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    assert distance(mixed[1], apart[1]) > 0.1


def test_recomputed_layers_know_too() -> None:
    policy, texts = policy_of("llama"), rows()
    kept = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    policy.recompute = True
    again = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    assert distance(again[1], kept[1]) < 1e-12


@torch.no_grad()
def test_scores_are_those_of_each_text_alone() -> None:
    model = tiny_reward_model()
    use_attention(model.classifier)
    texts = [EncodedRow(text.tokens, max(1, len(text.tokens) // 2)) for text in rows() if len(text.tokens) > 1]
    batch = pad_rows(texts)
    assert flatten(batch.tokens, batch.lengths) is not None
    assert longest_kept_apart(model.classifier) > 0
    alone = torch.cat([model(pad_rows([text])) for text in texts])
    torch.testing.assert_close(model(batch), alone, atol=1e-5, rtol=1e-5)
