"""GRPO: 16 prompts of 32 tokens, four completions of at most 64 each (`python -m benchmarks.grpo`).

As TRL does by default, one optimiser step a generation batch. The reward is a function that costs nothing. Both sides
have a reference and TRL's form of the leash (k3 in the loss); with `--beta 0` TRL has none, and Keel still computes
the reference's log-probabilities, for it always says how far the policy is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.comparison import MAX_LENGTH, PROMPT_LENGTH, Benchmark, Work, main
from benchmarks.measure import Round, Side
from benchmarks.models import Size, as_text, random_texts
from benchmarks.peers import trl

PROMPTS, PER_PROMPT = 16, 4


def specify(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Prompts for every round."""
    prompts = random_texts(PROMPTS * (options.rounds + 1), PROMPT_LENGTH, PROMPT_LENGTH, size.vocab, options.seed)
    return {
        "prompts": [as_text(tokens) for tokens in prompts],
        "batch": PROMPTS * PER_PROMPT,
        "per_prompt": PER_PROMPT,
        "prompt_length": PROMPT_LENGTH,
        "max_length": MAX_LENGTH,
        "beta": options.beta,
        "micro": options.micro,
    }


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side."""
    from benchmarks.keel_side import Rollouts
    from keel.config.ppo import PPOConfig

    config = PPOConfig.model_validate(
        {
            "prompts": "given.jsonl",
            "rollout_batch": spec["batch"],
            "per_prompt": spec["per_prompt"],
            "sampling": {"max_new_tokens": spec["max_length"], "batch": spec["batch"]},
            "reward": [{"function": "benchmarks.keel_side:distinct_words"}],
            "advantage": {"kind": "grpo"},
            "kl": {"coef": spec["beta"], "place": "loss", "estimator": "token_k3"},
            "update": {
                "epochs": 1,
                "minibatches": 1,
                "token_budget": spec["micro"] * (spec["prompt_length"] + spec["max_length"]),
                "lr": spec["lr"],
            },
        }
    )
    return Rollouts(spec, config, "completions").measure(spec["rounds"])


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: a forward each of policy and reference, and the policy's update."""
    sampled = one.counts["tokens sampled"]
    once = size.body * (one.counts["completions"] * spec["prompt_length"] + sampled) + size.head * sampled
    return {"sampling": 2 * once, "scoring": 2 * once if spec["beta"] else 0.0, "updating": 6 * once}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The leash, and the cut into micro-batches."""
    parser.add_argument("--micro", type=int, default=32, help="completions a forward of the update, on both sides")
    parser.add_argument("--beta", type=float, default=0.04, help="price of the KL in the loss")


BENCHMARK = Benchmark(
    module="benchmarks.grpo",
    work=Work("GRPO", "completions", ("completions", "optimiser steps"), ("tokens sampled", "tokens trained")),
    peers={"trl": trl("1.16.0", "trl_grpo.py")},
    specify=specify,
    measure=measure,
    flops=flops,
    add_options=add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
