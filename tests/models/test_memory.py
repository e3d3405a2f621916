from __future__ import annotations

import torch
from torch import nn

from keel.models.adapters import AdapterSpec, add_adapter
from keel.models.critic import ValueHead
from keel.models.load import classifier_on
from keel.models.memory import describe_weights, weights_held
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from tests.worlds import tiny_lm

# tiny_lm("llama"): two embeddings of 300 x 16, two layers of q, k, v, o, a three-part MLP and norms, and a norm
BODY = 300 * 16 + 2 * (256 + 128 + 128 + 256 + 3 * 384 + 32) + 16
LM = BODY + 300 * 16
ADAPTER = 2 * 2 * ((16 + 16) + 2 * (16 + 8) + (16 + 16) + 3 * (16 + 24))  # rank 2, two layers


def test_what_is_shared_is_counted_once() -> None:
    backbone = tiny_lm().requires_grad_(False)
    add_adapter(backbone, "policy", AdapterSpec(2, 4.0))
    policy = Policy(backbone, critic=ValueHead(16), adapter="policy")
    classifier = classifier_on(backbone)
    add_adapter(classifier, "reward", AdapterSpec(2, 4.0), trained=False)
    reward = RewardModel(classifier, adapter="reward")
    reward.head.requires_grad_(False)
    roles = {"policy": policy, "reference": Policy(backbone), "reward": reward}
    assert weights_held(roles) == {
        ("policy", "reference", "reward"): 4 * BODY,
        ("policy", "reference"): 4 * 300 * 16,  # the language model's head
        ("adapters",): 4 * 2 * ADAPTER,
        ("critic",): 4 * 17,
        ("reward",): 4 * 16,
    }
    trained = ADAPTER + 17
    assert describe_weights(roles).endswith(f"; {trained:,} numbers train")


def test_separate_models_are_counted_each() -> None:
    policy, reference = Policy(tiny_lm()), Policy(tiny_lm().to(torch.bfloat16).requires_grad_(False))
    assert weights_held({"policy": policy, "reference": reference}) == {("policy",): 4 * LM, ("reference",): 2 * LM}
    sentence = describe_weights({"policy": policy, "reference": reference})
    assert sentence == f"{6 * LM / 1024:.1f} KiB of weights (52.8 KiB policy; 26.4 KiB reference); {LM:,} numbers train"


def test_sizes_are_said_in_the_unit_that_fits() -> None:
    for count, said in ((10, "40 B"), (1 << 20, "4.0 MiB"), (3 << 28, "3.0 GiB")):
        with torch.device("meta"):
            module = nn.Linear(count, 1, bias=False)
        assert describe_weights({"policy": module}).startswith(f"{said} of weights ({said} policy); ")
