"""The reward model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from keel.config.base import Config, without_effect
from keel.config.data import Sources
from keel.config.sampling import SamplingConfig
from keel.config.training import TrainingConfig

Objective = Literal["bradley_terry", "plackett_luce", "ordinal", "accept"]
Records = Literal["comparisons", "rankings", "ratings", "labels"]
Reduction = Literal["all", "adjacent", "tournament"]
"""Which two of the responses of a ranking are compared."""
Ties = Literal["drop", "half"]
"""What becomes of a pair of equals: nothing, or a comparison each way of half the weight."""

_OWN_RECORDS: dict[Objective, Records] = {
    "bradley_terry": "comparisons",
    "plackett_luce": "rankings",
    "ordinal": "ratings",
    "accept": "labels",
}


class EnsembleConfig(Config):
    """Several reward models in place of one, each trained on a bootstrap of its own."""

    members: int = Field(4, ge=2)
    of: Literal["heads", "adapters"] = Field(
        "heads", description="heads on one body, or (with tune: lora) adapters on one base, which differ more"
    )


class RewardConfig(TrainingConfig):
    """A scalar trained on judgements, then centred and scaled on the reference's samples."""

    data: Sources | Literal["collect"] = "collect"
    objective: Objective = Field(
        "bradley_terry", description="what the scores are trained to explain: pairs, rankings, ratings or acceptance"
    )
    records: Records | None = Field(
        None,
        description="what the data are read as: comparisons for bradley_terry, rankings for plackett_luce, ratings for "
        "ordinal, labels for accept, unless given; of the others bradley_terry makes pairs",
    )
    pairs: Reduction = Field("all", description="which two responses of a ranking bradley_terry compares")
    ties: Ties = Field("drop", description="pairs of equals: left out, or half a comparison each way")
    init: str | None = Field(None, description="model whose body it starts from; the supervised stage's unless given")
    flip_probability: float = Field(0.0, ge=0, lt=0.5, description="known share of labels that are flipped")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    max_pairs: int = Field(
        64,
        gt=0,
        description="comparisons (or rankings, ratings, labels) of one prompt that are trained on in one step; more of "
        "them make more groups",
    )
    ensemble: EnsembleConfig | None = Field(None, description="one reward model unless given")
    head_lr_scale: float = Field(10.0, gt=0, description="the new head's learning rate over the body's")
    normalise_samples: int = Field(512, gt=1, description="reference samples on which the scores get mean 0 and sd 1")
    normalise_sampling: SamplingConfig = Field(
        SamplingConfig(), description="each key is ppo's, where ppo has no sampling collect's, unless given"
    )

    @property
    def reads(self) -> Records:
        """What the data are read as."""
        return self.records or _OWN_RECORDS[self.objective]

    def contradictions(self) -> Iterator[str]:
        if self.flip_probability and self.label_smoothing:
            yield "flip_probability models noise, label_smoothing shrinks the scores: give one, not both"
        own, pairwise = _OWN_RECORDS[self.objective], self.objective == "bradley_terry"
        if not pairwise and self.reads != own:
            yield f"objective: {self.objective} trains on {own}, not on {self.reads}; leave records out"
        if self.data == "collect" and self.reads != "comparisons":
            yield f"data: collect holds comparisons, not {self.reads}; name a file"
        if not pairwise:
            because = f"with objective: {self.objective}, which compares no pairs"
            yield from without_effect(self, "flip_probability", "label_smoothing", "pairs", "ties", because=because)
            if self.ensemble:
                yield "an ensemble's members draw pairs: take objective: bradley_terry, which makes them"
        elif self.reads == "comparisons":
            yield from without_effect(self, "pairs", "ties", because="on comparisons, which are pairs already")
        elif self.reads != "rankings":
            yield from without_effect(self, "pairs", because=f"on {self.reads}, where all of a prompt are compared")
