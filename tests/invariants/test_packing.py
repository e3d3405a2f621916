"""Documents that share a row are what they are apart: in loss and in gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from keel.batching import text_batches
from keel.engines.losses import sft_loss
from keel.models.policy import Policy
from keel.records import EncodedText, Texts
from tests.engines.helpers import distance, loss_and_gradient, tiny_policy
from tests.worlds import VOCAB

LENGTHS = (3, 17, 9, 2, 6, 11, 4, 4, 1, 8)
CASES = [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("gpt2", "eager"), ("gemma2", "eager")]


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
def test_packing_changes_neither_loss_nor_gradient(family: str, kernel: str, budget: int) -> None:
    policy, texts = policy_of(family, kernel), rows()
    apart = text_batches(texts, budget)
    packed = text_batches(texts, budget, packing=True)
    assert sum(batch.tokens.numel() for batch in packed) <= sum(batch.tokens.numel() for batch in apart)
    assert max(len(batch.tokens) for batch in text_batches(texts, 10_000, packing=True)) < len(texts)
    expected = loss_and_gradient(policy, sft_loss, apart)
    found = loss_and_gradient(policy, sft_loss, packed)
    tokens = sum(sum(text.trains) for text in texts)
    assert found[0] * tokens == pytest.approx(naive_loss(policy, texts), rel=1e-5)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert distance(found[1], expected[1]) < 1e-5


def test_without_positions_the_documents_would_meet() -> None:
    policy, texts = policy_of("llama", "sdpa"), rows()
    (packed,) = text_batches(texts, 10_000, packing=True)
    mixed = Texts(packed.tokens, packed.trained, None)
    apart = loss_and_gradient(policy, sft_loss, text_batches(texts, 10_000))
    assert distance(loss_and_gradient(policy, sft_loss, [mixed])[1], apart[1]) > 0.1
