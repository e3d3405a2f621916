"""An audit as JSON: every figure, and every row of every finding."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from keel.data.audit.annotators import Annotators
from keel.data.audit.audit import Audit
from keel.data.audit.faults import Place
from keel.data.audit.intervals import Estimate, Rate
from keel.data.audit.order import Cycle


def as_json(audit: Audit) -> dict[str, Any]:
    """JSON-ready; rows count from 0, as in `keel data check`."""
    gathered = audit.gathered
    return {
        "sources": [
            {
                "file": source.name, "kind": source.kind.name, "held_out": bool(source.held_out), "rows": check.rows,
                "records": check.total, "usable": check.usable, "left_out_on_purpose": check.on_purpose,
            }
            for source, check in zip(gathered.sources, gathered.checks, strict=True)
        ],
        "labels": len(gathered.labels),
        "prompts": audit.splits.train + audit.splits.held_out - audit.splits.shared_prompts,
        "findings": {
            one.fault.value: {
                "count": len(one),
                "unfit": one.fault.unfit(audit.splits.by_file),
                "meaning": one.fault.sentence,
                "rows": [_place(place) for place in one.places(gathered)],
            }
            for one in audit.found
        },
        "order": _order(audit),
        "length": {
            "longer_wins": _rate(audit.length.longer),
            "equal": audit.length.equal,
            "log_length": None if audit.length.slope is None else asdict(audit.length.slope),
            "twice_as_long_wins": audit.length.doubled,
        },
        "position": {
            "first_wins": _rate(audit.position.first),
            "unknown": audit.position.unknown,
            "sorted": audit.position.sorted,
        },
        "balance": {
            "ties": audit.balance.ties,
            "ratings_not_compared": audit.gathered.not_compared,
            "numbers": {f"{number:g}": count for number, count in audit.balance.numbers.items()},
            "labels_per_prompt": list(audit.balance.labels_per_prompt),
            "empty_judged": audit.balance.empty_judged,
            "cut_chosen": audit.balance.cut_chosen,
            "cut_rejected": audit.balance.cut_rejected,
            "noise_ceiling": audit.balance.noise_ceiling,
        },
        "splits": _splits(audit),
        "annotators": _annotators(audit.annotators),
    }  # fmt: skip


def _order(audit: Audit) -> dict[str, Any]:
    order = audit.order
    return {
        "pairs_contradicted": audit.pairs_contradicted,
        "prompts_without_an_order": order.prompts,
        "prompts_with_a_cycle": order.cyclic,
        "cycles_of_three": order.triangles,
        "cycles": [_cycle(audit, cycle) for cycle in order.cycles],
        "least_labels_to_drop": [order.least_low, order.least_high],
    }


def _cycle(audit: Audit, cycle: Cycle) -> list[dict[str, Any]]:
    labels, files = audit.gathered.labels, audit.gathered.files
    return [{"file": files[int(labels.file[one])], "row": int(labels.row[one])} for one in cycle]


def _splits(audit: Audit) -> dict[str, Any]:
    splits, sources = audit.splits, audit.gathered.sources
    prompts, files = audit.gathered.prompts, audit.gathered.files

    def place(prompt: int) -> dict[str, Any]:
        return {"file": files[int(prompts.file[prompt])], "row": int(prompts.row[prompt])}

    return {
        "by": "file" if splits.by_file else "hash of the prompt",
        "train_prompts": splits.train,
        "held_out_prompts": splits.held_out,
        "shared_prompts": splits.shared_prompts,
        "near_duplicates": {"train_prompts": splits.near_train, "held_out_prompts": splits.near_held_out},
        "examples": [
            {"train": place(near.train), "held_out": place(near.held_out), "jaccard": near.jaccard}
            for near in splits.examples
        ],
        "near_duplicates_unsure": splits.unsure,
        "between_files": [
            {"files": [sources[one].name, sources[other].name], "prompts": count}
            for (one, other), count in splits.between.items()
        ],
    }


def _place(place: Place) -> dict[str, Any]:
    return {"file": place.file, "row": place.row} | ({"detail": place.detail} if place.detail else {})


def _rate(rate: Rate) -> dict[str, Any]:
    return {"share": rate.share, "hits": rate.hits, "total": rate.total, "interval": list(rate.interval)}


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {"value": estimate.value, "interval": list(estimate.interval)}


def _annotators(found: Annotators) -> dict[str, Any]:
    return {
        "named": len(found.people),
        "votes": found.votes,
        "pairs": found.pairs,
        "votes_per_pair": {str(votes): pairs for votes, pairs in found.votes_per_pair.items()},
        "krippendorff_alpha": _estimate(found.alpha),
        "pairwise_agreement": _estimate(found.agreement),
        "ceiling": None if found.ceiling is None else list(found.ceiling),
        "people": [
            {
                "name": person.name,
                "votes": person.votes,
                "agreement": _rate(person.agreement),
                "first": _rate(person.first),
                "longer": _rate(person.longer),
                "remarks": list(person.remarks),
            }
            for person in found.people
        ],
    }
