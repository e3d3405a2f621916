"""Supervised fine-tuning: rows of 20 to 128 tokens, 32 a step, three steps a round (`python -m benchmarks.sft`).

Keel packs; TRL packs too, which is its better mode, or with `--mode padded` does not. Packed, TRL chooses which rows
meet in a step, so there the tokens of a step agree only on average, and the first loss to a per cent.
"""

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
    """Rows for every step."""
    rows = texts_for(options, size, STEPS, SHORTEST, LONGEST)
    return {
        "rows": rows,
        "batch": BATCH,
        "steps": STEPS,
        "longest": LONGEST,
        "mode": options.mode,
        "loss_tolerance": 0.01 if options.mode == "packed" else 1e-4,
    }


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side."""
    from benchmarks.keel_side import make_shelf
    from keel.batching import text_batches
    from keel.config.sft import SFTConfig
    from keel.engines.learner import GradientLearner
    from keel.engines.losses import sft_loss
    from keel.records import EncodedText, Texts

    config = SFTConfig.model_validate(
        {"data": "given.jsonl", "batch": spec["batch"], "lr": spec["lr"], "schedule": "constant"}
    )
    rows = [EncodedText(tuple(ids), (False, *[True] * (len(ids) - 1))) for ids in spec["rows"]]
    policy = make_shelf(spec).trained_policy(spec["models"]["policy"])
    learner = GradientLearner[Texts]("sft", policy, sft_loss, config, total_steps=len(rows))

    def batches(numbers: Any) -> list[Texts]:
        return text_batches([rows[number] for number in numbers], config.token_budget)

    def done(numbers: Any) -> dict[str, float]:
        return {"tokens trained": sum(len(rows[number].tokens) for number in numbers)}

    return rounds_of_steps(spec, learner, "sft/loss", batches, done)


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: every token through body and head, but each row's last one, which predicts nothing."""
    tokens = one.counts["tokens trained"]
    predicted = tokens - spec["batch"] * one.counts["optimiser steps"]
    return {"all": 6 * (size.body * tokens + size.head * predicted)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """TRL's mode."""
    parser.add_argument("--mode", choices=("packed", "padded"), default="packed", help="TRL's; Keel always packs")


BENCHMARK = Benchmark(
    module="benchmarks.sft",
    work=Work("SFT", "tokens trained", ("optimiser steps",), ("tokens trained",)),
    peers={"trl": trl("1.16.0", "trl_sft.py")},
    specify=specify,
    measure=measure,
    flops=flops,
    add_options=add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
