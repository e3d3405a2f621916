"""One rollout: sample responses, score them, and note what policy, reference and critic think of every token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, LogitsNotFinite, Sampler, Scorer, TokenScorer
from keel.errors import UserError
from keel.records import EncodedRow, PromptItem, Rollout, Samples, Scores
from keel.user_functions import place

_SPELLED = 3  # responses that a sentence names


class RolloutFault(UserError):
    """Responses of which a score, a log-probability or a value is not finite: nothing can be learned from them."""

    def __init__(self, rollout: Rollout, rows: Mapping[int, str]) -> None:
        named = "; ".join(list(rows.values())[:_SPELLED])
        more = f"; and {len(rows) - _SPELLED} more" if len(rows) > _SPELLED else ""
        super().__init__(
            f"{len(rows)} of {len(rollout.sequences)} responses have numbers that are not finite: {named}{more}"
        )
        self.rollout = rollout
        self.rows = rows  # what of which is not finite


@dataclass(frozen=True)
class Actors:
    """Who takes part in a rollout."""

    sampler: Sampler
    policy: TokenScorer  # the policy that trains, without gradient: its critic's values
    reference: TokenScorer
    scorer: Scorer
    exact: bool = True  # the sampler computes the probabilities of the learner, to rounding in float32


def collect_rollout(
    actors: Actors, prompts: Sequence[PromptItem], sampling: SamplingConfig, key: DrawKey, *, per_prompt: int = 1
) -> Rollout:
    """One response to each of `prompts`, in which each prompt stands `per_prompt` times in a row, for the update.

    The sampler's log-probabilities serve as those of the old policy: same weights, same precision (the first
    minibatch of the update holds them to the learner's own forward); so do its values, where it has them. Where it is
    not `exact` (bfloat16, a server) one forward of the learner gives both, and the sampler's log-probabilities are
    kept beside them: they are those of an older policy where the samples lag.

    Raises RolloutFault where a number is not finite.
    """
    started = time.perf_counter()
    try:
        samples = actors.sampler.sample(prompts, sampling, key)
    except LogitsNotFinite as error:
        raise _undrawn(actors, prompts, error) from error
    assert samples.logprobs is not None, "the configuration refuses truncated sampling here"
    sampled = time.perf_counter()
    if not actors.exact:
        logprobs, values = actors.policy.logprobs_and_values(samples.sequences)
    else:
        logprobs = samples.logprobs
        values = actors.policy.values(samples.sequences) if samples.values is None else samples.values
    valued = time.perf_counter()
    ref_logprobs = actors.reference.logprobs(samples.sequences)
    referred = time.perf_counter()
    scores = actors.scorer.score(samples)
    seconds = {
        "time/sampling_seconds": sampled - started,
        "time/values_seconds": valued - sampled,
        "time/reference_seconds": referred - valued,
        "time/scoring_seconds": time.perf_counter() - referred,
    }
    rollout = Rollout(
        samples=samples,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=scores,
        group=torch.arange(len(prompts)) // per_prompt,
        policy_version=key.iteration - samples.lag,
        sampler_logprobs=None if actors.exact else samples.logprobs,
        seconds=seconds,
    )
    faults = not_finite(rollout)
    if faults:
        raise RolloutFault(rollout, faults)
    return rollout


def _undrawn(actors: Actors, prompts: Sequence[PromptItem], error: LogitsNotFinite) -> UserError:
    """Which of the prompts no first token can be drawn after; the error itself where that is none of them."""
    sequences = pad_rows([EncodedRow((*prompt.tokens, prompt.tokens[-1]), len(prompt.tokens)) for prompt in prompts])
    logprobs, zeros = actors.policy.logprobs(sequences), torch.zeros(len(prompts))
    samples = Samples(sequences, logprobs, zeros.bool(), tuple(prompts), ("",) * len(prompts))
    nothing = torch.zeros_like(logprobs)
    rollout = Rollout(samples, logprobs, nothing, nothing, Scores(zeros, {}), zeros.long(), policy_version=0)
    faults = not_finite(rollout)
    return RolloutFault(rollout, faults) if faults else error


def not_finite(rollout: Rollout) -> dict[int, str]:
    """By row what of the response is not finite, in the words of a sentence. A reward's NaN is no opinion."""
    samples, mask = rollout.samples, rollout.response_mask
    by_token: dict[str, Tensor | None] = {
        "log-probability": rollout.logprobs,
        "log-probability under the sampler": rollout.sampler_logprobs,
        "log-probability under the reference": rollout.ref_logprobs,
        "value": rollout.values,
    }
    parts = {"score": rollout.scores.total, **{f"reward {name}": part for name, part in rollout.scores.parts.items()}}
    found: dict[int, list[str]] = {}
    for name, scores in parts.items():
        bad = scores.isinf() if name != "score" else ~scores.isfinite()
        for row in bad.nonzero().flatten().tolist():
            found.setdefault(row, []).append(f"{name} {float(scores[row]):g}")
    for name, tokens in by_token.items():
        bad = torch.zeros_like(mask) if tokens is None else mask & ~tokens.isfinite()
        for row in bad.any(dim=1).nonzero().flatten().tolist():
            found.setdefault(row, []).append(f"a {name} {float(tokens[row][bad[row]][0]):g}")  # type: ignore[index]
    return {
        row: f"{place(row, samples.prompts[row].text, samples.texts[row])}: {', '.join(found[row])}"
        for row in sorted(found)
    }
