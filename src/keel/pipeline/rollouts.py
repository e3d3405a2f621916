"""One rollout: sample responses, score them, and note what policy, reference and critic think of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey, Sampler, Scorer, TokenScorer
from keel.records import PromptItem, Rollout


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
    """
    samples = actors.sampler.sample(prompts, sampling, key)
    assert samples.logprobs is not None, "the configuration refuses truncated sampling here"
    if not actors.exact:
        logprobs, values = actors.policy.logprobs_and_values(samples.sequences)
    else:
        logprobs = samples.logprobs
        values = actors.policy.values(samples.sequences) if samples.values is None else samples.values
    return Rollout(
        samples=samples,
        logprobs=logprobs,
        ref_logprobs=actors.reference.logprobs(samples.sequences),
        values=values,
        scores=actors.scorer.score(samples),
        group=torch.arange(len(prompts)) // per_prompt,
        policy_version=key.iteration - samples.lag,
        sampler_logprobs=None if actors.exact else samples.logprobs,
    )
