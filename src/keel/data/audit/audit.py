"""The whole audit: what `keel data audit` finds in preference data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from keel.data.audit.annotators import Annotators, annotators_of, votes_of
from keel.data.audit.bias import (
    Balance,
    LengthBias,
    PositionBias,
    balance_of,
    lengths_of,
    longer_of,
    positions_of,
)
from keel.data.audit.faults import Fault, Found, found_of
from keel.data.audit.gather import Gathered, Gatherer, Progress, Source
from keel.data.audit.grouping import combined, repeats
from keel.data.audit.order import Order, order_of
from keel.data.audit.splits import Splits, splits_of
from keel.errors import UserError


@dataclass(frozen=True)
class Audit:
    """What was found. The figures, from `order` on, count an annotator's label once, and no pair of one text."""

    gathered: Gathered
    found: Sequence[Found]  # in the order of Fault, those of no label too
    splits: Splits
    order: Order
    length: LengthBias
    position: PositionBias
    balance: Balance
    annotators: Annotators

    @property
    def pairs_contradicted(self) -> int:
        """Pairs of replies that are preferred both ways, by whomever."""
        labels = self.gathered.labels
        numbers = np.concatenate([one.labels for one in self.found if one.fault in _CONTRADICTIONS])
        low = np.minimum(labels.chosen[numbers], labels.rejected[numbers])
        high = np.maximum(labels.chosen[numbers], labels.rejected[numbers])
        return len(np.unique(combined(self.gathered.prompt_keys[numbers], low, high)))


_CONTRADICTIONS = (Fault.SELF_CONTRADICTION, Fault.CONTRADICTION_UNNAMED, Fault.CONTRADICTION)


def audit(sources: Sequence[Source], progress: Progress = lambda what, count: None) -> Audit:
    """Read the sources once, keep fingerprints, and look at everything.

    Raises UserError if a source cannot be read, or none of all their rows is a label.
    """
    gathered = Gatherer(progress).gather(sources)
    labels, prompt = gathered.labels, gathered.prompt_keys
    if not len(labels) and not len(gathered.ratings.prompt):
        raise UserError(_nothing(gathered))
    read = sum(check.total for check in gathered.checks)
    progress("looking for shared prompts", read)
    splits = splits_of(gathered)
    found = found_of(gathered, splits)
    person = combined(prompt, labels.chosen, labels.rejected, labels.annotator)
    kept = np.flatnonzero(~repeats(person) & (labels.chosen != labels.rejected))
    progress("looking for cycles", read)
    order = order_of(prompt, labels.chosen, labels.rejected, kept)
    for fault, those in ((Fault.CYCLE, order.on_cycles), (Fault.AGAINST_ORDER, order.to_drop)):
        found.append(Found(fault, those, np.empty(0, np.int64)))
    progress("looking for biases", read)
    position = positions_of(labels, prompt, kept)
    shown_first = np.full(len(labels), -1, np.int8) if position.sorted else labels.first
    votes = votes_of(prompt, labels.chosen, labels.rejected, labels.annotator, kept)
    return Audit(
        gathered,
        sorted(found, key=lambda one: list(Fault).index(one.fault)),
        splits,
        order,
        lengths_of(labels, prompt, kept),
        position,
        balance_of(gathered, kept),
        annotators_of(votes, gathered.annotators, shown_first, longer_of(labels)),
    )


def _nothing(gathered: Gathered) -> str:
    names = ", ".join(source.name for source in gathered.sources)
    reasons = Counter(one.reason.value for one in chain(*(check.findings for check in gathered.checks)))
    most = f", most often “{reasons.most_common(1)[0][0]}”" if reasons else ""
    return f"{names}: no row says which of two replies is better{most}; `keel data check` lists what cannot be used."
