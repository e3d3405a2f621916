"""What each objective of the reward stage makes of the data: what trains, by which loss, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from torch import nn

from keel.config.reward import RewardConfig
from keel.data.judgements import RatingScale, comparisons_of, told_apart
from keel.data.load import Labelled, Mixed
from keel.engines.base import Weighted
from keel.engines.losses import Loss, ensemble_loss, reward_loss
from keel.engines.reward_losses import label_loss, ranking_loss, rating_loss
from keel.errors import UserError
from keel.models.ensemble import RewardEnsemble
from keel.models.reward import RewardModel
from keel.models.thresholds import JudgedModel, Thresholds
from keel.pipeline.judgements import (
    Collate,
    Encoded,
    EncodedPair,
    EncodedRanking,
    EncodedRating,
    pairs_batch,
    rankings_batch,
    ratings_batch,
)
from keel.pipeline.reward import HeldOut, Judges, bootstrap
from keel.schema import Comparison, Label, Ranking, Rating
from keel.seeds import Draws
from keel.text.render import Renderer

J = TypeVar("J", bound=Encoded)
B = TypeVar("B", bound=Weighted)


@dataclass(frozen=True)
class Task(Generic[J, B]):
    """What is learned from, and how."""

    train: list[J]
    held_out: HeldOut[J]
    collate: Collate[J, B]
    loss: Loss[B]
    module: nn.Module  # what trains: the reward model, with thresholds beside it where there are some
    judges: Judges | None = None

    @property
    def thresholds(self) -> tuple[nn.Parameter, ...]:
        """The weights that are no part of the reward model."""
        return tuple(self.module.thresholds.parameters()) if isinstance(self.module, JudgedModel) else ()


def learned_from(config: RewardConfig, rows: Sequence[Labelled[Any]], draws: Draws) -> Sequence[Labelled[Any]]:
    """What trains: for Bradley-Terry comparisons, else the records themselves."""
    if config.objective != "bradley_terry":
        return rows
    return comparisons_of(rows, how=config.pairs, ties=config.ties, draws=draws)


def judged_on(config: RewardConfig, rows: Sequence[Labelled[Any]], draws: Draws) -> Sequence[Labelled[Any]]:
    """What validates: as what trains, but every pair of which one is better, so that settings can be compared."""
    return told_apart(rows, draws)[0] if config.objective == "bradley_terry" else rows


def make_task(
    config: RewardConfig,
    data: Mixed[Any],
    model: RewardModel | RewardEnsemble,
    renderer: Renderer,
    room: int,
    draws: Draws,
) -> Task[Any, Any]:
    """The objective's task on these data. Raises UserError where they hold nothing that it could learn from."""
    encode = _Encoder(renderer, room)
    learned, judged = learned_from(config, data.train, draws), judged_on(config, data.validation, draws)
    one_better, ties = told_apart(data.validation, draws)
    pairs = [encode.pair(row) for row in one_better]

    def task(encoded: Callable[[Labelled[Any]], J], collate: Collate[J, B], loss: Loss[B], *others: Any) -> Task[J, B]:
        held_out = HeldOut([encoded(row) for row in judged], pairs, ties)
        return Task([encoded(row) for row in learned], held_out, collate, loss, *(others or (model,)))

    if config.objective == "bradley_terry":
        _require_pairs(config, data, learned)
        of_pairs = task(encode.pair, pairs_batch, reward_loss(config.flip_probability, config.label_smoothing))
        if config.ensemble is None:
            return of_pairs
        train = bootstrap(of_pairs.train, config.ensemble.members, draws)
        return replace(of_pairs, train=train, loss=ensemble_loss(of_pairs.loss))
    if config.objective == "plackett_luce":
        return task(encode.ranking, rankings_batch, ranking_loss)
    assert isinstance(model, RewardModel), "an ensemble is of pairs"
    scale = RatingScale.of([row.record for row in data.train], [row.record for row in data.validation])
    thresholds = Thresholds(scale.counts, len(scale.annotators))
    loss = rating_loss(thresholds) if config.objective == "ordinal" else label_loss(thresholds)
    judges = Judges(scale, lambda: thresholds.points)
    return task(partial(encode.rating, scale=scale), ratings_batch, loss, JudgedModel(model, thresholds), judges)


def _require_pairs(config: RewardConfig, data: Mixed[Any], rows: Sequence[Labelled[Comparison]]) -> None:
    """Every source must give pairs, and none with a margin that the loss cannot take."""
    noise = config.flip_probability or config.label_smoothing
    for number, (origin, _) in enumerate(data.sources):
        mine = [row.record for row in rows if row.source == number]
        if not mine:
            other = {"ratings": "objective: ordinal", "labels": "objective: accept"}.get(config.reads, "ties: half")
            raise UserError(f"{origin.name}: its {config.reads} make no pair of which one is better; take {other}")
        if noise and any(comparison.margin for comparison in mine):
            raise UserError(
                f"{origin.name} has margins, which exclude flip_probability and label_smoothing; drop either"
            )


@dataclass(frozen=True)
class _Encoder:
    """Judgements to token ids; a prompt is cut where a text would pass `room`."""

    renderer: Renderer
    room: int

    def pair(self, labelled: Labelled[Comparison]) -> EncodedPair:
        row = labelled.record
        chosen, rejected = self.renderer.comparison(row, room=self.room)
        margin, likely = row.margin or 0.0, row.first_probability
        return EncodedPair(chosen, rejected, margin, row.weight, likely, labelled.source, labelled.kind)

    def ranking(self, labelled: Labelled[Ranking]) -> EncodedRanking:
        rows = self.renderer.ranking(labelled.record, room=self.room)
        return EncodedRanking(rows, labelled.record.ranks, labelled.source, labelled.kind)

    def rating(self, labelled: Labelled[Rating | Label], scale: RatingScale) -> EncodedRating:
        judged = labelled.record
        row = self.renderer.encode(judged.prompt, judged.response, room=self.room)
        return EncodedRating(row, scale.level(judged), scale.annotator(judged), labelled.source, labelled.kind)
