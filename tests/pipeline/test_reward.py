"""The reward model's stage: how good it says it is, and that the scores it hands on are centred and scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from keel.assessment.statistics import wilson_interval
from keel.batching import pad_rows
from keel.config.data import DataConfig
from keel.config.reward import RewardConfig
from keel.engines.base import DrawKey
from keel.engines.learner import GradientLearner
from keel.engines.losses import reward_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.models.export import save_reward_model
from keel.models.load import load_classifier
from keel.models.reward import RewardModel
from keel.pipeline.epochs import total_steps
from keel.pipeline.judgements import EncodedPair, by_prompt, microbatches, mixture_of, pairs_batch
from keel.pipeline.reward import (
    HeldOut,
    RewardEngines,
    bootstrap,
    judge,
    train_reward,
)
from keel.records import EncodedRow, Pairs, PromptItem
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.pipeline.support import EOS, PROMPT, Heard, begin_stage, toy_config, toy_policy, toy_renderer

PROMPTS = [PROMPT, PromptItem(tokens=(5,), text="d", row={}, source="d")]


def pair(chosen: Sequence[int], rejected: Sequence[int], prompt: Sequence[int] = (2, 3), **more: Any) -> EncodedPair:
    sides = [EncodedRow((*prompt, *response), len(prompt)) for response in (chosen, rejected)]
    return EncodedPair(sides[0], sides[1], **{"margin": 0.0, "weight": 1.0, **more})


# --- how it is judged ---


def length_of(rows: Sequence[EncodedRow]) -> Tensor:
    return torch.tensor([float(row.response_length) for row in rows])


def test_judging_a_ruler() -> None:
    pairs = [
        pair((2, 2, EOS), (3, EOS), first_probability=0.9),  # the longer one was chosen
        pair((2, EOS), (3, 3, EOS), first_probability=0.4),  # the shorter one
        pair((2, EOS), (3, EOS), first_probability=0.5),  # a tie counts one half
        pair((2, 2, 2, EOS), (3, EOS), first_probability=0.2),
    ]
    judged = judge(length_of, pairs)
    assert judged["accuracy"] == judged["longer_wins"] == 2.5 / 4
    assert judged["accuracy_interval"] == wilson_interval(0.625, 4)
    assert judged["noise_ceiling"] == pytest.approx((0.9 + 0.6 + 0.5 + 0.8) / 4)
    judged = judge(lambda rows: -length_of(rows), pairs)
    assert (judged["accuracy"], judged["longer_wins"]) == (1.5 / 4, 2.5 / 4)


def test_without_known_noise_there_is_no_ceiling() -> None:
    assert judge(length_of, [pair((2, EOS), (3, EOS))])["noise_ceiling"] is None
    mixed = [pair((2, EOS), (3, EOS)), pair((2, EOS), (3, EOS), first_probability=0.9)]
    assert judge(length_of, mixed)["noise_ceiling"] is None


# --- what it learns from ---


def test_comparisons_are_grouped_by_prompt() -> None:
    one, two, three = pair((2, EOS), (4, EOS)), pair((2, EOS), (4, EOS), prompt=(5,)), pair((6, EOS), (2, EOS))
    assert by_prompt([one, two, three], 64) == [[one, three], [two]]
    assert by_prompt([one, two, three, one], 2) == [[one, three], [one], [two]]


def test_a_response_stands_in_its_batch_once() -> None:
    best, good, bad = (2, EOS), (3, EOS), (4, 4, EOS)
    group = [pair(best, good, weight=2.0), pair(best, bad, margin=0.5), pair(good, bad)]
    (batch,) = microbatches([group], 1000, pairs_batch)
    assert len(batch.rows) == 3
    tokens = batch.rows.tokens.tolist()
    for index, expected in enumerate(group):
        for side, row in (("chosen", expected.chosen), ("rejected", expected.rejected)):
            number = int(getattr(batch, side)[index])
            assert tokens[number][: int(batch.rows.lengths[number])] == list(row.tokens)
    assert batch.margins.tolist() == [0.0, 0.5, 0.0]
    assert (batch.weights.tolist(), batch.weight) == ([2.0, 1.0, 1.0], 4.0)


def test_microbatches_keep_groups_whole_and_to_the_budget() -> None:
    groups = [
        [pair((2, EOS), (3, EOS), prompt=(5,)), pair((2, EOS), (4, EOS), prompt=(5,))],
        [pair((6, EOS), (7, EOS))],
    ]
    batches = microbatches(groups * 3, 12, pairs_batch)
    assert sum(len(batch.margins) for batch in batches) == 9
    assert all(batch.rows.tokens.numel() <= 12 for batch in batches)
    assert len(batches) > 1


def test_each_member_draws_its_own_prompts() -> None:
    """Poisson numbers of mean and variance 1, alike for all comparisons of a prompt, whatever follows."""
    pairs = [pair((2, EOS), (word, EOS), prompt=(first, second)) for first in range(2, 42) for second in range(2, 42)
             for word in (3, 4)]  # fmt: skip
    drawn = bootstrap(pairs, 3, Draws(0, "reward"))
    assert [one.drawn for one in drawn[::2]] == [one.drawn for one in drawn[1::2]]
    assert [replace(one, drawn=()) for one in drawn] == pairs
    assert bootstrap(pairs[:10], 3, Draws(0, "reward")) == drawn[:10]
    times = torch.tensor([one.drawn for one in drawn[::2]]).double()
    assert times.shape == (1600, 3)
    torch.testing.assert_close(times.mean(dim=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.1)
    torch.testing.assert_close(times.var(dim=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.15)
    assert float(torch.corrcoef(times.T).triu(1).abs().max()) < 0.1
    (batch,) = microbatches(by_prompt(drawn[:2], 64), 1000, pairs_batch)
    assert batch.drawn is not None
    assert batch.drawn.tolist() == [list(map(float, one.drawn)) for one in drawn[:2]]


# --- the stage ---


def toy_reward_model(*, head: float = 0.01) -> RewardModel:
    config = toy_config()
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        loader: Any = AutoModelForSequenceClassification  # untyped
        model: nn.Module = loader.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    made = RewardModel(model.eval())
    with torch.no_grad():
        made.head.get_parameter("weight").mul_(head)
    return made


# Word 4 first is preferred to anything else, twice over; word 6 is liked least.
TRAIN = [pair((4, word, EOS), (word, 4, EOS)) for word in (2, 3, 5, 7)] + [
    pair((word, EOS), (6, EOS), prompt=(5,)) for word in (2, 3, 4, 5, 7)
]
HELD_OUT = [pair((4, 2, 2, EOS), (2, 4, 2, EOS)), pair((3, 3, EOS), (6, 3, EOS), prompt=(5,))]


def config_of(**changes: Any) -> RewardConfig:
    settings: dict[str, Any] = {
        "data": DataConfig(path="toy.jsonl"),
        "epochs": 40,
        "batch": 2,
        "lr": 1e-2,
        "normalise_samples": 200,
        "normalise_sampling": {"max_new_tokens": 4},
        "validate_every": 40,
    }
    return RewardConfig.model_validate(settings | changes)


def train(
    folder: Path, model: RewardModel, validation: Sequence[EncodedPair] = HELD_OUT, **changes: Any
) -> dict[str, Any]:
    config = config_of(**changes)
    renderer = toy_renderer()
    scorer = RewardModelScorer("reward", model, token_budget=1000)
    learner = GradientLearner[Pairs](
        "reward",
        model,
        reward_loss(config.flip_probability, config.label_smoothing),
        config,
        total_steps=total_steps(config, len(by_prompt(TRAIN, config.max_pairs))),
        head=tuple(model.head.parameters()),
        head_lr_scale=config.head_lr_scale,
    )
    engines = RewardEngines(
        learner=learner,
        collate=pairs_batch,
        score_rows=scorer.score_rows,
        scorer=scorer,
        reference=CachedSampler(toy_policy(), renderer),
        normalise=model.normalise,
        export=lambda target, scale: save_reward_model(model, renderer.codec.hf, target, scale=scale),
    )
    return train_reward(
        config,
        engines,
        TRAIN,
        HeldOut(validation, validation),
        PROMPTS,
        weights=(1.0,),
        stage=begin_stage(folder, "reward"),
        draws=Draws(0, "reward"),
        console=Heard(),
    )


def reference_scores(model: RewardModel, config: RewardConfig) -> Tensor:
    """The scores of the very samples on which the stage normalises, drawn anew."""
    draws = Draws(0, "reward")
    rows = draws.batch_indices("normalise", len(PROMPTS), batch=config.normalise_samples, start=0)
    samples = CachedSampler(toy_policy(), toy_renderer()).sample(
        [PROMPTS[row] for row in rows], config.normalise_sampling, DrawKey(draws, "normalise response", iteration=0)
    )
    return RewardModelScorer("reward", model, token_budget=1000).score(samples).total.double()


def test_it_learns_the_preference_and_its_scores_are_centred_and_scaled(tmp_path: Path) -> None:
    model = toy_reward_model()
    summary = train(tmp_path, model)
    assert (summary["accuracy"], summary["longer_wins"]) == (1.0, 0.5)
    assert (summary["pairs"], summary["validation_pairs"], summary["steps"]) == (9, 2, 40)
    scores = reference_scores(model, config_of())
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert summary["score_scale"] != pytest.approx(1.0, abs=0.1)  # it had something to do
    lines = read_lines(tmp_path / "reward" / "metrics.jsonl")
    assert lines[0]["reward/loss"] == pytest.approx(math.log(2), abs=0.02)  # a new head knows nothing
    assert lines[-1]["reward/validation/accuracy"] == 1.0


def test_the_saved_model_scores_as_before_saving(tmp_path: Path) -> None:
    model = toy_reward_model()
    summary = train(tmp_path, model)
    folder = tmp_path / "reward" / "model"
    rows = [side for each in (*TRAIN, *HELD_OUT) for side in (each.chosen, each.rejected)]
    before = RewardModelScorer("reward", model, token_budget=1000).score_rows(rows)
    again = RewardModel(load_classifier(str(folder))).eval()
    torch.testing.assert_close(
        RewardModelScorer("r", again, token_budget=20).score_rows(rows), before, rtol=0, atol=1e-5
    )

    alone: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = pad_rows(rows)
    positions = torch.arange(batch.tokens.shape[1])
    tokens = torch.where(positions < batch.lengths[:, None], batch.tokens, alone.config.pad_token_id)
    with torch.no_grad():
        logits = alone(input_ids=tokens).logits.squeeze(-1)
    torch.testing.assert_close(logits - alone.config.keel_reward_shift, before, rtol=0, atol=1e-5)

    kept = json.loads((folder / "keel_reward.json").read_text())
    assert kept["scale"] == pytest.approx(summary["score_scale"])
    assert kept["shift"] == pytest.approx(summary["score_mean_before"] / summary["score_scale"])


def test_constant_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        train(tmp_path, toy_reward_model(head=0.0), epochs=1, lr=1e-30)
    assert str(raised.value) == (
        "the reward model gives all 200 reference samples the same score, so it has learned nothing that could be "
        "scaled; train it longer, raise its learning rate, or look at the comparisons"
    )
    assert not (tmp_path / "reward" / "model").exists()


def test_without_held_out_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    summary = train(tmp_path, toy_reward_model(), validation=[], epochs=2)
    assert set(summary) == {
        *("steps", "pairs", "validation_judgements", "validation_pairs", "validation_ties", "validation"),
        *("score_mean_before", "score_scale", "kinds", "thresholds"),
    }
    assert summary["validation"] == {}


def test_validation_is_measured_on_the_pairs_themselves(tmp_path: Path) -> None:
    """-log sigma of each gap and the share that is right, pair by pair."""
    model = toy_reward_model(head=1.0)
    train(tmp_path, model, epochs=1, lr=1e-30)
    (line,) = read_lines(tmp_path / "reward" / "metrics.jsonl")
    fresh = RewardModelScorer("r", toy_reward_model(head=1.0), token_budget=1000)
    gaps = [
        float(fresh.score_rows([each.chosen])[0]) - float(fresh.score_rows([each.rejected])[0]) for each in HELD_OUT
    ]
    assert line["reward/validation/loss"] == pytest.approx(
        sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps), abs=1e-5
    )
    assert line["reward/validation/accuracy"] == sum(gap > 0 for gap in gaps) / len(gaps)
    assert line["reward/validation/margin"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)


def test_several_sources_are_met_by_their_weights_and_judged_by_kind(tmp_path: Path) -> None:
    """The same prompt in two sources is two groups; the groups stand source after source."""
    both = [*TRAIN, *(replace(pair, source=1) for pair in TRAIN)]
    groups = by_prompt(both, 64)
    number = len(by_prompt(TRAIN, 64))
    assert [{pair.source for pair in group} for group in groups] == [{0}] * number + [{1}] * number
    mixture = mixture_of(groups, (2.0, 1.0))
    assert (mixture.sizes, mixture.counts) == ((number, number), (2 * number, number))

    held_out = [
        replace(HELD_OUT[index % 2], kind=kind) for index, kind in enumerate(["safety", "domain", None, "domain"])
    ]
    model = toy_reward_model()
    summary = train(tmp_path, model, held_out)
    line = read_lines(tmp_path / "reward" / "metrics.jsonl")[-1]
    for kind in ("safety", "domain"):
        mine = [pair for pair in held_out if pair.kind == kind]
        assert mine
        right = [naive_win(model, pair) for pair in mine]
        assert summary["kinds"][kind]["pairs"] == len(mine)
        assert summary["kinds"][kind]["accuracy"] == pytest.approx(sum(right) / len(right))
        assert line[f"reward/validation/accuracy/{kind}"] == pytest.approx(sum(right) / len(right))
    assert set(summary["kinds"]) == {"safety", "domain"}


@torch.no_grad()
def naive_win(model: RewardModel, pair: EncodedPair) -> float:
    chosen, rejected = (float(model(pad_rows([row]))) for row in (pair.chosen, pair.rejected))
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
