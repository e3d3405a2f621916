"""However a minibatch is cut, padded and ordered, its loss and its gradient are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keel.batching import pad_rows, row_batches
from keel.config.direct import DirectConfig
from keel.config.ppo import UpdateConfig
from keel.config.training import OptimConfig
from keel.engines.direct import choices_loss, labels_loss
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss, reward_loss, sft_loss
from keel.engines.reward_losses import label_loss, ranking_loss, rating_loss
from keel.engines.scorers import PolicyScorer
from keel.models.thresholds import JudgedModel, Thresholds
from keel.pipeline.judgements import (
    EncodedPair,
    EncodedRanking,
    EncodedRating,
    by_prompt,
    microbatches,
    pairs_batch,
    rankings_batch,
    ratings_batch,
)
from keel.pipeline.ppo import policy_batches
from keel.pipeline.preferences import (
    EncodedChoice,
    EncodedLabel,
    choices_batch,
    labels_batch,
    mismatched,
    reference_point,
)
from keel.pipeline.reference import response_logprobs
from keel.records import Choices, Credit, EncodedRow, Labels, Pairs, PolicyBatch, Rankings, Ratings, Sequences
from keel.seeds import Draws
from tests.engines.helpers import (
    distance,
    exact_logprobs,
    loss_and_gradient,
    ppo_config,
    rollout_of,
    rows_of,
    tiny_policy,
    tiny_reward_model,
)
from tests.worlds import padded_further, random_rows

FAMILIES = ["gpt2", "llama"]
BUDGETS = [1, 13, 30, 64, 100_000]
ROWS = random_rows([(3, 5), (1, 2), (6, 4), (9, 7), (2, 1), (4, 4), (4, 4), (12, 3)])
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Case:
    """A module in float64, its loss, and one minibatch cut by a token budget, with its rows in some order."""

    module: nn.Module
    loss: Callable[..., Any]
    batches: Callable[[int, Sequence[int]], Sequence[Any]]
    tolerance: float

    def __call__(self, budget: int, order: Sequence[int]) -> tuple[float, Tensor]:
        return loss_and_gradient(self.module, self.loss, self.batches(budget, order))

    def assert_same(self, found: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
        assert found[0] == pytest.approx(expected[0], rel=self.tolerance, abs=self.tolerance)
        assert distance(found[1], expected[1]) < self.tolerance


# Llama's norms, and scores and values, are computed in float32 whatever the weights.
ROUNDED = 1e-6


def sft_case(family: str) -> Case:
    module = tiny_policy(family).double()
    tolerance = 1e-12 if family == "gpt2" else ROUNDED
    return Case(module, sft_loss, lambda budget, order: row_batches([ROWS[row] for row in order], budget), tolerance)


def ppo_fields() -> dict[str, Tensor]:
    """Made-up numbers for each response token [8, 7]; NaN where there is none, which nothing may reach."""
    generator = torch.Generator().manual_seed(1)
    mask = pad_rows(ROWS).response_mask
    names = ("noise", "old_values", "advantages", "returns")
    return {name: torch.where(mask, torch.randn(mask.shape, generator=generator), torch.nan) for name in names}


def ppo_case(family: str) -> Case:
    policy, fields = tiny_policy(family, critic=True).double(), ppo_fields()
    old = 0.3 * fields["noise"]
    for index, row in enumerate(ROWS):
        old[index, : row.response_length] += exact_logprobs(policy.backbone, row, TEMPERATURE).float()
    rollout = replace(rollout_of(ROWS, old), values=fields["old_values"])
    credit = Credit(fields["advantages"], fields["returns"])

    def batches(budget: int, order: Sequence[int]) -> list[PolicyBatch]:
        config = UpdateConfig(token_budget=budget)
        return policy_batches(rollout, credit, [[row] for row in order], config)

    loss = ppo_loss(ppo_config(TEMPERATURE, value_coef=0.3, entropy_coef=0.1))
    return Case(policy, loss, batches, ROUNDED)


def comparisons() -> list[EncodedPair]:
    """Three prompts; the first has four responses, compared with each other."""
    responses = [row.tokens[row.prompt_length :] for row in ROWS]
    prompts = [(11, 12, 13), (21,), (31, 32, 33, 34, 35)]
    sides = [(0, 0, 1), (0, 1, 2), (0, 3, 0), (0, 3, 2), (1, 4, 5), (1, 5, 6), (2, 7, 3), (2, 6, 3)]
    return [
        EncodedPair(
            chosen=EncodedRow(prompts[prompt] + responses[better], len(prompts[prompt])),
            rejected=EncodedRow(prompts[prompt] + responses[worse], len(prompts[prompt])),
            margin=0.1 * number,
            weight=1.0 + 0.5 * number,
        )
        for number, (prompt, better, worse) in enumerate(sides)
    ]


def reward_case(family: str) -> Case:
    pairs = comparisons()

    def batches(budget: int, order: Sequence[int]) -> list[Pairs]:
        return microbatches(by_prompt([pairs[number] for number in order], 64), budget, pairs_batch)

    return Case(tiny_reward_model(family).double(), reward_loss(0.0, 0.0), batches, ROUNDED)


def reference() -> dict[EncodedRow, float]:
    """Made-up numbers, one a response."""
    rows = dict.fromkeys(row for pair in comparisons() for row in (pair.chosen, pair.rejected))
    return {row: -5.0 - 0.7 * index for index, row in enumerate(rows)}


def dpo_case(family: str) -> Case:
    pairs = [EncodedChoice(pair.chosen, pair.rejected, pair.weight) for pair in comparisons()]
    config, collate = DirectConfig(beta=0.05, sft_coef=0.1), choices_batch(reference())

    def batches(budget: int, order: Sequence[int]) -> list[Choices]:
        return microbatches(by_prompt([pairs[number] for number in order], 64), budget, collate)

    return Case(tiny_policy(family).double(), choices_loss(config), batches, ROUNDED)


def kto_case(family: str) -> Case:
    """Of which the reference point is taken anew for every minibatch, in the same cut."""
    policy, single = tiny_policy(family).double(), tiny_policy(family)  # a scorer keeps single precision
    labels = [
        EncodedLabel(row, accepted, pair.weight)
        for pair in comparisons()
        for row, accepted in ((pair.chosen, True), (pair.rejected, False))
    ]
    mismatches = mismatched(labels, Draws(0, "direct"), 64, lambda ids, room: ids[-room:])
    low = dict.fromkeys((*reference(), *mismatches.values()), -60.0)  # below the policy's, so that z0 is above 0

    def batches(budget: int, order: Sequence[int]) -> list[Labels]:
        groups = by_prompt([label for number in order for label in labels[2 * number : 2 * number + 2]], 64)
        scorer = PolicyScorer(single, temperature=1.0, token_budget=budget)
        point = reference_point(groups, mismatches, low, lambda rows: response_logprobs(scorer, rows, budget))
        assert point > 1
        return microbatches(groups, budget, labels_batch(low, point))

    return Case(policy, labels_loss(DirectConfig(kind="kto", beta=0.05)), batches, ROUNDED)


def ranking_case(family: str) -> Case:
    """Two to four of each prompt's responses, some of them ranked alike."""
    pairs = comparisons()
    ranked = [[0, 1, 2, 3], [2, 0], [3, 1, 2], [4, 5], [5, 4], [6, 7], [0, 3, 1], [7, 6]]
    ranks = [(1, 2, 2, 4), (1, 2), (3, 3, 1), (1, 1), (2, 1), (1, 2), (1, 2, 3), (5, 9)]
    rankings = [
        EncodedRanking(tuple(pairs[number].rejected for number in one), places)
        for one, places in zip(ranked, ranks, strict=True)
    ]

    def batches(budget: int, order: Sequence[int]) -> list[Rankings]:
        return microbatches(by_prompt([rankings[number] for number in order], 64), budget, rankings_batch)

    return Case(tiny_reward_model(family).double(), ranking_loss, batches, ROUNDED)


def rating_case(family: str, *, labels: bool = False) -> Case:
    ratings = [
        EncodedRating(pair.chosen, number % 2 if labels else number % 4, annotator=number % 3 - 1)
        for number, pair in enumerate(comparisons())
    ]

    def batches(budget: int, order: Sequence[int]) -> list[Ratings]:
        return microbatches(by_prompt([ratings[number] for number in order], 64), budget, ratings_batch)

    thresholds = Thresholds([3, 5] if labels else [1, 1, 2, 9], 2)
    module = JudgedModel(tiny_reward_model(family), thresholds).double()
    return Case(module, label_loss(thresholds) if labels else rating_loss(thresholds), batches, ROUNDED)


def label_case(family: str) -> Case:
    return rating_case(family, labels=True)


CASES = {
    "sft": sft_case,
    "ppo": ppo_case,
    "reward": reward_case,
    "rankings": ranking_case,
    "ratings": rating_case,
    "labels": label_case,
    "dpo": dpo_case,
    "kto": kto_case,
}
NORMAL, SHUFFLED = list(range(8)), [5, 2, 7, 0, 3, 6, 1, 4]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CASES)
def test_any_token_budget_and_any_order(kind: str, family: str) -> None:
    case = CASES[kind](family)
    expected = case(100_000, NORMAL)
    assert len(case.batches(1, NORMAL)) > len(case.batches(100_000, NORMAL)) == 1
    for budget in BUDGETS:
        case.assert_same(case(budget, NORMAL), expected)
        case.assert_same(case(budget, SHUFFLED), expected)


@pytest.mark.parametrize("kind", CASES)
def test_it_is_not_the_mean_of_micro_batch_means(kind: str) -> None:
    """The mistake that these tests are for would show here."""
    case = CASES[kind]("gpt2")
    batches = case.batches(30, NORMAL)
    assert len(batches) > 1
    means = [loss_and_gradient(case.module, case.loss, [batch])[0] for batch in batches]
    whole = case(100_000, NORMAL)[0]
    assert abs(sum(means) / len(means) - whole) > 1e-3 * abs(whole)


def statistics(case: Case, budget: int) -> dict[str, float]:
    learner = GradientLearner[Any]("x", case.module, case.loss, OptimConfig(), total_steps=1)
    return learner.measure(case.batches(budget, NORMAL)).means()


@pytest.mark.parametrize("kind", CASES)
def test_statistics_are_those_of_the_minibatch(kind: str) -> None:
    case = CASES[kind]("gpt2")
    expected = statistics(case, 100_000)
    for budget in BUDGETS:
        assert statistics(case, budget) == pytest.approx(expected, rel=1e-6)


def step_of(kind: str, batches: Callable[[Case], Sequence[Any]]) -> tuple[Tensor, dict[str, float]]:
    """All weights after one optimiser step, and what it reports."""
    case = CASES[kind]("gpt2")
    learner = GradientLearner[Any]("x", case.module, case.loss, OptimConfig(lr=1e-3, warmup=0.0), total_steps=9)
    metrics = learner.step(batches(case)).means()
    return torch.cat([weight.detach().flatten() for weight in case.module.parameters()]), metrics


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_eight_rows_are_eight_times_one_row_and_one_times_eight(kind: str) -> None:
    eight, reported = step_of(kind, lambda case: case.batches(100_000, NORMAL))
    ones, cut = step_of(kind, lambda case: case.batches(1, NORMAL))
    by_hand, _ = step_of(kind, lambda case: [case.batches(1, [row])[0] for row in SHUFFLED])
    start = torch.cat([weight.detach().flatten() for weight in CASES[kind]("gpt2").module.parameters()])
    assert float((eight - start).norm()) > 1e-3
    # Adam divides by the gradient's size, so a weight whose gradient is all rounding error may move either way.
    assert distance(ones - start, eight - start) < (1e-9 if kind == "sft" else 1e-3)
    assert distance(by_hand - start, eight - start) < (1e-9 if kind == "sft" else 1e-3)
    assert cut == pytest.approx(reported, rel=1e-6)


# --- padding


def further(batch: Sequences, rows: Sequence[EncodedRow], fill: int) -> Sequences:
    wide = padded_further(list(rows), 6, fill=fill)
    assert torch.equal(wide.lengths, batch.lengths)
    return wide


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fill", [0, 77])
def test_padding_of_any_content_and_width_sft(family: str, fill: int) -> None:
    case = sft_case(family)
    wide = further(pad_rows(ROWS), ROWS, fill)
    case.assert_same(loss_and_gradient(case.module, case.loss, [wide]), case(100_000, NORMAL))


def padded(field: Tensor) -> Tensor:
    return nn.functional.pad(field, (0, 6), value=float("nan"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fill", [0, 77])
def test_padding_of_any_content_and_width_ppo(family: str, fill: int) -> None:
    case = ppo_case(family)
    batch: PolicyBatch = case.batches(100_000, NORMAL)[0]
    order = [ROWS.index(row) for row in rows_of(batch.sequences)]
    wide = PolicyBatch(
        further(batch.sequences, [ROWS[row] for row in order], fill),
        padded(batch.old_logprobs),
        padded(batch.old_values),
        padded(batch.advantages),
        padded(batch.returns),
    )
    case.assert_same(loss_and_gradient(case.module, case.loss, [wide]), case(100_000, NORMAL))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fill", [0, 77])
def test_padding_of_any_content_and_width_reward(family: str, fill: int) -> None:
    case = reward_case(family)
    batch: Pairs = case.batches(100_000, NORMAL)[0]
    wide = replace(batch, rows=further(batch.rows, rows_of(batch.rows), fill))
    case.assert_same(loss_and_gradient(case.module, case.loss, [wide]), case(100_000, NORMAL))


# --- responses that are compared more than once


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_computed_once_or_for_each_of_its_comparisons(family: str) -> None:
    case, pairs = reward_case(family), comparisons()
    shared: Pairs = case.batches(100_000, NORMAL)[0]
    assert len(shared.rows) < 2 * len(pairs)
    repeated = Pairs(
        rows=pad_rows([row for pair in pairs for row in (pair.chosen, pair.rejected)]),
        chosen=torch.arange(0, 2 * len(pairs), 2),
        rejected=torch.arange(1, 2 * len(pairs), 2),
        margins=torch.tensor([pair.margin for pair in pairs]),
        weights=torch.tensor([pair.weight for pair in pairs]),
    )
    case.assert_same(loss_and_gradient(case.module, case.loss, [repeated]), case(100_000, NORMAL))
    alone = [microbatches([[pair]], 100_000, pairs_batch)[0] for pair in pairs]
    case.assert_same(loss_and_gradient(case.module, case.loss, alone), case(100_000, NORMAL))
