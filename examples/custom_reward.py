"""A reward of your own: PPO teaches a small model, made from nothing, to reply briefly and to end its sentences.

    python examples/custom_reward.py [OUT]

A reward is a function of prompts, responses and the data's other columns, one number a response (or None: no
opinion). It is hashed with its file: change it, and the stage that used it is no longer the same stage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keel

LONGEST = 24  # tokens


def brief(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Minus a tenth a word, and minus one where the last sentence does not end."""
    return [-0.1 * len(text.split()) - (not text.rstrip().endswith((".", "?", "!"))) for text in responses]


def main(out: Path) -> keel.StageResult:
    scratch = keel.ScratchConfig(hidden=32, layers=2, heads=2, vocab=512, context=128)
    start = keel.sft(
        keel.SFTConfig(
            data=keel.DataConfig(function="keel.demo:demonstrations", limit=1000), epochs=4, batch=16, lr=5e-3
        ),
        model=keel.ModelConfig(scratch=scratch),
        out=out,
    )
    trained = keel.ppo(
        keel.PPOConfig(
            prompts=keel.DataConfig(function="keel.demo:prompts", limit=400),
            iterations=8,
            rollout_batch=32,
            sampling=keel.RLSamplingConfig(max_new_tokens=LONGEST),
            reward=(keel.RewardSource(function=keel.reference_to(brief)),),
            kl=keel.KLConfig(coef=0.02),
            update=keel.UpdateConfig(lr=2e-3, epochs=2, minibatches=2),
            max_truncated=1.0,  # a model this small hardly ever ends, to begin with
        ),
        model=start.model,
        out=out,
    )
    first, last = trained.metrics()[0], trained.metrics()[-1]
    print(f"length of a held-out reply: {first['eval/length']:.1f} → {last['eval/length']:.1f} tokens")
    print(f"its reward: {first['eval/scores']:.2f} → {last['eval/scores']:.2f}, at {last['eval/kl']:.1f} nats of KL")
    print(f"the model: {trained.model}")
    return trained


if __name__ == "__main__":
    trained = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom-reward"))
