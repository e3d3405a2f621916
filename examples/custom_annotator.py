"""An annotator of your own: whatever can compare two responses gives the feedback for a reward model.

    python examples/custom_annotator.py [OUT]

An annotator has one method, `compare`. It may ask a person, a service or a model; here it counts words. What it does
not know (a margin, how sure it is) it leaves out, and Keel then makes no claim that would need it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import keel


class Brief:
    """Prefers the response of fewer words; between equals the given random number decides."""

    def compare(self, pairs: Sequence[keel.Pair], uniforms: Sequence[float]) -> list[keel.Judgement]:
        return [self._judge(pair, uniform) for pair, uniform in zip(pairs, uniforms, strict=True)]

    def _judge(self, pair: keel.Pair, uniform: float) -> keel.Judgement:
        first, second = len(pair.first.split()), len(pair.second.split())
        return keel.Judgement(first_wins=first < second if first != second else uniform < 0.5)


def make_annotator() -> Brief:
    """What the configuration names: it is called once, when the stage begins."""
    return Brief()


def main(out: Path) -> tuple[keel.StageResult, keel.StageResult]:
    scratch = keel.ScratchConfig(hidden=32, layers=2, heads=2, vocab=512, context=128)
    start = keel.sft(
        keel.SFTConfig(
            data=keel.DataConfig(function="keel.demo:demonstrations", limit=1000), epochs=4, batch=16, lr=5e-3
        ),
        model=keel.ModelConfig(scratch=scratch),
        out=out,
    )
    sampling = keel.SamplingConfig(max_new_tokens=24)
    feedback = keel.collect(
        keel.CollectConfig(
            prompts=keel.DataConfig(function="keel.demo:prompts", limit=200),
            annotator=keel.AnnotatorConfig(factory=keel.reference_to(make_annotator), name="brief"),
            per_prompt=3,
            sampling=sampling,
        ),
        model=start.model,
        out=out,
    )
    reward = keel.train_reward(
        keel.RewardConfig(
            data=keel.DataConfig(path=str(feedback.comparisons), validation=0.2),
            epochs=2,
            batch=16,
            lr=3e-3,
            normalise_samples=64,
            normalise_sampling=sampling,
        ),
        model=start.model,
        out=out,
    )
    print(f"{feedback.summary['comparisons']} comparisons, such as {feedback.samples()[0]['chosen']!r}")
    low, high = reward.summary["accuracy_interval"]
    print(f"the reward model is right on {reward.summary['accuracy']:.0%} of held-out pairs ({low:.0%} to {high:.0%})")
    return feedback, reward


if __name__ == "__main__":
    feedback, reward = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom-annotator"))
