"""The reward model: 32 pairs of texts of 20 to 128 tokens, three steps a round (`python -m benchmarks.reward`)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.comparison import Benchmark, Work, main
from benchmarks.measure import Round, Side
from benchmarks.models import Size
from benchmarks.peers import trl
from benchmarks.steps import BATCH, LONGEST, SHORTEST, STEPS, rounds_of_steps, texts_for


def specify(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Pairs for every step."""
    chosen, rejected = (texts_for(options, size, STEPS, SHORTEST, LONGEST, part) for part in range(2))
    return {"chosen": chosen, "rejected": rejected, "batch": BATCH, "steps": STEPS, "loss_tolerance": 1e-4}


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side: the head of the given model, where a stage would draw a new one."""
    from benchmarks.keel_side import make_shelf
    from keel.config.reward import RewardConfig
    from keel.engines.learner import GradientLearner
    from keel.engines.losses import reward_loss
    from keel.models.reward import RewardModel
    from keel.pipeline.judgements import EncodedPair, microbatches, pairs_batch
    from keel.records import EncodedRow, Pairs

    path = spec["models"]["reward"]
    config = RewardConfig(batch=spec["batch"], lr=spec["lr"], schedule="constant", head_lr_scale=1.0)
    shelf = make_shelf(spec)
    (given,) = shelf.reward_models(path, "the head")
    head = given.head_weights[0].detach().clone()
    del given
    shelf.release("the head")
    model = shelf.new_reward_model(path)
    assert isinstance(model, RewardModel)
    model.set_head(head)
    loss = reward_loss(config.flip_probability, config.label_smoothing)
    learner = GradientLearner[Pairs]("reward", model, loss, config, total_steps=len(spec["chosen"]))
    pairs = [
        EncodedPair(EncodedRow(tuple(chosen), 1), EncodedRow(tuple(rejected), 1), 0.0, 1.0)
        for chosen, rejected in zip(spec["chosen"], spec["rejected"], strict=True)
    ]

    def batches(numbers: Any) -> list[Pairs]:
        return microbatches([[pairs[number]] for number in numbers], config.token_budget, pairs_batch)

    def done(numbers: Any) -> dict[str, float]:
        tokens = sum(len(row.tokens) for number in numbers for row in pairs[number].rows)
        return {"pairs": len(numbers), "tokens trained": tokens}

    return rounds_of_steps(spec, learner, "reward/loss", batches, done)


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: every token through the body."""
    return {"all": 6 * size.body * one.counts["tokens trained"]}


BENCHMARK = Benchmark(
    module="benchmarks.reward",
    work=Work("Reward model", "pairs", ("pairs", "tokens trained", "optimiser steps")),
    peers={"trl": trl("1.16.0", "trl_reward.py")},
    specify=specify,
    measure=measure,
    flops=flops,
)

if __name__ == "__main__":
    main(BENCHMARK)
