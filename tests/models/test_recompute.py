"""Activations computed again in the backward pass: the same gradients, less kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconConfig, OPTConfig

from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.errors import UserError
from keel.models.adapters import AdapterSpec, adapter_parameters, add_adapter, using
from keel.models.critic import ValueHead, ValueNetwork
from keel.models.hidden import last_hidden
from keel.models.load import classifier_on
from keel.models.policy import Policy
from keel.models.recompute import recomputing
from keel.models.reward import RewardModel
from tests.engines.helpers import KEY, items, sampler_of
from tests.worlds import random_rows, tiny_classifier, tiny_lm

ROWS = random_rows([(3, 5), (6, 9), (2, 12)])


def shaken(model: nn.Module, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter_parameters(model, name):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def policy_of(layout: str, family: str, *, recompute: bool) -> Policy:
    """Full with a head, or an adapter with a critic network that is another adapter on the same body."""
    backbone = tiny_lm(family)
    if layout == "full":
        policy = Policy(backbone, critic=ValueHead(16), recompute=recompute)
    elif layout == "two bodies":
        critic = ValueNetwork(RewardModel(tiny_classifier(family, seed=1)))
        policy = Policy(backbone, critic=critic, recompute=recompute)
    else:
        backbone.requires_grad_(False)
        classifier = classifier_on(backbone)
        for seed, name in enumerate(("policy", "critic")):
            add_adapter(backbone, name, AdapterSpec(2, 4.0), seed=seed)
            shaken(backbone, name, seed)
        reward = RewardModel(classifier, adapter="critic")
        policy = Policy(backbone, critic=ValueNetwork(reward, adapter="critic"), adapter="policy", recompute=recompute)
    assert policy.critic is not None
    with torch.no_grad():
        for seed, weight in enumerate(policy.critic.trained()[:2]):  # its head
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return policy.eval()


@contextmanager
def counting_saved(weights: Iterator[nn.Parameter]) -> Iterator[list[int]]:
    """Bytes that the forward keeps for the backward, the weights left out."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            total[0] = sum(kept.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def gradients(policy: Policy) -> tuple[dict[str, Tensor], int]:
    """Of log-probabilities and values together, and the bytes kept."""
    batch = pad_rows(ROWS)
    pull = torch.randn(batch.response_mask.shape, generator=torch.Generator().manual_seed(5))
    with counting_saved(policy.parameters()) as kept:
        out = policy(batch, values=True)
        loss = (out.logprobs * pull).sum() + (out.values * pull.flip(0)).sum()
    loss.backward()
    return {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}, kept[0]


@pytest.mark.parametrize("layout", ["full", "two bodies", "adapters"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gradients_are_those_without(layout: str, family: str) -> None:
    """With adapters another one is on by the time of the backward; each layer must come back under its own."""
    expected, whole = gradients(policy_of(layout, family, recompute=False))
    found, less = gradients(policy_of(layout, family, recompute=True))
    assert found.keys() == expected.keys()
    assert any("critic" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    assert less < 0.7 * whole


def test_the_adapter_of_the_forward_is_on_in_the_backward() -> None:
    policy = policy_of("adapters", "llama", recompute=True)
    with using(policy.backbone, None):
        found, _ = gradients(policy)
    expected, _ = gradients(policy_of("adapters", "llama", recompute=False))
    assert all(torch.allclose(found[name], gradient, atol=1e-5) for name, gradient in expected.items())


def test_a_reward_model_too() -> None:
    def scores_and_gradients(recompute: bool) -> tuple[Tensor, list[Tensor | None]]:
        model = RewardModel(tiny_classifier(), recompute=recompute).eval()
        scores = model(pad_rows(ROWS))
        torch.autograd.backward(scores.square().sum())
        return scores.detach(), [weight.grad for weight in model.parameters()]

    plain, again = scores_and_gradients(False), scores_and_gradients(True)
    assert torch.equal(plain[0], again[0])
    for one, other in zip(plain[1], again[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_sampling_with_a_cache_is_as_before() -> None:
    prompts, sampling = items([1, 9, 4, 13]), SamplingConfig(max_new_tokens=8)
    plain = sampler_of(policy_of("full", "llama", recompute=False)).sample(prompts, sampling, KEY)
    again = sampler_of(policy_of("full", "llama", recompute=True)).sample(prompts, sampling, KEY)
    assert torch.equal(plain.sequences.tokens, again.sequences.tokens)
    assert plain.logprobs is not None
    assert again.logprobs is not None
    assert torch.equal(plain.logprobs, again.logprobs)


def with_dropout(family: str) -> nn.Module:
    """Models whose configuration asks for much dropout; OPT and Falcon apply it in the layer itself."""
    configs: dict[str, Any] = {
        "opt": OPTConfig(
            vocab_size=300,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=64,
            dropout=0.5,
        ),
        "falcon": FalconConfig(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_dropout=0.5,
            attention_dropout=0.5,
        ),
    }
    loader: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = tiny_lm(family) if family == "gpt2" else loader.from_config(configs[family])
    return model.eval()


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon"])
def test_dropout_stays_off_and_nothing_is_left_behind(family: str) -> None:
    model = with_dropout(family)
    tokens = torch.tensor([[5, 6, 7, 9]])
    results = []
    for _ in range(2):
        model.zero_grad()
        with recomputing(model):
            hidden = last_hidden(model, tokens)
        assert not any(module.training for module in model.modules())
        torch.autograd.backward(hidden.square().sum())
        assert not any(module.training for module in model.modules())
        results.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    model.zero_grad()
    plain = last_hidden(model, tokens)
    assert torch.equal(plain, hidden)
    torch.autograd.backward(plain.square().sum())
    expected = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for one, two, gradient in zip(*results, expected, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, gradient, atol=1e-5, rtol=1e-5)


def test_without_gradient_nothing_is_recomputed() -> None:
    model = tiny_lm()
    calls = []
    model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad(), recomputing(model):
        last_hidden(model, torch.tensor([[5, 6]]))
    assert len(calls) == 1
    with recomputing(model):
        hidden = last_hidden(model, torch.tensor([[5, 6]]))
    torch.autograd.backward(hidden.sum())
    assert len(calls) == 3


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UserError, match="Linear cannot recompute its layers; leave gradient_checkpointing out"):
        recomputing(nn.Linear(2, 2)).__enter__()
