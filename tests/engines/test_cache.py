"""The cache of rows of unequal length, against transformers' own decoding of each prompt alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig

from keel.config.sampling import SamplingConfig
from keel.engines import live
from keel.engines.cache import RaggedCache, why_not
from keel.engines.generate import GenerateSampler
from keel.engines.sampler import CachedSampler, make_sampler
from keel.models.policy import Policy
from keel.records import PromptItem
from tests.engines.helpers import KEY, exact_logits, items, responses, rows_of, sampler_of, tiny_policy
from tests.worlds import VOCAB

FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "mistral", "gpt_neox")
LENGTHS = (1, 9, 4, 4, 13, 2, 7, 5, 11, 3)


def generated(policy: Policy, prompt: PromptItem, length: int) -> list[int]:
    """transformers' own greedy decoding of one prompt alone, without end."""
    model: Any = policy.backbone
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.tokens])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=VOCAB - 1
    )
    tokens: list[int] = output[0, len(prompt.tokens) :].tolist()
    return tokens


def ends_of_many_lengths(rows: list[list[int]]) -> list[int]:
    """End tokens, 0 among them, that cut the rows to at least four lengths and leave one whole."""
    for pair in combinations(sorted({token for row in rows for token in row}), 2):
        ends = [0, *pair]
        lengths = {min((row.index(end) + 1 for end in ends if end in row), default=len(row)) for row in rows}
        if len(lengths) >= 4 and len(rows[0]) in lengths:
            return ends
    raise AssertionError("no two tokens would do")


def to_end(row: list[int], ends: list[int]) -> list[int]:
    return row[: min((row.index(end) + 1 for end in ends if end in row), default=len(row))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_generate_whatever_the_batch(family: str) -> None:
    policy, prompts = tiny_policy(family), items(LENGTHS)
    prompts = [*prompts, prompts[4], prompts[4], prompts[7], prompts[4]]  # some are asked for several times
    alone = {prompt.tokens: generated(policy, prompt, 14) for prompt in prompts}
    rows = [alone[prompt.tokens] for prompt in prompts]
    ends = ends_of_many_lengths(rows)
    expected = [to_end(row, ends) for row in rows]
    assert len({len(row) for row in expected}) >= 4
    for batch in (3, 7, 64):
        sampling = SamplingConfig(max_new_tokens=14, temperature=0.0, batch=batch)
        samples = sampler_of(policy, ends).sample(prompts, sampling, KEY)
        assert responses(samples) == expected
        assert samples.ended.tolist() == [row[-1] in ends for row in expected]
    best_two = torch.cat([exact_logits(policy.backbone, row) for row in rows_of(samples.sequences)]).topk(2).values
    assert float((best_two[:, 0] - best_two[:, 1]).min()) > 1e-4, "a tie would make this test mean nothing"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_looking_seldom_at_who_has_ended_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every look makes the host wait for the device: rows that have ended draw on for some steps."""
    policy, prompts, sampling = tiny_policy(family, critic=True), items(LENGTHS * 2), SamplingConfig(max_new_tokens=14)
    sampler = sampler_of(policy, range(40))
    expected = sampler.sample(prompts, sampling.model_copy(update={"batch": 6}), KEY)
    assert expected.ended.any()
    assert not expected.ended.all()
    monkeypatch.setitem(live._LOOK_EVERY, "cpu", 5)
    found = sampler.sample(prompts, sampling.model_copy(update={"batch": 6}), KEY)
    assert responses(found) == responses(expected)
    assert found.ended.tolist() == expected.ended.tolist()
    for one, other in ((found.logprobs, expected.logprobs), (found.values, expected.values)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def prompts_read(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Fills with the first tokens of every batch of prompts that the policy reads from here on."""
    read: list[list[int]] = []
    next_states = policy.next_states

    def watched(tokens: Tensor, cache: Any, **options: Any) -> Tensor:
        if not options:
            read.append(tokens[:, 0].tolist())
        return next_states(tokens, cache, **options)

    monkeypatch.setattr(policy, "next_states", watched)
    return read


def test_a_prompt_of_a_group_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = tiny_policy(), items((3, 5, 9))
    sampler = sampler_of(policy, range(60))
    read = prompts_read(policy, monkeypatch)
    group = [prompt for prompt in prompts for _ in range(4)]
    sampler.sample(group, SamplingConfig(max_new_tokens=8), KEY)
    assert read == [[prompts[2].tokens[0], prompts[1].tokens[0], prompts[0].tokens[0]]]
    read.clear()  # also where most of the group waits, while others of it are being answered
    sampler.sample(prompts[:1] * 40, SamplingConfig(max_new_tokens=8, batch=8), KEY)
    assert read == [[prompts[0].tokens[0]]]


def test_the_cache_is_as_large_as_the_round_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RaggedCache] = []

    def kept(*shape: int) -> RaggedCache:
        made.append(RaggedCache(*shape))
        return made[-1]

    monkeypatch.setattr(live, "RaggedCache", kept)
    sampler = sampler_of(tiny_policy())
    for count, batch, slots in ((7, 3, 3), (2, 64, 2)):
        sampler.sample(items(LENGTHS[:count]), SamplingConfig(max_new_tokens=6, batch=batch), KEY)
        shapes = {tuple(store.shape) for pair in made.pop()._stores.values() for store in pair}
        assert shapes == {(slots, 1, max(LENGTHS[:count]) + 5, 8)}  # the last token is never read
        assert not made


def test_families_that_keep_another_kind_of_state_are_found_out() -> None:
    assert all(why_not(tiny_policy(family)) is None for family in FAMILIES)
    for family in ("mamba", "gpt_neo"):
        assert why_not(tiny_policy(family)) == "it keeps a state of its own kind"
    kind: Any = AutoModelForCausalLM
    bloom = Policy(kind.from_config(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2)))
    assert why_not(bloom) == "its code refuses the cache (ValueError)"  # it makes positions of a mask [B, L]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_computes_otherwise_with_the_cache_is_found_out(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy().to(dtype)
    assert why_not(policy) is None
    extend = RaggedCache.extend

    def late(cache: RaggedCache, lengths: Tensor, keys: int) -> None:
        extend(cache, (lengths - 1).clamp(min=0), keys)  # one slot to the left of where it belongs

    monkeypatch.setattr(RaggedCache, "extend", late)
    assert why_not(policy) == "it computes otherwise with the cache"


def test_the_sampler_is_the_one_that_fits_and_says_when_it_is_slow() -> None:
    said: list[str] = []
    renderer = sampler_of(tiny_policy()).renderer
    assert isinstance(make_sampler(tiny_policy(), renderer, say=said.append), CachedSampler)
    assert said == []
    assert isinstance(make_sampler(tiny_policy("mamba"), renderer, say=said.append), GenerateSampler)
    assert said == [
        "note: MambaForCausalLM is sampled by transformers' generate, which is slower: Keel's cache does not fit it "
        "(it keeps a state of its own kind)."
    ]
