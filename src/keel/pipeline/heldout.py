"""The evaluation of PPO on fixed held-out prompts while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, Scorer
from keel.errors import UserError
from keel.functional.kl import k1
from keel.functional.masked import Moments, masked_mean
from keel.instruments.peaks import Peak
from keel.pipeline.measures import (
    correlation,
    disagreements,
    kl_per_response,
    response_rows,
    sampler_gap,
    text_metrics,
)
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import PromptItem, Rollout, Samples, Scores
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.user_functions import place

_SHOWN = 3
_SPELLED = 3  # responses that a sentence names
_KEPT = 8
_TOKENS = 256  # of a kept response that are spelled
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
    spell: Callable[[Sequence[int]], list[str]] | None = field(default=None, kw_only=True)  # what each token says

    def evaluate(
        self, iteration: int, stage: StageRun, console: Console, peaks: Mapping[str, Peak]
    ) -> tuple[dict[str, float], dict[str, Peak]]:
        """Metrics `eval/…`, and the peaks of the held-out scores so far, by metric, once this evaluation is in.

        A few responses go to the stage's samples and to the screen. Raises RolloutFault or UserError, before anything
        is logged, where a number is not finite.
        """
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
        judged, reached = self._not_trained_on(rollout.samples, iteration, peaks)
        metrics |= judged
        rows = self._sample_rows(rollout, kl)
        stage.log_samples(iteration, rows)
        console.samples(stage.name, rows[:_SHOWN])
        if iteration == 0 and metrics["eval/ended"] < 1 - _TRUNCATED_WARNING:
            console.say(
                f"ppo: warning: {1 - metrics['eval/ended']:.0%} of the responses never end within "
                f"{self.sampling.max_new_tokens} tokens and are scored as they stand; raise sampling.max_new_tokens or "
                "set shaping.eos_penalty if that is not meant."
            )
        return metrics, reached

    def _not_trained_on(
        self, samples: Samples, iteration: int, peaks: Mapping[str, Peak]
    ) -> tuple[dict[str, float], dict[str, Peak]]:
        metrics: dict[str, float] = {}
        reached: dict[str, Peak] = {}
        for metric, scorer in (("eval/utility", self.utility), ("eval/judge", self.judge)):
            if scorer is None:
                continue
            name = metric.removeprefix("eval/")
            values = _finite(f"evaluate.{name}", scorer.score(samples), samples)
            peak = peaks.get(metric, Peak(iteration, values)).or_higher(iteration, values)
            found = Moments.of(torch.tensor(values, dtype=torch.float64))
            reached[metric] = peak
            metrics |= {
                metric: found.mean,
                f"eval/{name}/standard_error": found.standard_error,
                f"eval/{name}/peak": peak.iteration,
                f"eval/{name}/fall_error": peak.fall_error(values),
            }
        return metrics, reached

    def _sample_rows(self, rollout: Rollout, kl: Tensor) -> list[dict[str, Any]]:
        samples = rollout.samples
        ids = response_rows(samples.sequences)
        by_token = k1(rollout.logprobs, rollout.ref_logprobs).tolist()
        rows = []
        for row in range(min(_KEPT, len(samples.texts))):
            rows.append(
                {
                    "prompt": samples.prompts[row].text,
                    "response": samples.texts[row],
                    "score": float(rollout.scores.total[row]),
                    "kl": float(kl[row]),
                    "ended": bool(samples.ended[row]),
                    "length": len(ids[row]),
                }
            )
            if self.spell is not None:
                tokens = self.spell(ids[row][:_TOKENS])
                rows[-1] |= {"tokens": tokens, "token_kl": [round(gap, 5) for gap in by_token[row][: len(tokens)]]}
        return rows


def _finite(role: str, scores: Scores, samples: Samples) -> tuple[float, ...]:
    """The scores of the responses. Raises UserError, naming who gave them, where one is not finite."""
    bad = (~scores.total.isfinite()).nonzero().flatten().tolist()
    if bad:
        named = "; ".join(
            f"{float(scores.total[row]):g} for {place(row, samples.prompts[row].text, samples.texts[row])}"
            for row in bad[:_SPELLED]
        )
        more = f"; and {len(bad) - _SPELLED} more" if len(bad) > _SPELLED else ""
        raise UserError(
            f"ppo: {role} ({', '.join(scores.parts)}) gave {len(bad)} of {len(samples.texts)} held-out responses a "
            f"score that is not finite: {named}{more}; mend it, or fork the last checkpoint with another"
        )
    return tuple(scores.total.tolist())
