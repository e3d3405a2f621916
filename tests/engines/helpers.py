"""Tiny policies with their samplers, rollouts with made-up numbers, and gradients as one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keel.batching import pad_rows
from keel.config.ppo import PPOConfig
from keel.engines.base import DrawKey
from keel.engines.sampler import CachedSampler
from keel.models.attention import use_attention
from keel.models.critic import ValueHead
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from keel.records import EncodedRow, PromptItem, Rollout, Samples, Scores, Sequences
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.tokenizers import TextCodec
from tests.worlds import VOCAB, random_rows, tiny_classifier, tiny_codec, tiny_lm, with_critic

KEY = DrawKey(Draws(0, "test"), "response", iteration=3)


def ppo_config(temperature: float = 1.0, *, ppo: Mapping[str, Any] | None = None, **update: Any) -> PPOConfig:
    """PPO's settings with those of `update`, and of the stage in `ppo`."""
    tree = {"prompts": "none.jsonl", "sampling": {"temperature": temperature}, "update": update}
    return PPOConfig.model_validate({**tree, **(ppo or {})})


def tiny_policy(family: str = "llama", *, critic: bool = False, seed: int = 0) -> Policy:
    """A policy whose critic, if it has one, is random."""
    backbone: Any = tiny_lm(family, seed=seed)
    use_attention(backbone)  # as a model has it that is loaded
    if family == "gpt2":  # its last bias alone would decide which token is likeliest, in every state
        nn.init.zeros_(backbone.transformer.ln_f.bias)
    if family == "gpt_neox":  # all of its biases would
        for bias in (weight for name, weight in backbone.named_parameters() if name.endswith("bias")):
            nn.init.zeros_(bias)
    policy = (with_critic(backbone) if critic else Policy(backbone)).eval()
    if isinstance(policy.critic, ValueHead):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            nn.init.normal_(policy.critic.weight, std=0.3)
            nn.init.normal_(policy.critic.bias, std=0.3)
    return policy


def tiny_reward_model(family: str = "llama", *, seed: int = 0) -> RewardModel:
    model = RewardModel(tiny_classifier(family, seed=seed)).eval()
    model.normalise(0.25, 1.0)  # a shift
    return model


def sampler_of(policy: Policy, eos: Iterable[int] = ()) -> CachedSampler:
    """Responses end at the tokenizer's end token, which is 0, or at one of `eos`."""
    return CachedSampler(policy, Renderer(TextCodec(tiny_codec().hf, eos)))


def responses(samples: Samples) -> list[list[int]]:
    """The sampled ids of each row."""
    sequences = samples.sequences
    return [
        tokens[mask].tolist() for tokens, mask in zip(sequences.response_tokens(), sequences.response_mask, strict=True)
    ]


def items(lengths: Sequence[int], *, seed: int = 0, vocab: int = VOCAB) -> list[PromptItem]:
    """Prompts of random ids, the end token's among them."""
    rows = random_rows([(length, 0) for length in lengths], vocab=vocab, seed=seed)
    return [PromptItem(row.tokens, text=f"prompt {n}", row={"n": n}, source="") for n, row in enumerate(rows)]


def rollout_of(rows: Sequence[EncodedRow], logprobs: Tensor) -> Rollout:
    """A rollout of the given rows; what it does not say is zero."""
    sequences = pad_rows(rows)
    zeros = torch.zeros(sequences.response_mask.shape)
    scores = torch.zeros(len(rows))
    samples = Samples(
        sequences=sequences,
        logprobs=logprobs,
        ended=torch.ones(len(rows), dtype=torch.bool),
        prompts=tuple(PromptItem(row.tokens[: row.prompt_length], "", {}, "") for row in rows),
        texts=("",) * len(rows),
    )
    return Rollout(samples, logprobs, zeros, zeros, Scores(scores, {}), torch.arange(len(rows)), policy_version=0)


@torch.no_grad()
def exact_logits(model: nn.Module, row: EncodedRow) -> Tensor:
    """transformers' own logits [T, V] before each response token of one row, alone and unpadded, in float64."""
    causal_lm: Any = model
    logits: Tensor = causal_lm(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0]
    return logits[row.prompt_length - 1 : len(row.tokens) - 1].double()


def exact_logprobs(model: nn.Module, row: EncodedRow, temperature: float) -> Tensor:
    """Log-probabilities [T] of a row's response tokens, in float64."""
    log_softmax = (exact_logits(model, row) / temperature).log_softmax(dim=-1)
    return log_softmax[torch.arange(row.response_length), torch.tensor(row.tokens[row.prompt_length :])]


def rows_of(sequences: Sequences) -> list[EncodedRow]:
    """A batch's rows, unpadded."""
    lengths = sequences.lengths.tolist()
    prompts = sequences.prompt_lengths.tolist()
    return [
        EncodedRow(tuple(sequences.tokens[row, :length].tolist()), prompt)
        for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]


def loss_and_gradient(module: nn.Module, loss: Callable[..., Any], batches: Sequence[Any]) -> tuple[float, Tensor]:
    """The loss of a minibatch given as micro-batches, and its gradient as one vector."""
    module.zero_grad()
    denominator = sum(batch.weight for batch in batches)
    total = 0.0
    for batch in batches:
        part, _ = loss(module, batch, denominator)
        part.backward()
        total += float(part.detach())
    gradients = [weight.grad for weight in module.parameters()]
    vector = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    module.zero_grad()
    return total, vector


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm())
