"""DPO: 32 pairs a step, texts of 20 to 128 tokens of which 10 to 32 are the prompt (`python -m benchmarks.dpo`).

TRL computes the reference in every step, which is its default; Keel does so once for all epochs. The work is equal
here: the reference's pass over a step's pairs counts in Keel's time, as in a run of one epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.comparison import Benchmark, Work, main
from benchmarks.measure import Round, Side
from benchmarks.models import EOS, Size
from benchmarks.peers import trl
from benchmarks.steps import BATCH, LONGEST, SHORTEST, rounds_of_steps, texts_for

PROMPTS = (10, 32)


def specify(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Pairs for every step; the responses without the token that ends them."""
    prompts = texts_for(options, size, 1, *PROMPTS)
    shortest, longest = SHORTEST - PROMPTS[0] - 1, LONGEST - PROMPTS[1] - 1
    chosen, rejected = (texts_for(options, size, 1, shortest, longest, part) for part in (1, 2))
    columns = {"prompts": prompts, "chosen": chosen, "rejected": rejected}
    return {**columns, "batch": BATCH, "steps": 1, "beta": 0.1, "micro": options.micro, "loss_tolerance": 1e-4}


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side."""
    from benchmarks.keel_side import make_shelf
    from keel.build.workbench import SCORING_TOKENS
    from keel.config.direct import DirectConfig
    from keel.engines.direct import choices_loss
    from keel.engines.learner import GradientLearner
    from keel.engines.scorers import PolicyScorer
    from keel.pipeline.judgements import microbatches
    from keel.pipeline.preferences import EncodedChoice, choices_batch
    from keel.pipeline.reference import response_logprobs
    from keel.records import Choices, EncodedRow

    config = DirectConfig(
        batch=spec["batch"],
        token_budget=2 * spec["micro"] * LONGEST,
        lr=spec["lr"],
        schedule="constant",
        beta=spec["beta"],
    )
    shelf = make_shelf(spec)
    reference = shelf.frozen_policy(spec["models"]["reference"], "reference")
    scorer = PolicyScorer(reference, temperature=1.0, token_budget=SCORING_TOKENS)
    policy = shelf.trained_policy(spec["models"]["policy"])
    learner = GradientLearner[Choices]("direct", policy, choices_loss(config), config, total_steps=len(spec["chosen"]))

    def row(prompt: list[int], response: list[int]) -> EncodedRow:
        return EncodedRow((*prompt, *response, EOS), len(prompt))

    pairs = [
        EncodedChoice(row(prompt, chosen), row(prompt, rejected))
        for prompt, chosen, rejected in zip(spec["prompts"], spec["chosen"], spec["rejected"], strict=True)
    ]

    def batches(numbers: Any) -> list[Choices]:
        rows = [row for number in numbers for row in pairs[number].rows]
        known = dict(zip(rows, response_logprobs(scorer, rows, SCORING_TOKENS).tolist(), strict=True))
        return microbatches([[pairs[number]] for number in numbers], config.token_budget, choices_batch(known))

    def done(numbers: Any) -> dict[str, float]:
        rows = [row for number in numbers for row in pairs[number].rows]
        return {
            "pairs": len(numbers),
            "tokens trained": sum(len(row.tokens) for row in rows),
        }

    return rounds_of_steps(spec, learner, "direct/loss", batches, done)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The cut into micro-batches, on both sides."""
    parser.add_argument("--micro", type=int, default=BATCH, help="pairs a forward, on both sides")


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: the policy's update and a forward of the reference, the head where a response is predicted."""
    pairs, tokens = one.counts["pairs"], one.counts["tokens trained"]
    prompts = 2 * pairs * sum(map(len, spec["prompts"])) / len(spec["prompts"])  # on average
    return {"all": (6 + 2) * (size.body * tokens + size.head * (tokens - prompts))}


BENCHMARK = Benchmark(
    module="benchmarks.dpo",
    work=Work("DPO", "pairs", ("pairs", "tokens trained", "optimiser steps")),
    peers={"trl": trl("1.16.0", "trl_dpo.py")},
    specify=specify,
    measure=measure,
    flops=flops,
    add_options=add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
