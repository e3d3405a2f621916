"""Stage 5, evaluation: the policy against its reference on held-out prompts, and how well it spent its KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from keel.batching import row_batches
from keel.config.evaluate import EvaluateConfig
from keel.engines.base import DrawKey, Sampler, Scorer, TokenScorer
from keel.functional.closed_form import best_of_n_kl, best_of_n_score, estimated_best_of_n_kl, frontier
from keel.functional.masked import Moments
from keel.pipeline.measures import (
    correlation,
    disagreements,
    distinct_n,
    kind_rows,
    kl_per_response,
    repetition,
    response_rows,
)
from keel.records import EncodedRow, PromptItem, Samples
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws

_SIDE_BY_SIDE = 24
_CURVE_POINTS = 40


@dataclass(frozen=True)
class Judged:
    """One model's responses to the prompts, per_prompt each, and what the judges say: float [prompts, per_prompt]."""

    samples: Samples
    scores: Tensor
    utility: Tensor | None
    measures: Mapping[str, Tensor]
    disagreement: Mapping[str, float]  # by ensemble


@dataclass(frozen=True)
class EvaluateEngines:
    """The two models and their judges."""

    policy_sampler: Sampler
    reference_sampler: Sampler
    reference: TokenScorer  # at the sampling temperature
    likelihood: tuple[TokenScorer, TokenScorer]  # policy and reference at temperature 1, for demonstrations
    scorer: Scorer
    utility: Scorer | None
    measures: Mapping[str, Scorer]


def evaluate(
    config: EvaluateConfig,
    engines: EvaluateEngines,
    prompts: Sequence[PromptItem],
    demonstrations: Sequence[EncodedRow],
    *,
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Sample both models on the prompts, judge, compare; returns the stage's summary (docs/metrics.md explains it)."""
    prompts = prompts[: config.count]
    console.progress(stage.name, 0, 3, {})
    policy = _respond(config, engines, engines.policy_sampler, prompts, draws, "policy")
    reference = _respond(config, engines, engines.reference_sampler, prompts, draws, "reference")
    console.progress(stage.name, 1, 3, {})
    kl = _kl(engines, policy.samples).reshape(len(prompts), config.per_prompt) + best_of_n_kl(config.best_of)
    summary: dict[str, Any] = {
        "prompts": len(prompts),
        "per_prompt": config.per_prompt,
        "policy": describe(policy),
        "reference": describe(reference),
        "best_of": config.best_of,
        "kl": float(kl.mean()),
        "kl_standard_error": _standard_error(kl),
        "kl_per_token": float(kl.sum()) / policy.samples.sequences.weight,
        "score": compare(policy.scores, reference.scores, config.bootstrap, draws),
    }
    if policy.utility is not None and reference.utility is not None:
        summary["utility"] = compare(policy.utility, reference.utility, config.bootstrap, draws)
    summary["kinds"] = {
        kind: compare(policy.scores[rows], reference.scores[rows], config.bootstrap, draws)
        for kind, rows in kind_rows(prompts).items()
    }
    if demonstrations:
        summary["demonstrations"] = likelihoods(engines, demonstrations)
    console.progress(stage.name, 2, 3, {})
    summary["frontier"] = spent(config, engines, prompts, policy.scores, kl, draws)
    stage.log_samples(0, side_by_side(policy, reference, kl))
    console.progress(stage.name, 3, 3, {"win rate": summary.get("utility", summary["score"])["win_rate"]})
    return summary


def _respond(
    config: EvaluateConfig,
    engines: EvaluateEngines,
    sampler: Sampler,
    prompts: Sequence[PromptItem],
    draws: Draws,
    purpose: str,
) -> Judged:
    repeated = [prompt for prompt in prompts for _ in range(config.per_prompt)]
    samples = sampler.sample(repeated, config.sampling, DrawKey(draws, purpose, iteration=0))
    shape = (len(prompts), config.per_prompt)
    scores = engines.scorer.score(samples)
    return Judged(
        samples=samples,
        scores=scores.total.reshape(shape),
        utility=engines.utility.score(samples).total.reshape(shape) if engines.utility else None,
        measures={name: scorer.score(samples).total.reshape(shape) for name, scorer in engines.measures.items()},
        disagreement=disagreements(scores),
    )


def _kl(engines: EvaluateEngines, samples: Samples) -> Tensor:
    """k1 summed over each response under the policy that drew it, nats [B].

    What keeping the best of n adds is at most `best_of_n_kl(n)`, and less where scores tie.
    """
    assert samples.logprobs is not None, "the configuration refuses truncated sampling here"
    return kl_per_response(
        samples.logprobs, engines.reference.logprobs(samples.sequences), samples.sequences.response_mask
    )


def _standard_error(values: Tensor) -> float:
    """Of the mean of [prompts, per_prompt], whose rows are independent."""
    return Moments.of(values.double().mean(dim=1)).standard_error


def describe(judged: Judged) -> dict[str, Any]:
    """One model's means."""
    rows, lengths = response_rows(judged.samples.sequences), judged.samples.sequences.response_lengths.float()
    utility = {} if judged.utility is None else {"utility": float(judged.utility.mean())}
    return {
        "score": float(judged.scores.mean()),
        "score_std": Moments.of(judged.scores).std,
        **utility,
        "length": float(lengths.mean()),
        "ended": float(judged.samples.ended.float().mean()),
        "distinct_1": distinct_n(rows, 1),
        "distinct_2": distinct_n(rows, 2),
        "repetition": repetition(rows),
        "score_length_correlation": correlation(judged.scores.flatten(), lengths),
        "disagreement": dict(judged.disagreement),
        "measures": {name: float(values.mean()) for name, values in judged.measures.items()},
    }


def compare(policy: Tensor, reference: Tensor, resamples: int, draws: Draws) -> dict[str, Any]:
    """Win rate (every policy response against every reference response of its prompt, ties 1/2) and mean difference.

    Both [prompts, per_prompt]. The 95 % intervals come from a bootstrap over prompts, policy and reference of a
    prompt drawn together.
    """
    against = policy[:, :, None] - reference[:, None, :]
    wins = ((against > 0).double() + 0.5 * (against == 0).double()).mean(dim=(1, 2)).numpy()
    ties = float((against == 0).double().mean())
    difference = (policy - reference).double().mean(dim=1).numpy()
    rows = draws.generator("bootstrap").integers(0, len(wins), size=(resamples, len(wins)))
    return {
        "win_rate": float(wins.mean()),
        "win_rate_interval": _percentiles(wins[rows].mean(axis=1)),
        "ties": ties,
        "difference": float(difference.mean()),
        "difference_interval": _percentiles(difference[rows].mean(axis=1)),
    }


def _percentiles(means: Any) -> list[float]:
    return [float(value) for value in np.percentile(means, [2.5, 97.5])]


def likelihoods(engines: EvaluateEngines, demonstrations: Sequence[EncodedRow]) -> dict[str, float]:
    """Negative log-likelihood of held-out demonstrations, nats a response token, under both models."""
    batches = row_batches(demonstrations, sum(len(row.tokens) for row in demonstrations))
    tokens = sum(batch.weight for batch in batches)
    policy, reference = (
        -sum(float(model.logprobs(batch).double().sum()) for batch in batches) / tokens for model in engines.likelihood
    )
    return {"rows": len(demonstrations), "policy_nll": policy, "reference_nll": reference}


def spent(
    config: EvaluateConfig,
    engines: EvaluateEngines,
    prompts: Sequence[PromptItem],
    policy_scores: Tensor,
    kl: Tensor,
    draws: Draws,
) -> dict[str, Any]:
    """What share of the score that this KL can buy was reached (math.md §2), on the first frontier_prompts prompts.

    The bound is estimated from frontier_samples reference responses a prompt: reliable up to log(samples) nats;
    the same bound from half of them shows how far it has converged. best-of-n is the yardstick that needs no training,
    and what the true utility makes of it shows how far the score can be trusted when it is climbed.
    `reached` is None where the KL buys no more than the standard error of what was gained.
    """
    prompts = prompts[: config.frontier_prompts]
    repeated = [prompt for prompt in prompts for _ in range(config.frontier_samples)]
    samples = engines.reference_sampler.sample(repeated, config.sampling, DrawKey(draws, "frontier", iteration=0))
    scores = engines.scorer.score(samples).total.reshape(len(prompts), config.frontier_samples).double()
    paid = max(0.0, float(kl[: len(prompts)].mean()))
    gained = policy_scores[: len(prompts)].double().mean(dim=1) - scores.mean(dim=1)
    start = float(scores.mean())
    point, half = frontier(scores, paid), frontier(scores[:, : config.frontier_samples // 2], paid)
    gain = point.bound - start
    top = max(paid * 1.3, math.log(config.frontier_samples))
    grid = [top * (index / _CURVE_POINTS) ** 2 for index in range(_CURVE_POINTS + 1)]  # even in sqrt(KL)
    sizes = [2**power for power in range(int(math.log2(config.frontier_samples)) + 1)]
    tied = _alike(scores, response_rows(samples.sequences))
    best_of = [(size, estimated_best_of_n_kl(tied, size)) for size in sizes]
    truth = {}
    if engines.utility is not None:
        utility = engines.utility.score(samples).total.reshape(scores.shape)
        truth = {"best_of_n_utility": [[n, at, best_of_n_score(scores, n, utility)] for n, at in best_of]}
    return {
        "prompts": len(prompts),
        "samples_a_prompt": config.frontier_samples,
        "kl": paid,
        "score": start + float(gained.mean()),
        "reference_score": start,
        "bound": point.bound,
        "bound_from_half_the_samples": half.bound,
        "reached": float(gained.mean()) / gain if gain > _standard_error(gained[:, None]) else None,
        "reliable": point.reliable,
        "reliable_up_to_kl": math.log(config.frontier_samples),
        "curve": [[at, frontier(scores, at).bound] for at in grid],
        "best_of_n": [[n, at, best_of_n_score(scores, n)] for n, at in best_of],
        **truth,
    }


def _alike(scores: Tensor, responses: Sequence[Sequence[int]]) -> Tensor:
    """`scores` [P, m] where a response that a prompt has twice has one score: batches round it in more than one way."""
    per_prompt, first = scores.shape[1], dict[tuple[int, tuple[int, ...]], int]()
    rows = [first.setdefault((row // per_prompt, tuple(tokens)), row) for row, tokens in enumerate(responses)]
    return scores.flatten()[rows].reshape(scores.shape)


def side_by_side(policy: Judged, reference: Judged, kl: Tensor) -> list[dict[str, Any]]:
    """The first response of both models to the first prompts."""
    per_prompt = kl.shape[1]
    rows = []
    for prompt in range(min(_SIDE_BY_SIDE, len(kl))):
        first = prompt * per_prompt
        row: dict[str, Any] = {
            "prompt": policy.samples.prompts[first].text,
            "policy": policy.samples.texts[first],
            "reference": reference.samples.texts[first],
            "policy_score": float(policy.scores[prompt, 0]),
            "reference_score": float(reference.scores[prompt, 0]),
            "kl": float(kl[prompt, 0]),
        }
        if policy.utility is not None and reference.utility is not None:
            row |= {
                "policy_utility": float(policy.utility[prompt, 0]),
                "reference_utility": float(reference.utility[prompt, 0]),
            }
        rows.append(row)
    return rows
