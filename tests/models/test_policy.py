"""The policy's one forward against transformers' own logits, each row alone and unpadded, position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import keel.models.policy as policy_module
from keel.batching import cut_by_tokens, pad_rows, take
from keel.errors import UserError
from keel.models.critic import ValueHead
from keel.models.policy import Policy
from keel.records import EncodedRow
from tests.memory import peak_bytes
from tests.worlds import VOCAB, padded_further, random_rows, tiny_lm, with_critic

FAMILIES = ("llama", "gpt2", "gemma2", "granite", "cohere")
TEMPERATURE = 0.7
ROWS = random_rows([(1, 5), (6, 9), (3, 1), (12, 0), (2, 12), (1, 1)])


def policy_of(family: str) -> Policy:
    policy = with_critic(tiny_lm(family)).eval()
    assert isinstance(policy.critic, ValueHead)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # at its start the critic says 0 to everything
        policy.critic.weight.copy_(torch.randn(policy.critic.weight.shape, generator=generator))
        policy.critic.bias.fill_(0.5)
    return policy


@torch.no_grad()
def oracle(policy: Policy, row: EncodedRow) -> tuple[list[float], list[float], list[float]]:
    """Log-probability, entropy and value of each response token, from transformers' full forward of one row."""
    model: Any = policy.backbone
    assert isinstance(policy.critic, ValueHead)
    output = model(input_ids=torch.tensor([row.tokens]), output_hidden_states=True)
    logprobs, entropies, values = [], [], []
    for position in range(row.prompt_length, len(row.tokens)):
        before = position - 1  # the state that precedes the token
        distribution = (output.logits[0, before] / TEMPERATURE).log_softmax(-1)
        logprobs.append(float(distribution[row.tokens[position]]))
        entropies.append(float(-(distribution.exp() * distribution).sum()))
        values.append(float(policy.critic(output.hidden_states[-1][0, before])))
    return logprobs, entropies, values


def everything(policy: Policy, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = policy(batch, temperature=TEMPERATURE, entropy=True, values=True)
    return out.logprobs, out.entropy, out.values


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_transformers_own(family: str) -> None:
    policy = policy_of(family)
    fields = everything(policy, pad_rows(ROWS))
    for index, row in enumerate(ROWS):
        for field, expected in zip(fields, oracle(policy, row), strict=True):
            torch.testing.assert_close(
                field[index, : row.response_length], torch.tensor(expected), atol=1e-5, rtol=1e-5
            )
            assert (field[index, row.response_length :] == 0).all()  # nothing outside the mask


@pytest.mark.parametrize("family", FAMILIES)
def test_any_padding_and_any_batch_give_the_same(family: str) -> None:
    policy = policy_of(family)
    with torch.no_grad():
        whole = everything(policy, pad_rows(ROWS))
        variants = [
            (list(range(len(ROWS))), padded_further(ROWS, 7, fill=299)),  # padding is found by length, whatever its id
            ([4, 0, 2], take(pad_rows(ROWS), [4, 0, 2])),
            ([3], take(pad_rows(ROWS), [3])),  # a row without a response
            *((group, take(pad_rows(ROWS), group)) for group in cut_by_tokens([len(r.tokens) for r in ROWS], 20)),
            ([1, 1, 1], pad_rows([ROWS[1]] * 3)),
        ]
        for rows, batch in variants:
            for field, reference in zip(everything(policy, batch), whole, strict=True):
                assert field.isfinite().all()
                for position, row in enumerate(rows):
                    length = ROWS[row].response_length
                    torch.testing.assert_close(field[position, :length], reference[row, :length], atol=1e-5, rtol=1e-5)


def test_only_what_is_asked_for_is_computed() -> None:
    policy, batch = policy_of("llama"), pad_rows(ROWS)
    alone = policy(batch, temperature=TEMPERATURE)
    assert alone.entropy is None
    assert alone.values is None
    values = policy(batch, logprobs=False, values=True)
    assert values.logprobs is None
    assert torch.equal(values.values, policy(batch, values=True).values)
    assert torch.equal(alone.logprobs, everything(policy, batch)[0])


def test_values_are_read_before_the_token() -> None:
    """V(s_t) may not know y_t: changing a token moves the values after it, never its own."""
    policy = policy_of("llama")
    row = ROWS[1]
    changed = list(row.tokens)
    at = 4
    changed[row.prompt_length + at] = (changed[row.prompt_length + at] + 1) % 300
    with torch.no_grad():
        _, _, before = everything(policy, pad_rows([row]))
        _, _, after = everything(policy, pad_rows([EncodedRow(tuple(changed), row.prompt_length)]))
    differs = (before - after).abs()[0] > 1e-6
    assert differs.tolist() == [False] * (at + 1) + [True] * (row.response_length - at - 1)


def test_a_new_critic_says_zero_without_bias() -> None:
    policy = with_critic(tiny_lm())
    assert (policy(pad_rows(ROWS), values=True).values == 0).all()
    assert Policy(tiny_lm()).critic is None


def test_only_asking_for_values_without_a_critic_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="no critic"):
        Policy(tiny_lm())(pad_rows(ROWS), values=True)


# Gradients


def gradients(policy: Policy, *, entropy: bool) -> dict[str, Tensor]:
    policy.zero_grad()
    batch = pad_rows(ROWS)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(batch.response_mask.shape, generator=generator)  # each token pulls another way
    out = policy(batch, temperature=TEMPERATURE, entropy=entropy, values=True)
    loss = (out.logprobs * weights).sum() + (out.values * weights).sum()
    if entropy:
        loss = loss + (out.entropy * weights.flip(0)).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_head_in_chunks_gives_the_same_gradients(family: str, entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(family)
    whole = gradients(policy, entropy=entropy)
    monkeypatch.setattr(policy_module, "_HEAD_LOGITS", 3 * VOCAB)
    parts = gradients(policy, entropy=entropy)
    assert whole.keys() == parts.keys() == {name for name, _ in policy.named_parameters()}
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
        assert gradient.abs().max() > 0, name


def test_the_gradient_is_that_of_the_naive_sum() -> None:
    """Through transformers' own logits and `log_softmax`, each row alone."""
    policy = policy_of("gemma2")
    policy.zero_grad()
    out = policy(pad_rows(ROWS), temperature=TEMPERATURE, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    ours = {name: p.grad.clone() for name, p in policy.backbone.named_parameters() if p.grad is not None}
    policy.zero_grad()
    model: Any = policy.backbone
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0, row.prompt_length - 1 : -1]
        logp = (logits / TEMPERATURE).log_softmax(-1)
        targets = torch.tensor(row.tokens[row.prompt_length :], dtype=torch.int64)
        (logp.gather(1, targets[:, None]).sum() - (logp.exp() * logp).sum()).backward()
    for name, gradient in ours.items():
        parameter = policy.backbone.get_parameter(name)
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_chunks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("llama")
    whole = everything(policy, pad_rows(ROWS))
    monkeypatch.setattr(policy_module, "_HEAD_LOGITS", 3 * VOCAB)
    for chunked, reference in zip(everything(policy, pad_rows(ROWS)), whole, strict=True):
        torch.testing.assert_close(chunked, reference, atol=1e-6, rtol=1e-6)


def test_logits_of_a_large_vocabulary_exist_one_chunk_at_a_time() -> None:
    vocab, responses, length = 1 << 17, 512, 2
    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=vocab
    )
    model: Any = LlamaForCausalLM(config)
    policy = Policy(model.eval())
    batch = pad_rows(random_rows([(1, length)] * responses, vocab=vocab))
    one_chunk = 4 * policy_module._HEAD_LOGITS
    peak = peak_bytes(lambda: policy(batch).logprobs.sum().backward())
    assert one_chunk <= peak <= 2.25 * one_chunk  # a chunk's logits with their gradient, and the weights' gradients
    assert 2.25 * one_chunk < 0.6 * (4 * responses * length * vocab)  # of all logits in float32


# Heads that are not known


def test_a_head_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_lm("llama")
    forward = model.forward

    def secretly_scaled(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits * 1.1
        return output

    Policy(model)
    monkeypatch.setattr(model, "forward", secretly_scaled)
    with pytest.raises(UserError, match="LlamaForCausalLM computes its logits in a way Keel does not know"):
        Policy(model)
