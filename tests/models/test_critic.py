from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keel.batching import pad_rows
from keel.models.adapters import AdapterSpec, adapter_parameters, add_adapter
from keel.models.critic import ValueHead, ValueNetwork
from keel.models.load import classifier_on
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from keel.records import EncodedRow
from tests.worlds import random_rows, tiny_classifier, tiny_lm

ROWS = random_rows([(1, 5), (6, 9), (3, 1), (12, 0)])


def reward_of(layout: str) -> tuple[nn.Module, RewardModel]:
    """A policy's backbone, and a reward model of its own or as an adapter on that backbone's body."""
    backbone = tiny_lm()
    if layout == "own":
        reward = RewardModel(tiny_classifier(seed=1))
    else:
        backbone.requires_grad_(False)
        classifier = classifier_on(backbone)
        for name in ("policy", "critic"):
            add_adapter(classifier, name, AdapterSpec(2, 4.0))
        with torch.no_grad():
            for seed, weight in enumerate(adapter_parameters(classifier, "critic")):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
        reward = RewardModel(classifier, adapter="critic")
        reward.reset_head(3)
    reward.normalise(0.25, 0.1)  # a shift and a scale
    return backbone, reward.eval()


@pytest.mark.parametrize("layout", ["own", "adapter"])
def test_its_first_values_are_the_scores_of_the_prefixes(layout: str) -> None:
    backbone, reward = reward_of(layout)
    policy = Policy(backbone, critic=ValueNetwork(reward, adapter=reward.adapter)).eval()
    with torch.no_grad():
        values: Tensor = policy(pad_rows(ROWS), logprobs=False, values=True).values
        for index, row in enumerate(ROWS):
            for step in range(row.response_length):
                prefix = EncodedRow(row.tokens[: row.prompt_length + step], row.prompt_length)  # what precedes y_t
                score = float(reward(pad_rows([prefix]))[0])
                assert float(values[index, step]) == pytest.approx(score, abs=1e-4)
    assert values[pad_rows(ROWS).response_mask].std() > 0.05
    assert (values[~pad_rows(ROWS).response_mask] == 0).all()


def identities(weights: list[nn.Parameter]) -> set[int]:
    assert len({id(weight) for weight in weights}) == len(weights)
    return {id(weight) for weight in weights}


def test_it_trains_exactly_its_own() -> None:
    head = ValueHead(16)
    assert identities(head.trained()) == {id(head.weight), id(head.bias)}

    _, reward = reward_of("own")
    network = ValueNetwork(reward)
    assert identities(network.trained()) == {id(weight) for weight in network.parameters()}
    score: Any = reward.head
    assert id(score.weight) not in identities(network.trained())  # the reward model's head is copied

    backbone, reward = reward_of("adapter")
    network = ValueNetwork(reward, adapter="critic")
    policy = Policy(backbone, critic=network, adapter="policy")
    mine = {id(weight) for weight in network.head.parameters()}
    mine |= {id(weight) for name, weight in policy.named_parameters() if ".critic." in name and ".lora_" in name}
    assert identities(network.trained()) == mine
    trained = {id(weight) for weight in policy.parameters() if weight.requires_grad}
    assert trained == mine | {id(weight) for weight in adapter_parameters(backbone, "policy")}


def test_training_the_critic_leaves_the_policy_as_it_is() -> None:
    backbone, reward = reward_of("adapter")
    policy = Policy(backbone, critic=ValueNetwork(reward, adapter="critic"), adapter="policy").eval()
    out = policy(pad_rows(ROWS), values=True)
    torch.autograd.backward(out.values.sum())
    assert all(weight.grad is None for weight in adapter_parameters(backbone, "policy"))
    policy.zero_grad()
    out = policy(pad_rows(ROWS), values=True)
    torch.autograd.backward(out.logprobs.sum())
    assert all(weight.grad is None for weight in adapter_parameters(backbone, "critic"))


def test_a_head_reads_states_of_any_precision() -> None:
    head = ValueHead(16)
    values = head(torch.ones(3, 16, dtype=torch.bfloat16))
    assert values.dtype == torch.float32
    assert (values == 0).all()
