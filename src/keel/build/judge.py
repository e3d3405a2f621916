"""A reward model alone, on comparisons it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

from keel.adapter_config import members_of
from keel.build.workbench import SCORING_TOKENS, load_renderer
from keel.engines.scorers import RewardModelScorer
from keel.models.ensemble import RewardEnsemble
from keel.models.load import load_classifier, resolve_device
from keel.models.reward import RewardModel
from keel.schema import Comparison


def score_gaps(source: str, rows: Sequence[Comparison], *, device: str) -> list[float]:
    """The reward model's score of the chosen response minus that of the rejected one, for each comparison."""
    members = members_of(source)
    renderer = load_renderer(members[0])
    model = RewardEnsemble([RewardModel(load_classifier(one)) for one in members]).to(resolve_device(device)).eval()
    pairs = [renderer.comparison(row) for row in rows]
    scorer = RewardModelScorer("reward", model, token_budget=SCORING_TOKENS)
    scores = scorer.score_rows([row for pair in pairs for row in pair]).double()
    gaps: list[float] = (scores[::2] - scores[1::2]).tolist()
    return gaps
