"""Rows that are packed are what they are apart: in loss, gradient and score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import keel.models.packing
from keel.batching import pack, pad_rows, text_batches
from keel.engines.losses import sft_loss
from keel.models.hidden import last_hidden
from keel.models.kernels import SHORT_ATTENTION
from keel.models.policy import Policy
from keel.records import EncodedRow, EncodedText
from tests.engines.helpers import distance, loss_and_gradient, tiny_policy, tiny_reward_model
from tests.worlds import VOCAB

LENGTHS = (3, 17, 9, 2, 6, 11, 4, 4, 1, 8)
KERNELS = ("sdpa", "eager", SHORT_ATTENTION)
CASES = [*[("llama", kernel) for kernel in KERNELS], *[("gpt2", kernel) for kernel in KERNELS], ("gemma2", "eager")]


def rows() -> list[EncodedText]:
    """Texts of random ids of which two in three train, stretches of several among them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        tokens = torch.randint(VOCAB, (length,), generator=generator).tolist()
        trains = (torch.rand(length, generator=generator) < 0.67).tolist()
        found.append(EncodedText(tuple(tokens), (False, *trains[1:])))
    return found


def policy_of(family: str, kernel: str) -> Policy:
    policy = tiny_policy(family)
    backbone: Any = policy.backbone
    backbone.set_attn_implementation(kernel)
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


@pytest.mark.parametrize(("family", "kernel"), CASES)
@pytest.mark.parametrize("budget", [20, 10_000])
def test_packing_changes_neither_loss_nor_gradient(
    family: str, kernel: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, texts = policy_of(family, kernel), rows()
    packed = loss_and_gradient(policy, sft_loss, text_batches(texts, budget))
    monkeypatch.setattr(keel.models.packing, "pack", lambda tokens, lengths: None)
    apart = loss_and_gradient(policy, sft_loss, text_batches(texts, budget))
    tokens = sum(sum(text.trains) for text in texts)
    assert packed[0] * tokens == pytest.approx(naive_loss(policy, texts), rel=1e-5)
    assert packed[0] == pytest.approx(apart[0], rel=1e-6)
    assert distance(packed[1], apart[1]) < 1e-5


def test_fewer_places_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = policy_of("llama", "sdpa"), []

    def watched(backbone: Any, tokens: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tokens.numel())
        return last_hidden(backbone, tokens, position_ids)

    assert keel.models.packing.keeps_documents_apart(policy.backbone)
    monkeypatch.setattr(keel.models.packing, "last_hidden", watched)
    loss_and_gradient(policy, sft_loss, text_batches(rows(), 10_000))
    assert sum(LENGTHS) <= seen[0] <= 1.1 * sum(LENGTHS)


def test_without_positions_the_documents_would_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, texts = policy_of("llama", "sdpa"), rows()
    apart = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    monkeypatch.setattr(
        keel.models.packing, "last_hidden", lambda model, tokens, positions=None: last_hidden(model, tokens)
    )
    mixed = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    assert distance(mixed[1], apart[1]) > 0.1


@torch.no_grad()
def test_scores_are_those_of_each_text_alone() -> None:
    model = tiny_reward_model()
    texts = [EncodedRow(text.tokens, max(1, len(text.tokens) // 2)) for text in rows() if len(text.tokens) > 1]
    batch = pad_rows(texts)
    assert pack(batch.tokens, batch.lengths) is not None
    alone = torch.cat([model(pad_rows([text])) for text in texts])
    torch.testing.assert_close(model(batch), alone, atol=1e-5, rtol=1e-5)
