from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from keel import batching
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import RewardModelScorer
from keel.models.policy import Policy
from keel.records import PromptItem
from keel.schema import Prompt
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.tokenizers import TextCodec
from tests.engines.helpers import (
    KEY,
    exact_logprobs,
    items,
    responses,
    rows_of,
    sampler_of,
    tiny_policy,
    tiny_reward_model,
)
from tests.worlds import VOCAB, prefix_space_codec, tiny_codec, tiny_lm

LENGTHS = (1, 9, 4, 4, 13, 2, 7, 5, 11, 3)
MANY_ENDS = range(60)  # a fifth of all tokens, so that responses of every length end


def generated(policy: Policy, prompt: PromptItem, eos: list[int] | None, length: int) -> list[int]:
    """transformers' own greedy decoding of one prompt alone."""
    model: Any = policy.backbone
    model.generation_config.eos_token_id = eos
    ids = torch.tensor([prompt.tokens])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=VOCAB - 1
    )
    tokens: list[int] = output[0, len(prompt.tokens) :].tolist()
    return tokens


def config(**changes: Any) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 12, "temperature": 0.8, **changes})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_response_is_its_own_whatever_the_batch(family: str) -> None:
    sampler, prompts = sampler_of(tiny_policy(family), MANY_ENDS), items(LENGTHS)
    together = sampler.sample(prompts, config(), KEY)
    expected = responses(together)
    assert len({len(row) for row in expected}) >= 4
    assert together.logprobs is not None
    for batch in (1, 3, 9):
        cut = sampler.sample(prompts, config(batch=batch), KEY)
        assert responses(cut) == expected
        assert cut.logprobs is not None
        torch.testing.assert_close(cut.logprobs, together.logprobs, rtol=0, atol=1e-5)
        assert cut.texts == together.texts
    for first in (2, 7):  # other batch mates: the global number of a sample names its draws
        key = DrawKey(KEY.draws, KEY.purpose, KEY.iteration, first_sample=first)
        assert responses(sampler.sample(prompts[first:], config(), key)) == expected[first:]


def test_draws_differ_by_sample_iteration_purpose_and_seed() -> None:
    sampler, prompts = sampler_of(tiny_policy()), items([4]) * 3
    other = DrawKey(Draws(1, "test"), KEY.purpose, KEY.iteration)
    keys = [KEY, DrawKey(KEY.draws, KEY.purpose, 4), DrawKey(KEY.draws, "other", KEY.iteration), other]
    rows = [tuple(row) for key in keys for row in responses(sampler.sample(prompts, config(), key))]
    assert len(set(rows)) == len(keys) * len(prompts)


def test_a_longer_limit_extends_the_same_response() -> None:
    sampler, prompts = sampler_of(tiny_policy(), MANY_ENDS), items(LENGTHS)
    short = responses(sampler.sample(prompts, config(max_new_tokens=3), KEY))
    long = responses(sampler.sample(prompts, config(), KEY))
    assert [row[:3] for row in long] == short


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_full_forward_at_the_temperature(family: str, temperature: float) -> None:
    policy = tiny_policy(family)
    samples = sampler_of(policy, MANY_ENDS).sample(items(LENGTHS), config(temperature=temperature), KEY)
    assert samples.logprobs is not None
    for row, found in zip(rows_of(samples.sequences), samples.logprobs, strict=True):
        expected = exact_logprobs(policy.backbone, row, temperature)
        torch.testing.assert_close(found[: len(expected)].double(), expected, rtol=0, atol=1e-5)
        assert not found[len(expected) :].any()


def test_truncated_sampling_has_no_logprobs() -> None:
    sampler, prompts = sampler_of(tiny_policy()), items([3, 5])
    assert sampler.sample(prompts, config(top_k=5), KEY).logprobs is None
    assert sampler.sample(prompts, config(top_p=0.9), KEY).logprobs is None


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    # Some tokenizers start every text with their end token; here it also stands inside and last.
    eos, policy = {0, 5}, tiny_policy()
    prompts = [
        PromptItem(tokens, text="", row={}, source="")
        for tokens in ((0,), (0, 17, 0, 21), (5, 5, 5), (0, 9, 8, 7, 6, 5, 4, 0))
    ]
    samples = sampler_of(policy, eos).sample(prompts, SamplingConfig(max_new_tokens=6, temperature=0.0), KEY)
    expected = [generated(policy, prompt, [0, 5], 6) for prompt in prompts]
    assert responses(samples) == expected
    assert all(len(row) == 6 for row in expected)
    assert not samples.ended.any()


def test_each_end_token_ends_and_is_the_last_one() -> None:
    samples = sampler_of(tiny_policy(), MANY_ENDS).sample(items([4] * 200), config(batch=64), KEY)
    found = responses(samples)
    last = [row[-1] for row, ended in zip(found, samples.ended.tolist(), strict=True) if ended]
    assert len(set(last)) > 20
    assert not any(token in MANY_ENDS for row in found for token in row[:-1])
    assert [row[-1] in MANY_ENDS for row in found] == samples.ended.tolist()
    assert all(len(row) == 12 for row, ended in zip(found, samples.ended.tolist(), strict=True) if not ended)
    # An end token at the last possible place is an end, not a cut.
    assert any(len(row) == 12 and ended for row, ended in zip(found, samples.ended.tolist(), strict=True))


def test_texts_are_without_the_end_token() -> None:
    sampler = sampler_of(tiny_policy(), MANY_ENDS)
    samples = sampler.sample(items(LENGTHS), config(), KEY)
    for row, text, ended in zip(responses(samples), samples.texts, samples.ended.tolist(), strict=True):
        kept = row[:-1] if ended else row
        assert text == sampler.renderer.codec.hf.decode(kept, skip_special_tokens=True)


def test_what_fills_the_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, prompts = sampler_of(tiny_policy(), MANY_ENDS), items(LENGTHS)
    before = sampler.sample(prompts, config(), KEY)
    monkeypatch.setattr(batching, "FILL", 77)
    after = sampler.sample(prompts, config(), KEY)
    assert responses(after) == responses(before)
    assert before.logprobs is not None
    assert after.logprobs is not None
    assert torch.equal(before.logprobs, after.logprobs)
    assert (after.sequences.tokens == 77).sum() > (before.sequences.tokens == 77).sum()


def test_a_watcher_hears_every_token_of_every_response_as_it_is_drawn() -> None:
    policy, prompts = tiny_policy(), items(LENGTHS)
    heard: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    steps = 0

    def watch(rows: Sequence[int], tokens: Sequence[int]) -> None:
        nonlocal steps
        steps += 1
        for row, token in zip(rows, tokens, strict=True):
            heard[row].append(token)

    sampler = sampler_of(policy, MANY_ENDS)
    samples = CachedSampler(policy, sampler.renderer, watch).sample(prompts, SamplingConfig(max_new_tokens=12), KEY)
    drawn = responses(samples)
    assert len({len(row) for row in drawn}) >= 3  # so that some leave the batch early
    assert list(heard.values()) == drawn
    assert steps == max(map(len, drawn))


# --- stop strings ---

STOPS = ("a", "the", "!", "\n", "er")


def shortest_with_a_stop(renderer: Renderer, prompt: PromptItem, row: list[int], stops: tuple[str, ...]) -> int | None:
    """How many tokens there are when the text first holds a stop string, by decoding every beginning."""
    for length in range(1, len(row) + 1):
        if any(stop in renderer.response_text(prompt, row[:length]) for stop in stops):
            return length
    return None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(family: str) -> None:
    sampler, prompts = sampler_of(tiny_policy(family)), items(LENGTHS * 4)
    free = sampler.sample(prompts, config(), KEY)
    cut = sampler.sample(prompts, config(stop=STOPS), KEY)
    assert free.logprobs is not None
    assert cut.logprobs is not None
    num_stopped = 0
    for number, (row, found) in enumerate(zip(responses(free), responses(cut), strict=True)):
        length = shortest_with_a_stop(sampler.renderer, prompts[number], row, STOPS)
        assert found == row[:length]
        torch.testing.assert_close(
            cut.logprobs[number, : len(found)], free.logprobs[number, : len(found)], rtol=0, atol=1e-5
        )
        said = sampler.renderer.response_text(prompts[number], found)
        if length is None:
            assert (cut.texts[number], cut.ended[number]) == (said, free.ended[number])
            continue
        num_stopped += 1
        assert cut.ended[number]
        begin = min(said.index(stop) for stop in STOPS if stop in said)
        assert cut.texts[number] == said[:begin]
    assert 5 < num_stopped < len(prompts)
    assert len({len(row) for row in responses(cut)}) >= 4


def test_stop_strings_are_met_whatever_the_batch() -> None:
    sampler, prompts = sampler_of(tiny_policy(), MANY_ENDS[:5]), items(LENGTHS)
    together = sampler.sample(prompts, config(stop=STOPS), KEY)
    for batch in (1, 3):
        apart = sampler.sample(prompts, config(stop=STOPS, batch=batch), KEY)
        assert responses(apart) == responses(together)
        assert (apart.texts, apart.ended.tolist()) == (together.texts, together.ended.tolist())


def replaying(codec: TextCodec, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> CachedSampler:
    """A sampler whose policy says these ids, one after another."""
    policy = Policy(tiny_lm(vocab=len(codec.hf))).eval()
    steps = iter(ids)

    def next_logits(states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(steps)]), len(codec.hf)).float() * 100

    monkeypatch.setattr(policy, "next_logits", next_logits)
    return CachedSampler(policy, Renderer(codec))


@pytest.mark.parametrize("codec", [tiny_codec(), prefix_space_codec()], ids=["own", "prefix"])
@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("ok 🙂 no", "🙂", "ok "),  # four bytes, a token each
        ("naïve", "ïv", "na"),
        ("one\n\ntwo", "\n\n", "one"),
        ("the time", " time", "the"),
        ("the time", "the", ""),
        ("a little ladder", "der", "a little lad"),
    ],
)
def test_a_stop_string_may_stand_across_tokens_and_bytes(
    codec: TextCodec, said: str, stop: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = codec.encode(said)
    sampler = replaying(codec, ids, monkeypatch)
    prompt = sampler.renderer.item(Prompt("Buy a"))
    samples = sampler.sample([prompt], SamplingConfig(max_new_tokens=len(ids), temperature=0.0, stop=(stop,)), KEY)
    (row,) = responses(samples)
    assert len(row) == shortest_with_a_stop(sampler.renderer, prompt, ids, (stop,))
    assert samples.texts == (text,)
    assert samples.ended.tolist() == [True]


def test_a_reward_model_reads_what_was_said_before_the_stop_string_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a comparison of that text would be encoded: it never met the stop string."""
    codec = tiny_codec()
    sampler = replaying(codec, codec.encode(" ladder.\n\nUser"), monkeypatch)
    prompt = sampler.renderer.item(Prompt("Buy a "))
    samples = sampler.sample([prompt], SamplingConfig(max_new_tokens=30, temperature=0.0, stop=("\n\n",)), KEY)
    assert samples.texts == ("ladder.",)
    assert samples.judged is not None
    (row,) = rows_of(samples.judged)
    assert row == sampler.renderer.encode("Buy a ", "ladder.")
    assert rows_of(samples.sequences)[0].tokens != row.tokens
    model = tiny_reward_model()
    found = RewardModelScorer("judge", model, token_budget=1000).score(samples).total
    torch.testing.assert_close(found, RewardModelScorer("judge", model, token_budget=1000).score_rows([row]))
