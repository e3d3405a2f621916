from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.engines.base import Scorer
from keel.engines.scorers import (
    FunctionScorer,
    Limit,
    PolicyScorer,
    RewardModelScorer,
    WeightedScorer,
    explain_ratio,
)
from keel.errors import UserError
from keel.models.critic import ValueHead
from keel.models.policy import Policy, TokenOutputs
from keel.models.reward import RewardModel
from keel.records import Rollout, Samples, Sequences, Targets
from keel.schema import Prompt
from keel.text.render import Renderer
from keel.user_functions import checked
from tests.engines.helpers import (
    KEY,
    exact_logprobs,
    items,
    rollout_of,
    rows_of,
    sampler_of,
    tiny_policy,
    tiny_reward_model,
)
from tests.worlds import VOCAB, prefix_space_codec, random_rows, tiny_classifier, tiny_codec

LENGTHS = [(3, 5), (1, 2), (6, 4), (9, 7), (2, 1), (4, 4)]
BUDGETS = [1, 20, 40, 10_000]


def naive_values(policy: Policy, tokens: tuple[int, ...], prompt_length: int) -> Tensor:
    """The critic's head on transformers' own last hidden states, one row alone."""
    backbone: Any = policy.backbone
    assert isinstance(policy.critic, ValueHead)
    with torch.no_grad():
        hidden = backbone(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
        values: Tensor = policy.critic(hidden[prompt_length - 1 : -1])
    return values


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_policys_view_is_each_rows_own(family: str, budget: int) -> None:
    policy, rows = tiny_policy(family, critic=True), random_rows(LENGTHS)
    scorer, sequences = PolicyScorer(policy, temperature=0.7, token_budget=budget), pad_rows(rows)
    logprobs, values = scorer.logprobs(sequences), scorer.values(sequences)
    assert logprobs.shape == values.shape == sequences.response_mask.shape
    assert not logprobs.requires_grad
    for index, row in enumerate(rows):
        length = row.response_length
        expected = exact_logprobs(policy.backbone, row, 0.7).float()
        torch.testing.assert_close(logprobs[index, :length], expected, rtol=0, atol=1e-5)
        expected = naive_values(policy, row.tokens, row.prompt_length)
        torch.testing.assert_close(values[index, :length], expected, rtol=0, atol=1e-5)
        assert not logprobs[index, length:].any()
        assert not values[index, length:].any()


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_where_memory_runs_out_smaller_batches_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(LENGTHS)
    seen: list[int] = []

    def tight(forward: Any) -> Any:
        def call(sequences: Sequences, **options: Any) -> Any:
            seen.append(sequences.tokens.numel())
            if seen[-1] > 35:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(sequences, **options)

        return call

    def scores() -> Tensor:
        if kind == "policy":
            return policy_scorer.logprobs(pad_rows(rows))
        return reward_scorer.score_rows(rows)

    policy, model = tiny_policy(), tiny_reward_model()
    policy_scorer = PolicyScorer(policy, temperature=0.7, token_budget=10_000)
    reward_scorer = RewardModelScorer("reward", model, token_budget=10_000)
    expected = scores()
    monkeypatch.setattr(policy, "forward", tight(policy.forward))
    monkeypatch.setattr(model, "forward", tight(model.forward))
    torch.testing.assert_close(scores(), expected, rtol=0, atol=1e-6)
    assert seen[:2] == [6 * 16, 3 * 16]  # all six rows, then as many as half of that holds: the longest first
    seen.clear()
    scores()
    assert max(seen) <= 35  # the smaller budget stays
    rows = random_rows([(30, 6)])
    with pytest.raises(UserError, match=r"out of memory while one text of 36 tokens was scored \(CUDA out of memory\)"):
        scores()


# --- reward models


def classifier_score(model: RewardModel, ids: list[int]) -> float:
    """transformers' own forward of one unpadded text, less the shift."""
    classifier: Any = model.classifier
    with torch.no_grad():
        return float(classifier(input_ids=torch.tensor([ids])).logits[0, 0]) - model.shift


def samples_of(prompts: list[str], responses: list[str], ended: list[bool]) -> Samples:
    """As a sampler with the tiny tokenizer would give them."""
    renderer = Renderer(tiny_codec())
    rows = [renderer.encode(p, r, ended=e) for p, r, e in zip(prompts, responses, ended, strict=True)]
    return Samples(
        sequences=pad_rows(rows),
        logprobs=None,
        ended=torch.tensor(ended),
        prompts=tuple(renderer.item(Prompt(prompt, {"n": n})) for n, prompt in enumerate(prompts)),
        texts=tuple(responses),
    )


def three_samples() -> Samples:
    prompts = ["Could you lend me the ladder?", "When does it open? ", "Hello"]
    return samples_of(prompts, [" Of course.", "The market opens at nine.", "!"], [True, False, True])


@pytest.mark.parametrize("budget", BUDGETS)
def test_with_the_policys_tokenizer_a_reward_model_sees_the_sampled_ids(budget: int) -> None:
    model, rows = tiny_reward_model(), random_rows(LENGTHS)  # ids that no text has
    samples = rollout_of(rows, torch.zeros(len(rows), 7)).samples
    scores = RewardModelScorer("rm", model, token_budget=budget).score(samples)
    expected = [classifier_score(model, list(row.tokens)) for row in rows]
    assert scores.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert scores.parts.keys() == {"rm"}
    assert scores.parts["rm"] is scores.total
    of_rows = RewardModelScorer("rm", model, token_budget=budget).score_rows(rows)
    assert of_rows.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_with_another_tokenizer_a_reward_model_sees_the_text(budget: int) -> None:
    codec = prefix_space_codec()
    model = RewardModel(tiny_classifier(vocab=len(codec.hf))).eval()
    scorer = RewardModelScorer("rm", model, token_budget=budget, encoder=Renderer(codec))
    pieces = [  # by hand: <s> starts and, where the response ended, ends; a prompt's last space is the response's
        ("▁Could ▁you ▁lend ▁me ▁the ▁ladder? ▁Of ▁course.", True),
        ("▁When ▁does ▁it ▁open? ▁The ▁market ▁opens ▁at ▁nine.", False),
        ("▁Hello !", True),
    ]
    expected = []
    for text, ended in pieces:
        words = [codec.hf.backend_tokenizer.model.tokenize(word) for word in text.split(" ")]
        ids = [token.id for word in words for token in word]
        expected.append(classifier_score(model, [1, *ids, 1] if ended else [1, *ids]))
    assert scorer.score(three_samples()).total.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_text_beyond_the_limit_loses_the_beginning_of_its_prompt() -> None:
    model, rows = tiny_reward_model(), random_rows([(3, 5), (9, 7), (6, 4), (12, 2)])
    said: list[str] = []
    limit = Limit(8, start_ids=frozenset({rows[1].tokens[0]}))
    samples = rollout_of(rows, torch.zeros(4, 7)).samples
    for budget in BUDGETS:
        scorer = RewardModelScorer("rm", model, token_budget=budget, limit=limit, say=said.append)
        scores = scorer.score(samples)
        kept = [  # by hand: 8 tokens each, the response whole; the second one's start token stays
            list(rows[0].tokens),
            [rows[1].tokens[0], *rows[1].tokens[-7:]],
            list(rows[2].tokens[-8:]),
            list(rows[3].tokens[-8:]),
        ]
        assert scores.total.tolist() == pytest.approx([classifier_score(model, ids) for ids in kept], abs=1e-5)
        assert scores.cut["rm"].tolist() == [False, True, True, True]
        scorer.score(samples)
    assert len(said) == len(BUDGETS)  # each scorer says it once
    assert said[0] == (
        "warning: the reward rm reads at most 8 tokens; longer texts (16 here) lose the beginning of their prompt "
        "(reward/rm/cut counts them)."
    )


@pytest.mark.parametrize(("start", "longest"), [(frozenset(), 7), (frozenset(range(VOCAB)), 7)])
def test_a_response_is_never_cut(start: frozenset[int], longest: int) -> None:
    """At least one token of the prompt stays, so a response may have one less than the limit."""
    limit = Limit(8, start)
    (fits,) = random_rows([(9, longest)])
    row = limit.cut(fits, "rm")
    assert (len(row.tokens), row.prompt_length, row.tokens[1:]) == (8, 1, fits.tokens[9:])
    (too_long,) = random_rows([(9, longest + 1)])
    with pytest.raises(UserError, match=r"^the reward rm reads at most 8 tokens, and a response has 8; lower sampling"):
        limit.cut(too_long, "rm")


def test_a_text_within_the_limit_stays_as_it_is() -> None:
    model, rows = tiny_reward_model(), random_rows(LENGTHS)
    samples = rollout_of(rows, torch.zeros(len(rows), 7)).samples
    said: list[str] = []
    limited = RewardModelScorer("rm", model, token_budget=40, limit=Limit(16), say=said.append).score(samples)
    assert limited.total.tolist() == RewardModelScorer("rm", model, token_budget=40).score(samples).total.tolist()
    assert limited.cut["rm"].tolist() == [False] * len(rows)
    assert said == []


# --- functions and sums


def function_scorer(values: Any, name: str = "f") -> Scorer:
    return FunctionScorer(name, checked(f"my:{name}", lambda prompts, responses, rows: values))


def test_a_function_sees_texts_and_columns() -> None:
    seen: list[Any] = []

    def function(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
        seen.extend([prompts, responses, rows])
        return [1.0, 2.0, 3.0]

    scores = FunctionScorer("f", checked("my:f", function)).score(three_samples())
    assert seen == [
        ["Could you lend me the ladder?", "When does it open? ", "Hello"],
        [" Of course.", "The market opens at nine.", "!"],
        [{"n": 0}, {"n": 1}, {"n": 2}],
    ]
    assert scores.total.tolist() == scores.parts["f"].tolist() == [1.0, 2.0, 3.0]


def test_no_opinion_counts_as_nothing_and_is_seen_in_the_parts() -> None:
    scores = function_scorer([1.5, None, -2.0]).score(three_samples())
    assert scores.total.tolist() == [1.5, 0.0, -2.0]
    assert scores.parts["f"].isnan().tolist() == [False, True, False]


def test_a_function_without_any_opinion_is_spoken_of_once() -> None:
    said: list[str] = []
    silent = FunctionScorer("f", lambda prompts, responses, rows: [None] * len(responses), said.append)
    for _ in range(2):
        assert silent.score(three_samples()).total.tolist() == [0.0, 0.0, 0.0]
    assert said == ["warning: the function f has no opinion on any of 3 responses."]


def test_a_broken_function_stops() -> None:
    with pytest.raises(UserError, match=r"my:f returned nan \(row 1, prompt 'When does it open\? '"):
        function_scorer([1.5, math.nan, -2.0]).score(three_samples())


def test_a_number_too_large_for_float32_is_not_made_finite() -> None:
    assert function_scorer([1.0, 1e300, 0.0]).score(three_samples()).total.tolist() == [1.0, math.inf, 0.0]


def test_weighted_sum_by_hand() -> None:
    scorer = WeightedScorer(
        [(function_scorer([1.0, 2.0, 3.0], "f"), 2.0), (function_scorer([10.0, None, -10.0], "g"), -0.5)]
    )
    scores = scorer.score(three_samples())
    assert scores.total.tolist() == [-3.0, 4.0, 11.0]
    assert scores.parts["f"].tolist() == [1.0, 2.0, 3.0]  # each unweighted
    assert scores.parts["g"].nan_to_num(7.0).tolist() == [10.0, 7.0, -10.0]


def test_a_model_and_a_function_together() -> None:
    model = tiny_reward_model()
    own = RewardModelScorer("rm", model, token_budget=64)
    together = WeightedScorer([(own, 0.5), (function_scorer([1.0, None, 2.0]), 1.0)]).score(three_samples())
    alone = own.score(three_samples()).total
    torch.testing.assert_close(together.total, 0.5 * alone + torch.tensor([1.0, 0.0, 2.0]))
    assert together.parts.keys() == {"rm", "f"}
    assert together.cut.keys() == {"rm"}


# --- which known cause makes the first ratio differ from 1


def rollout_at(temperature: float, policy: Policy) -> Rollout:
    prompts = items([1, 9, 4, 6])
    config = SamplingConfig(max_new_tokens=8, temperature=temperature)
    samples = sampler_of(policy, range(40)).sample(prompts, config, KEY)
    assert samples.logprobs is not None
    return rollout_of(rows_of(samples.sequences), samples.logprobs)


def explain(policy: Policy, rollout: Rollout) -> str:
    return explain_ratio(policy, rollout, temperature=0.7, tolerance=1e-3)


def test_a_sampler_without_the_temperature_is_named() -> None:
    policy = tiny_policy()
    assert explain(policy, rollout_at(1.0, policy)).startswith("Cause: temperature")


@pytest.mark.parametrize(("at", "cause"), [(1.0, "Cause: temperature"), (0.2, "No cause that could be tried alone")])
def test_in_bfloat16_a_cause_is_told_from_rounding(at: float, cause: str) -> None:
    """It is the sampler that must be explained, and a single token that is far off explains nothing."""
    policy = tiny_policy()
    policy.backbone.to(torch.bfloat16)
    sampled = rollout_at(at, policy)
    off = torch.zeros_like(sampled.logprobs)
    off[0, 0] = 0.3
    with torch.no_grad():
        own: Tensor = policy(sampled.sequences, temperature=0.7).logprobs
    rollout = replace(sampled, logprobs=own, sampler_logprobs=sampled.logprobs + off)
    assert explain_ratio(policy, rollout, temperature=0.7, tolerance=0.1).startswith(cause)


class CountsFromTheRight(Policy):
    """A learner whose positions start at the padded end, as with a left-padded batch without positions."""

    def forward(self, sequences: Targets, **options: Any) -> TokenOutputs:
        assert isinstance(sequences, Sequences)
        offset = sequences.tokens.shape[1] - sequences.lengths
        shifted = torch.where(offset[:, None] > 0, (sequences.tokens + 1) % VOCAB, sequences.tokens)
        return super().forward(replace(sequences, tokens=shifted), **options)


def test_positions_that_depend_on_padding_are_named() -> None:
    policy = tiny_policy()
    rollout = rollout_at(0.7, policy)
    broken = CountsFromTheRight(policy.backbone).eval()
    assert explain(broken, rollout).startswith("Cause: padding or positions")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dropout_is_named_and_left_as_it_was(family: str) -> None:
    # GPT-2 has modules of dropout; Llama drops attention weights without one.
    policy = tiny_policy(family)
    rollout = rollout_at(0.7, policy)
    modules: list[Any] = list(policy.modules())
    for module in modules:
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    policy.train()
    assert explain(policy, rollout).startswith("Cause: dropout")
    assert all(module.training for module in modules)


def test_low_precision_is_named() -> None:
    policy = tiny_policy()
    rollout = rollout_at(0.7, policy)
    assert explain(policy.to(torch.bfloat16), rollout).startswith("Cause: precision")


@pytest.mark.parametrize("training", [False, True])
def test_anything_else_gets_a_sentence_too(training: bool) -> None:
    policy = tiny_policy()
    rollout = rollout_at(0.7, tiny_policy(seed=1))
    assert explain(policy.train(training), rollout).startswith("No cause that could be tried alone")


def test_probabilities_that_are_no_numbers_are_no_agreement() -> None:
    policy = tiny_policy()
    rollout = rollout_at(0.7, policy)
    broken = replace(rollout, logprobs=torch.full_like(rollout.logprobs, math.nan))
    assert explain(policy, broken).startswith("No cause that could be tried alone")
