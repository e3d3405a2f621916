from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from keel.models.export import save_policy
from keel.models.load import load_causal_lm
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm
from keel.text.tokenizers import TextCodec
from tests.worlds import chatml_codec, prefix_space_codec, tiny_codec, tiny_lm, with_critic

NEW_TOKENS = 12


@torch.no_grad()
def greedy(policy: Policy, tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The likeliest token, again and again, without a cache."""
    model: Any = policy.backbone
    said: list[int] = []
    while len(said) < NEW_TOKENS and not (said and said[-1] in ends):
        said.append(int(model(input_ids=torch.tensor([tokens + said])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("codec", [tiny_codec(), chatml_codec(), prefix_space_codec()], ids=["own", "chatml", "prefix"])
def test_a_saved_policy_generates_the_same_in_transformers(tmp_path: Path, codec: TextCodec, family: str) -> None:
    policy = with_critic(tiny_lm(family, vocab=len(codec.hf)))
    save_policy(policy.backbone, codec.hf, tmp_path, eos_ids=codec.eos_ids)

    alone: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == codec.hf.chat_template
    for prompt in ("Could you", "the ladder", "No. Buy"):
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        tokens = encoded.input_ids[0].tolist()
        assert tokens == codec.encode_start(prompt)
        output = alone.generate(**encoded, do_sample=False, max_new_tokens=NEW_TOKENS)
        assert output[0].tolist() == tokens + greedy(policy, tokens, codec.eos_ids)


def test_a_saved_policy_loads_again_to_the_bit_without_its_critic(tmp_path: Path) -> None:
    codec = tiny_codec()
    backbone = scratch_causal_lm(
        hidden=16, layers=2, heads=2, intermediate=None, vocab=len(codec.hf), context=64, eos_id=0, seed=3
    )
    save_policy(with_critic(backbone).backbone, codec.hf, tmp_path, eos_ids={1, 7})
    loaded = load_causal_lm(str(tmp_path)).state_dict()
    assert loaded.keys() == backbone.state_dict().keys()
    for name, weights in backbone.state_dict().items():
        assert torch.equal(weights, loaded[name]), name
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 7]
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}  # no pickle
