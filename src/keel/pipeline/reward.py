"""Stage 3, the reward model: what people prefer, as a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.annotate.base import noise_ceiling
from keel.batching import cut_by_tokens, pad_rows
from keel.config.reward import RewardConfig
from keel.data.mix import Mixture, by_kind
from keel.engines.base import DrawKey, Learner, Sampler, Scorer
from keel.errors import UserError
from keel.functional.masked import Moments
from keel.pipeline.epochs import train_epochs, validation_tally
from keel.records import EncodedRow, Pairs, PromptItem
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally

_RELIABILITY_BINS = 10


@dataclass(frozen=True)
class EncodedPair:
    """A comparison as token ids."""

    chosen: EncodedRow
    rejected: EncodedRow
    margin: float
    weight: float
    first_probability: float | None = None  # that the annotator prefers the one it did, where it is known
    source: int = 0  # which of the stage's sources it is of
    kind: str | None = None  # what that source calls it
    drawn: tuple[int, ...] = ()  # how often each member of an ensemble has it in its own sample


@dataclass(frozen=True)
class RewardEngines:
    """What does the work of this stage."""

    learner: Learner[Pairs]
    score_rows: Callable[[Sequence[EncodedRow]], Tensor]  # the model on texts: float [len(rows)]
    scorer: Scorer  # the same model on samples; of an ensemble the mean score
    reference: Sampler
    normalise: Callable[[Sequence[float], float], None]  # (each member's mean, sd of its scores now): 0 and 1 then
    export: Callable[[Path, float], None]  # (folder, scale that was divided out)


def train_reward(
    config: RewardConfig,
    engines: RewardEngines,
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    prompts: Sequence[PromptItem],
    *,
    weights: Sequence[float],
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Bradley-Terry on the pairs, then scores with mean 0 and sd 1 on samples of the reference; publish `model/`.

    `prompts` are those that the reference answers for it. `weights` are those of the sources that the pairs are of.
    Validation meets every pair once, and reports by kind too.
    """

    def validate() -> Tally:
        tally = Tally()
        for kind, pairs in by_kind(validation).items():
            groups = by_prompt(pairs, config.max_pairs)
            part = validation_tally("reward", engines.learner, microbatches(groups, config.token_budget))
            tally.merge(part)
            if kind is not None:
                tally.add(f"reward/validation/accuracy/{kind}", *part.sums["reward/validation/accuracy"])
        return tally

    groups = by_prompt(train, config.max_pairs)
    train_epochs(
        config,
        engines.learner,
        mixture=mixture_of(groups, weights),
        batches=lambda rows: microbatches([groups[row] for row in rows], config.token_budget),
        validate=validate,
        stage=stage,
        draws=draws,
        console=console,
        shown=("reward/loss", "reward/accuracy", "reward/validation/accuracy"),
    )
    judged = judge(engines.score_rows, validation) if validation else {}
    kinds = {
        kind: {"pairs": len(pairs), **judge(engines.score_rows, pairs)}
        for kind, pairs in by_kind(validation).items()
        if kind is not None
    }
    moments, means = reference_moments(config, engines, prompts, draws)
    engines.normalise(means, moments.std)
    engines.export(stage.work("model"), moments.std)
    stage.publish("model")
    return {
        "steps": engines.learner.steps,
        "pairs": len(train),
        "validation_pairs": len(validation),
        "score_mean_before": moments.mean,
        "score_scale": moments.std,
        **judged,
        "kinds": kinds,
    }


def mixture_of(groups: Sequence[Sequence[EncodedPair]], weights: Sequence[float]) -> Mixture:
    """How often each group of comparisons is met; the groups stand source after source."""
    sources = [group[0].source for group in groups]
    return Mixture(tuple(sources.count(source) for source in range(len(weights))), tuple(weights))


def bootstrap(pairs: Sequence[EncodedPair], members: int, draws: Draws) -> list[EncodedPair]:
    """The pairs with how often each member of an ensemble has them in its own sample: Poisson(1), as in a bootstrap.

    Drawn once for the whole training, and for all comparisons of a prompt together, which are not independent
    (Oza and Russell, 2001).
    """
    prompts = [pair.chosen.tokens[: pair.chosen.prompt_length] for pair in pairs]
    drawn = {
        prompt: tuple(draws.generator("bootstrap", sample=number).poisson(1.0, members).tolist())
        for number, prompt in enumerate(dict.fromkeys(prompts))
    }
    return [replace(pair, drawn=drawn[prompt]) for pair, prompt in zip(pairs, prompts, strict=True)]


def by_prompt(pairs: Sequence[EncodedPair], max_pairs: int) -> list[list[EncodedPair]]:
    """The comparisons of each prompt together, in the order of its first one; at most `max_pairs` in a group.

    A group is of one source.

    They are trained on in one step: a response that is compared with several others is computed once, and a prompt
    with many comparisons is not met again and again within an epoch (Ouyang et al., 2022, section 3.5).
    """
    groups: dict[tuple[int, tuple[int, ...]], list[EncodedPair]] = {}
    for pair in pairs:
        groups.setdefault((pair.source, pair.chosen.tokens[: pair.chosen.prompt_length]), []).append(pair)
    return [group[i : i + max_pairs] for group in groups.values() for i in range(0, len(group), max_pairs)]


def microbatches(groups: Sequence[Sequence[EncodedPair]], token_budget: int) -> list[Pairs]:
    """Comparisons grouped by prompt, in padded batches of like length; each response stands in its batch once."""
    rows = [list(dict.fromkeys(row for pair in group for row in (pair.chosen, pair.rejected))) for group in groups]
    lengths = [max(len(row.tokens) for row in group) for group in rows]
    batches = []
    for items in cut_by_tokens(lengths, token_budget, [len(group) for group in rows]):
        unique = list(dict.fromkeys(row for item in items for row in rows[item]))
        number = {row: index for index, row in enumerate(unique)}
        pairs = [pair for item in items for pair in groups[item]]
        batches.append(
            Pairs(
                rows=pad_rows(unique),
                chosen=torch.tensor([number[pair.chosen] for pair in pairs]),
                rejected=torch.tensor([number[pair.rejected] for pair in pairs]),
                margins=torch.tensor([pair.margin for pair in pairs]),
                weights=torch.tensor([pair.weight for pair in pairs]),
                drawn=torch.tensor([pair.drawn for pair in pairs]).float() if pairs[0].drawn else None,
            )
        )
    return batches


def reference_moments(
    config: RewardConfig, engines: RewardEngines, prompts: Sequence[PromptItem], draws: Draws
) -> tuple[Moments, list[float]]:
    """Mean and spread of the scores of the reference's own responses, and the mean of each member of an ensemble."""
    count = config.normalise_samples
    chosen = [prompts[index] for index in draws.batch_indices("normalise", len(prompts), batch=count, start=0)]
    samples = engines.reference.sample(
        chosen, config.normalise_sampling, DrawKey(draws, "normalise response", iteration=0)
    )
    scores = engines.scorer.score(samples)
    moments = Moments.of(scores.total)
    if moments.std < 1e-6:
        raise UserError(
            f"the reward model gives all {count} reference samples the same score, so it has learned nothing that "
            "could be scaled; train it longer, raise its learning rate, or look at the comparisons"
        )
    (members,) = scores.members.values() or (scores.total[:, None],)
    return moments, [Moments.of(member).mean for member in members.T]


def judge(score_rows: Callable[[Sequence[EncodedRow]], Tensor], pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """How good the scores are on held-out pairs: accuracy with its interval, "longer wins", reliability."""
    chosen, rejected = score_rows([pair.chosen for pair in pairs]), score_rows([pair.rejected for pair in pairs])
    gap = (chosen - rejected).double()
    right = (gap > 0).double() + 0.5 * (gap == 0).double()
    longer = [_wins(pair.chosen.response_length, pair.rejected.response_length) for pair in pairs]
    accuracy = float(right.mean())
    prompts = [pair.chosen.tokens[: pair.chosen.prompt_length] for pair in pairs]
    known = [pair.first_probability for pair in pairs if pair.first_probability is not None]
    return {
        "accuracy": accuracy,
        "accuracy_interval": wilson_interval(accuracy, effective_count(right.tolist(), prompts)),
        "longer_wins": sum(longer) / len(longer),
        "noise_ceiling": noise_ceiling(known) if len(known) == len(pairs) else None,
        "reliability": reliability(gap),
    }


def _wins(mine: int, other: int) -> float:
    return 1.0 if mine > other else 0.5 if mine == other else 0.0


def effective_count(right: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How many independent trials are worth as much as these, which are alike within a group (Kish, 1965).

    The variance of the share is taken over groups; never more than there are trials, nor fewer than groups / 2.
    """
    share = sum(right) / len(right)
    residuals: dict[Hashable, float] = {}
    for value, group in zip(right, groups, strict=True):
        residuals[group] = residuals.get(group, 0.0) + value - share
    spread = sum(residual * residual for residual in residuals.values()) / len(right)
    if share * (1 - share) == 0:  # nothing varies, so nothing is known of how alike a group is
        return float(len(residuals))
    count = share * (1 - share) / spread * len(right) if spread > 0 else math.inf
    return min(float(len(right)), max(len(residuals) / 2, count))


def wilson_interval(share: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials (Wilson, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (max(0.0, centre - half), min(1.0, centre + half))


def reliability(gap: Tensor) -> list[dict[str, float]]:
    """Does a predicted probability come true? Pairs in bins of sigmoid(|gap|): its mean, the share right, the count.

    `gap` [N] is the score of the chosen minus that of the rejected; bins of equal counts.
    """
    order = gap.abs().argsort()
    bins = []
    for part in order.tensor_split(min(_RELIABILITY_BINS, len(order))):
        confidence = torch.sigmoid(gap[part].abs())
        right = (gap[part] > 0).double() + 0.5 * (gap[part] == 0).double()
        bins.append({"predicted": float(confidence.mean()), "right": float(right.mean()), "pairs": float(len(part))})
    return bins
