"""PPO: 64 prompts of 32 tokens, responses of at most 64, four epochs of four minibatches (`python -m benchmarks.ppo`).

A separate reward model on both sides. TRL's critic is a network of its own; Keel's is that too, or with
`--critic head` a head on the policy's backbone. With `--tune lora` Keel's policy, critic, reference and reward model
are adapters on one frozen base, beside TRL's four models.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import MAX_LENGTH, PROMPT_LENGTH, Benchmark, Work, main
from benchmarks.measure import Round, Side
from benchmarks.models import Models, Size, as_text, random_texts
from benchmarks.peers import HOME, trl

if TYPE_CHECKING:
    from benchmarks.keel_side import Rollouts

BATCH, EPOCHS, MINIBATCHES = 64, 4, 4
LEARNING_RATE = 1e-7  # at 1e-6 a critic head's gradient, always of one sign, turns the backbone: responses get shorter


def specify(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Prompts for every round, and the layout."""
    models = Models(HOME / "models" / options.size)
    prompts = random_texts(BATCH * (options.rounds + 1), PROMPT_LENGTH, PROMPT_LENGTH, size.vocab, options.seed)
    return {
        "prompts": [as_text(tokens) for tokens in prompts],
        "batch": BATCH,
        "epochs": EPOCHS,
        "minibatches": MINIBATCHES,
        "prompt_length": PROMPT_LENGTH,
        "max_length": MAX_LENGTH,
        "critic": options.critic,
        "tune": options.tune,
        "lr": LEARNING_RATE,
        "on_base": reward_on_base(models, models.paths()["policy"]) if options.tune == "lora" else None,
    }


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side."""
    return rollouts(spec).measure(spec["rounds"])


def rollouts(spec: Mapping[str, Any]) -> Rollouts:
    """Keel's engines for this specification."""
    from benchmarks.keel_side import Rollouts
    from keel.config.ppo import PPOConfig

    config = PPOConfig.model_validate(
        {
            "prompts": "given.jsonl",
            "rollout_batch": spec["batch"],
            "sampling": {"max_new_tokens": spec["max_length"], "batch": spec["batch"]},
            "reward": [{"model": spec["on_base"] or spec["models"]["reward"]}],
            "critic": spec["critic"],
            "update": {
                "epochs": spec["epochs"],
                "minibatches": spec["minibatches"],
                "lr": spec["lr"],
                "critic_lr_scale": 1.0,
            },
        }
    )
    return Rollouts(spec, config, "episodes")


def reward_on_base(models: Models, policy: str) -> str:
    """A reward model that is an adapter on that policy's base, as a reward stage with `tune: lora` leaves it."""
    from benchmarks.keel_side import make_shelf
    from keel.build.workbench import load_renderer

    scratch = models.folder / f"reward-on-{Path(policy).name}"
    made = scratch / "stage" / "model"
    if not (made / "keel_reward.json").exists():  # what is written last
        shelf = make_shelf({"models": {"policy": policy}, "tune": "lora", "scratch": str(scratch), "seed": 0})
        made.mkdir(parents=True, exist_ok=True)
        model = shelf.new_reward_model(policy)
        shelf.export_reward_model(model, load_renderer(policy), policy)(made, 1.0)
    return str(made.resolve())


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: 2 a weight and token forward, 4 more backward (2 where the weights are frozen).

    The critic's head on the policy's states costs nothing, and its old values come with the sampling.
    """
    sampled = one.counts["tokens sampled"]
    tokens = one.counts["episodes"] * spec["prompt_length"] + sampled
    network = spec["critic"] == "network"
    trained = 4 if spec["tune"] == "lora" else 6
    once = size.body * tokens + size.head * sampled
    return {
        "sampling": 2 * once,
        "scoring": 2 * (once + size.body * tokens * (2 if network else 1)),
        "updating": trained * spec["epochs"] * (once + size.body * tokens * network),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Keel's layout."""
    parser.add_argument("--critic", choices=("network", "head"), default="network", help="Keel's; TRL's is a network")
    parser.add_argument("--tune", choices=("full", "lora"), default="full", help="Keel's; TRL trains all weights")


BENCHMARK = Benchmark(
    module="benchmarks.ppo",
    work=Work("PPO", "episodes", ("episodes", "optimiser steps"), ("tokens sampled", "tokens trained")),
    peers={"trl": trl("1.12.0", "trl_ppo.py")},
    specify=specify,
    measure=measure,
    flops=flops,
    add_options=add_options,
    peer_changes={"critic": "network", "tune": "full"},
)

if __name__ == "__main__":
    main(BENCHMARK)
