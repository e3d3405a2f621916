"""Stage 3, the reward model: what people prefer, as a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from keel.annotate.base import noise_ceiling
from keel.assessment.calibration import reliability
from keel.assessment.statistics import effective_count, wilson_interval
from keel.config.reward import RewardConfig
from keel.data.judgements import RatingScale
from keel.data.mix import by_kind
from keel.engines.base import DrawKey, Learner, Sampler, Scorer, Weighted
from keel.errors import UserError
from keel.functional.masked import Moments
from keel.pipeline.epochs import train_epochs, validation_tally
from keel.pipeline.judgements import Collate, Encoded, EncodedPair, EncodedRating, by_prompt, microbatches, mixture_of
from keel.records import CutPoints, EncodedRow, PromptItem
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally

J = TypeVar("J", bound=Encoded)
B = TypeVar("B", bound=Weighted)
ScoreRows = Callable[[Sequence[EncodedRow]], Tensor]
"""The model on texts: float [len(rows)]."""


@dataclass(frozen=True)
class HeldOut(Generic[J]):
    """What the model is judged on."""

    judgements: Sequence[J]  # as it is trained on them
    pairs: Sequence[EncodedPair]  # each two responses that they tell apart
    ties: int = 0  # each two that they call equal


@dataclass(frozen=True)
class Judges:
    """Who rates on which scale, and where they draw their lines."""

    scale: RatingScale
    points: Callable[[], CutPoints]  # now, in the units of the scores that train


@dataclass(frozen=True)
class RewardEngines(Generic[J, B]):
    """What does the work of this stage."""

    learner: Learner[B]
    collate: Collate[J, B]
    score_rows: ScoreRows
    scorer: Scorer  # the same model on samples; of an ensemble the mean score
    reference: Sampler
    normalise: Callable[[Sequence[float], float], None]  # (each member's mean, sd of its scores now): 0 and 1 then
    export: Callable[[Path, float], None]  # (folder, scale that was divided out)
    judges: Judges | None = None  # of ratings and labels


def train_reward(
    config: RewardConfig,
    engines: RewardEngines[J, B],
    train: Sequence[J],
    held_out: HeldOut[J],
    prompts: Sequence[PromptItem],
    *,
    weights: Sequence[float],
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Fit the scores to the judgements, then give them mean 0 and sd 1 on samples of the reference; publish `model/`.

    `prompts` are those that the reference answers for it. `weights` are those of the sources that the judgements are
    of. Validation meets every judgement once, and reports by kind too.
    """
    groups = by_prompt(train, config.max_pairs)
    train_epochs(
        config,
        engines.learner,
        mixture=mixture_of(groups, weights),
        batches=lambda rows: microbatches([groups[row] for row in rows], config.token_budget, engines.collate),
        tokens=lambda row: (text.tokens for judged in groups[row] for text in judged.rows),
        validate=lambda: validate(config, engines, held_out.judgements),
        stage=stage,
        draws=draws,
        console=console,
        shown=("reward/loss", "reward/accuracy", "reward/validation/accuracy"),
    )
    judged = judge_all(config, engines, held_out)
    moments, means = reference_moments(config, engines, prompts, draws)
    engines.normalise(means, moments.std)
    engines.export(stage.work("model"), moments.std)
    stage.publish("model")
    summary: dict[str, Any] = {
        "steps": engines.learner.steps,
        "score_mean_before": moments.mean,
        "score_scale": moments.std,
        "thresholds": None if engines.judges is None else thresholds(engines.judges, moments),
    }
    if config.objective == "bradley_terry":
        summary["pairs"] = len(train)
    else:
        summary[config.reads] = len(train)
    return summary | judged


def validate(config: RewardConfig, engines: RewardEngines[J, B], judgements: Sequence[J]) -> Tally:
    """The learner's statistics on held-out judgements, and the accuracy on those of each kind."""
    tally = Tally()
    for kind, mine in by_kind(judgements).items():
        batches = microbatches(by_prompt(mine, config.max_pairs), config.token_budget, engines.collate)
        part = validation_tally("reward", engines.learner, batches)
        tally.merge(part)
        if kind is not None and "reward/validation/accuracy" in part.sums:
            tally.add(f"reward/validation/accuracy/{kind}", *part.sums["reward/validation/accuracy"])
    return tally


def judge_all(config: RewardConfig, engines: RewardEngines[J, B], held_out: HeldOut[J]) -> dict[str, Any]:
    """How good the model is on what was held out."""
    metrics = validate(config, engines, held_out.judgements).means()
    found: dict[str, Any] = {
        "validation_judgements": len(held_out.judgements),
        "validation_pairs": len(held_out.pairs),
        "validation_ties": held_out.ties,
        "validation": {name.removeprefix("reward/validation/"): value for name, value in metrics.items()},
    }
    log_odds = config.objective != "ordinal"
    if held_out.pairs:
        found |= judge(engines.score_rows, held_out.pairs, log_odds=log_odds)
    ratings = [judgement for judgement in held_out.judgements if isinstance(judgement, EncodedRating)]
    if engines.judges is not None and ratings:
        found |= judge_levels(engines.score_rows, ratings, engines.judges)
    found["kinds"] = {
        kind: {"pairs": len(pairs), **judge(engines.score_rows, pairs, log_odds=log_odds)}
        for kind, pairs in by_kind(held_out.pairs).items()
        if kind is not None
    }
    return found


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


def reference_moments(
    config: RewardConfig, engines: RewardEngines[J, B], prompts: Sequence[PromptItem], draws: Draws
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


def judge(score_rows: ScoreRows, pairs: Sequence[EncodedPair], *, log_odds: bool = True) -> dict[str, Any]:
    """How good the scores are on held-out pairs: accuracy with its interval, "longer wins", reliability.

    `log_odds` says that a difference of scores is one, so that it foretells a share.
    """
    rows = list(dict.fromkeys(row for pair in pairs for row in pair.rows))
    scores = dict(zip(rows, score_rows(rows).tolist(), strict=True))
    gap = torch.tensor([scores[pair.chosen] - scores[pair.rejected] for pair in pairs], dtype=torch.float64)
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
        "reliability": reliability(gap.numpy()) if log_odds else [],
    }


def judge_levels(score_rows: ScoreRows, ratings: Sequence[EncodedRating], judges: Judges) -> dict[str, Any]:
    """How often held-out scores fall in the level that was given, beside what knows only the levels' frequencies."""
    points, counts = judges.points(), judges.scale.counts
    levels = torch.tensor([rating.level for rating in ratings])
    offsets = points.offsets.detach().cpu()[[rating.annotator for rating in ratings]]
    judged = score_rows([rating.row for rating in ratings]).cpu() + offsets
    right = ((judged[:, None] > points.cuts.detach().cpu()).sum(dim=1) == levels).double()
    accuracy = float(right.mean())
    prompts = [rating.row.tokens[: rating.row.prompt_length] for rating in ratings]
    shares = (torch.tensor(counts, dtype=torch.float64) + 0.5) / (sum(counts) + 0.5 * len(counts))
    return {
        "level_accuracy": accuracy,
        "level_accuracy_interval": wilson_interval(accuracy, effective_count(right.tolist(), prompts)),
        "commonest_level": float((levels == shares.argmax()).double().mean()),
        "prior_loss": float(-shares[levels].log().mean()),
    }


def thresholds(judges: Judges, moments: Moments) -> dict[str, Any]:
    """Levels, cut-points and annotators' offsets, in units of scores whose `moments` became 0 and 1."""
    points = judges.points()
    offsets = (points.offsets[:-1] / moments.std).tolist()
    return {
        "levels": list(judges.scale.levels),
        "cuts": ((points.cuts - moments.mean) / moments.std).tolist(),
        "offsets": dict(zip(judges.scale.annotators, offsets, strict=True)) if offsets else {},
    }


def _wins(mine: int, other: int) -> float:
    return 1.0 if mine > other else 0.5 if mine == other else 0.0
