"""The evaluation of PPO on fixed held-out prompts while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, Scorer
from keel.functional.masked import Moments, masked_mean
from keel.pipeline.measures import correlation, disagreements, kl_per_response, sampler_gap, text_metrics
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import PromptItem, Rollout
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws

_SHOWN = 3
_KEPT = 8
_TRUNCATED_WARNING = 0.5


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are never trained on; every evaluation draws with the same random numbers, so curves are smooth."""

    actors: Actors
    utility: Scorer | None  # the true one, where it is known
    prompts: Sequence[PromptItem]
    sampling: SamplingConfig
    kl_coef: float  # of the objective that picks the best checkpoint: the configured one, not the adapted
    draws: Draws
    check: Callable[[Rollout], None] = field(
        default=lambda rollout: None, kw_only=True
    )  # refuses what is not as it says
    judge: Scorer | None = field(default=None, kw_only=True)  # a reward that is not trained on

    def evaluate(self, iteration: int, stage: StageRun, console: Console) -> dict[str, float]:
        """Metrics `eval/…`; a few responses go to the stage's samples and to the screen."""
        key = DrawKey(self.draws, "held-out", iteration=0)
        rollout = collect_rollout(self.actors, self.prompts, self.sampling, key)
        self.check(rollout)
        scores = rollout.scores.total
        kl = kl_per_response(rollout.logprobs, rollout.ref_logprobs, rollout.response_mask)
        lengths = rollout.sequences.response_lengths.float()
        metrics = {
            "eval/scores": float(scores.mean()),
            "eval/kl": float(kl.mean()),
            "eval/objective": float(scores.mean() - self.kl_coef * kl.mean()),
            "eval/surprise": float(-masked_mean(rollout.drawn_logprobs, rollout.response_mask)),
            "eval/score_length_correlation": correlation(scores, lengths),
            **{"eval/" + name.partition("/")[2]: value for name, value in text_metrics(rollout.samples).items()},
            **{f"eval/reward/{name}/disagreement": gap for name, gap in disagreements(rollout.scores).items()},
        }
        if rollout.sampler_logprobs is not None:
            metrics["eval/sampler_gap_rms"] = sampler_gap(rollout)
        if self.utility is not None:
            found = Moments.of(self.utility.score(rollout.samples).total)
            metrics |= {"eval/utility": found.mean, "eval/utility/standard_error": found.standard_error}
        if self.judge is not None:
            found = Moments.of(self.judge.score(rollout.samples).total)
            metrics |= {"eval/judge": found.mean, "eval/judge/standard_error": found.standard_error}
        rows = _sample_rows(rollout, kl)
        stage.log_samples(iteration, rows)
        console.samples(stage.name, rows[:_SHOWN])
        if iteration == 0 and metrics["eval/ended"] < 1 - _TRUNCATED_WARNING:
            console.say(
                f"ppo: warning: {1 - metrics['eval/ended']:.0%} of the responses never end within "
                f"{self.sampling.max_new_tokens} tokens and are scored as they stand; raise sampling.max_new_tokens or "
                "set shaping.eos_penalty if that is not meant."
            )
        return metrics


def _sample_rows(rollout: Rollout, kl: Tensor) -> list[dict[str, Any]]:
    samples = rollout.samples
    return [
        {
            "prompt": samples.prompts[row].text,
            "response": samples.texts[row],
            "score": float(rollout.scores.total[row]),
            "kl": float(kl[row]),
            "ended": bool(samples.ended[row]),
        }
        for row in range(min(_KEPT, len(samples.texts)))
    ]
