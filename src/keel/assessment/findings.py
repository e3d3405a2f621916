"""What scores say of the model that gave them, as plain numbers for a page and a file (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keel.assessment.agreement import agreement_of, by_agreement, ceiling
from keel.assessment.calibration import calibration
from keel.assessment.statistics import (
    Bools,
    Floats,
    Ints,
    by_name,
    by_value,
    hits,
    pearson,
    pearson_within,
    share_below,
    share_right,
    spearman,
    spearman_within,
)

_MARGIN_BINS, _LENGTH_BINS = 8, 8
_SHOWN = 400  # points of score against length


@dataclass(frozen=True)
class Compared:
    """R responses with their scores, and N comparisons between two of them."""

    scores: Floats  # [R]
    lengths: Floats  # [R], in characters
    prompts: Ints  # [R], which prompt each answers
    chosen: Ints  # [N], which response was preferred
    rejected: Ints  # [N], to which
    sources: tuple[str, ...]  # [N], what each is of
    annotators: Ints  # [N], who judged, by number; -1 where nobody is named
    margins: Floats  # [N], how clearly, as the data say; NaN where they do not
    probabilities: Floats  # [N], that the annotator prefers the one it did, where it is known; else NaN

    @property
    def gaps(self) -> Floats:
        """[N], chosen minus rejected."""
        return np.asarray(self.scores[self.chosen] - self.scores[self.rejected])


@dataclass(frozen=True)
class Replies:
    """One kind of reply to each of P prompts."""

    name: str
    kind: str  # real, off (what the reference does not say), or probe
    scores: Floats  # [P]
    disagreement: Floats | None = None  # [P], of an ensemble's members


def comparisons(found: Compared, scale: float) -> dict[str, Any]:
    """Accuracy and what it depends on; `scale` makes log-odds of a score."""
    gaps, prompts = found.gaps, found.prompts[found.chosen]
    right = hits(gaps)
    longer = found.lengths[found.chosen] - found.lengths[found.rejected]
    items, first = _items(found)
    agreement = agreement_of(items, first, found.annotators, found.probabilities)
    stated = ~np.isnan(found.margins)
    limit = np.maximum(found.probabilities, 1 - found.probabilities)
    return {
        "accuracy": share_right(right, prompts),
        "prompts": len(np.unique(prompts)),
        "equal_scores": int((gaps == 0).sum()),
        "by_margin": by_value(right, np.abs(gaps), prompts, _MARGIN_BINS),
        "by_stated_margin": by_value(right[stated], found.margins[stated], prompts[stated], _MARGIN_BINS)
        if stated.any()
        else [],
        "by_length_difference": by_value(right, longer, prompts, _LENGTH_BINS),
        "by_agreement": by_agreement(agreement, right, prompts),
        "by_source": by_name(right, found.sources, prompts),
        "calibration": calibration(scale * gaps) | {"scale": scale},
        "length": _length(found, right, longer, prompts),
        "ceiling": ceiling(items, first, found.annotators, right, prompts),
        "stated_ceiling": float(limit.mean()) if not np.isnan(limit).any() else None,
    }


def _items(found: Compared) -> tuple[Ints, Bools]:
    """Which two responses each comparison is of, as a number [N], and whether the first of them was preferred [N]."""
    low, high = np.minimum(found.chosen, found.rejected), np.maximum(found.chosen, found.rejected)
    return low * len(found.scores) + high, found.chosen == low


def _length(found: Compared, right: Floats, longer: Floats, prompts: Ints) -> dict[str, Any]:
    """How the score goes with length, over the responses and among those to one prompt."""
    shown = np.linspace(0, len(found.scores) - 1, min(_SHOWN, len(found.scores))).astype(int)
    return {
        "pearson": pearson(found.lengths, found.scores),
        "spearman": spearman(found.lengths, found.scores),
        "pearson_within": pearson_within(found.lengths, found.scores, found.prompts),
        "spearman_within": spearman_within(found.lengths, found.scores, found.prompts),
        "longer_wins": float(hits(longer).mean()),
        "shorter_preferred": share_right(right[longer < 0], prompts[longer < 0]),
        "longer_preferred": share_right(right[longer > 0], prompts[longer > 0]),
        "points": [[float(found.lengths[row]), float(found.scores[row])] for row in shown],
    }


def replies(groups: Sequence[Replies]) -> list[dict[str, Any]]:
    """Each group beside the first one, the real replies to the same prompts.

    `percentile` is the mean share of all real scores that a reply passes, `beats` the share of prompts where it
    passes the prompt's own real reply; equal scores are half. `disagreement_above` is the chance that the members of
    an ensemble disagree more on one of these than on a real reply.
    """
    real = groups[0]
    found = []
    for group in groups:
        low, median, high = np.quantile(group.scores, [0.25, 0.5, 0.75]).tolist()
        row = {
            "name": group.name,
            "kind": group.kind,
            "replies": len(group.scores),
            "mean": float(group.scores.mean()),
            "sd": float(group.scores.std()),
            "quartiles": [low, median, high],
            "percentile": float(share_below(group.scores, real.scores).mean()),
            "beats": float(hits(group.scores - real.scores).mean()),
        }
        if group.disagreement is not None and real.disagreement is not None:
            above = share_below(group.disagreement, real.disagreement).mean()
            row |= {"disagreement": float(group.disagreement.mean()), "disagreement_above": float(above)}
        found.append(row)
    return found


def alarms(found: Mapping[str, Any]) -> list[str]:
    """What in an assessment should keep the model from being trained against, a sentence each."""
    return [*_of_comparisons(found), *_of_replies(found["replies"]), *_of_invariance(found["invariance"])]


def _of_comparisons(found: Mapping[str, Any]) -> list[str]:
    said = []
    accuracy, top = found["accuracy"], found["ceiling"]
    low, high = accuracy["interval"]
    if high < 0.5:
        said.append(f"It is right in {accuracy['accuracy']:.0%} of the pairs, less than a coin: it prefers the worse.")
    elif low <= 0.5:
        said.append(f"It is right in {accuracy['accuracy']:.0%} of the pairs, which may be chance.")
    said += [
        f"Where the {side} reply was preferred it is right in {half['accuracy']:.0%}: it goes by length."
        for side in ("shorter", "longer")
        if (half := found["length"][f"{side}_preferred"])["pairs"] and half["interval"][1] < 0.5
    ]
    if top and top["model"]["interval"][0] > top["highest"]:
        said.append(
            f"It agrees with votes more than people can ({top['model']['accuracy']:.0%} against at most "
            f"{top['highest']:.0%}): these data may be what it was trained on."
        )
    return said


def _of_replies(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    real = groups[0]["quartiles"][1]
    said = [
        f"The probe “{group['name']}” scores above the median real reply ({group['quartiles'][1]:.2f} against "
        f"{real:.2f}): a policy trained on this score will find it."
        for group in groups
        if group["kind"] == "probe" and group["quartiles"][1] > real
    ]
    said += [
        f"Replies to other prompts beat the prompt’s own in {group['beats']:.0%}: it hardly reads the prompt."
        for group in groups
        if group["kind"] == "off" and group["name"] == OTHER_PROMPTS and group["beats"] > _UNREAD
    ]
    off = [group for group in groups if group["kind"] == "off" and group.get("disagreement_above") is not None]
    if off and all(group["disagreement_above"] <= 0.5 for group in off):
        said.append(
            "Its members disagree no more where the reference never goes, so their disagreement warns of nothing."
        )
    return said


def _of_invariance(found: Mapping[str, Any]) -> list[str]:
    if found["holds"]:
        return []
    worst = max(("batch", "padding", "order"), key=lambda name: found[name])
    return [
        f"A score changes by up to {found[worst]:.2g} with its {worst}, and rounding explains "
        f"{found['tolerance']:.2g} at most: it is not its text’s alone."
    ]


OTHER_PROMPTS = "real replies to other prompts"
_UNREAD = 0.45  # of the prompts; 0.5 is a model that does not read them
