"""Whether each prompt's labels agree with an order of its replies: contradictions, cycles, labels to drop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keel.data.audit.feedback_arcs import against, components, minimum_feedback_arcs, most_paths, path
from keel.data.audit.gather import Int64s
from keel.data.audit.grouping import combined, groups
from keel.data.audit.simhash import UInt64s

_TRIANGLES_UP_TO = 500  # replies to a prompt

Cycle = tuple[int, ...]
"""Labels that go in a circle: what one rejects the next one chooses."""


@dataclass(frozen=True)
class Order:
    """What keeps labels from agreeing with an order of the replies, prompt by prompt.

    `cyclic` counts the prompts with a cycle of three replies or more, of which each gives one in `cycles`; `triangles`
    the cycles of exactly three; `on_cycles` are all labels that lie on any cycle, contradictions included.
    `least_low` ≤ the least number of labels to drop ≤ `least_high`; without `to_drop`, `least_high` labels, the rest
    agree with an order.
    """

    cyclic: int
    triangles: int | None  # None where a prompt has too many replies to count
    cycles: Sequence[Cycle]
    on_cycles: Int64s
    least_low: int
    least_high: int
    to_drop: Int64s
    prompts: int  # whose labels agree with no order


def order_of(prompt: UInt64s, chosen: UInt64s, rejected: UInt64s, labels: Int64s) -> Order:
    """From columns of all labels; only `labels`, each once, are looked at."""
    cyclic, least_low, least_high, prompts = 0, 0, 0, 0
    triangles: int | None = 0
    cycles: list[Cycle] = []
    on_cycles: list[Int64s] = []
    to_drop: list[int] = []
    for rows, one, other in _tangles(prompt, chosen, rejected, labels):
        edges = _counted(one, other)
        place = {
            node: at for at, part in enumerate(components(np.unique([one, other]).tolist(), edges)) for node in part
        }
        tangled = np.array([place[a] == place[b] for a, b in zip(one.tolist(), other.tolist(), strict=True)])
        if not tangled.any():
            continue
        prompts += 1
        rows, one, other = rows[tangled], one[tangled], other[tangled]
        edges = _counted(one, other)
        on_cycles.append(rows)
        least = minimum_feedback_arcs(edges)
        least_low, least_high = least_low + least.low, least_high + least.high
        lost = against(zip(one.tolist(), other.tolist(), strict=True), least.order)
        to_drop += rows[np.array(lost)].tolist()
        found = _long_cycle(edges)
        if found is not None:
            cyclic += 1
            cycles.append(tuple(_first_labels(found, rows, one, other)))
            more = _triangles(edges)
            triangles = None if triangles is None or more is None else triangles + more
    return Order(
        cyclic, triangles, cycles, _sorted(on_cycles), least_low, least_high,
        np.array(sorted(to_drop), np.int64), prompts,
    )  # fmt: skip


def _sorted(parts: list[Int64s]) -> Int64s:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _tangles(
    prompt: UInt64s, chosen: UInt64s, rejected: UInt64s, labels: Int64s
) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
    """Prompt by prompt the labels that may lie on a cycle, with the numbers of their chosen and rejected replies.

    A label whose chosen reply never loses, or whose rejected reply never wins, lies on none. Such labels are peeled off
    until none is left: of data without cycles nothing remains.
    """
    count = len(labels)
    keys = [combined(prompt[labels], replies[labels]) for replies in (chosen, rejected)]
    numbers = groups(np.concatenate(keys))
    one, other = numbers[:count], numbers[count:]
    kept = np.arange(count)
    while True:
        loses, wins = (np.bincount(side[kept], minlength=2 * count) > 0 for side in (other, one))
        stays = loses[one[kept]] & wins[other[kept]]
        if stays.all():
            break
        kept = kept[stays]
    own = prompt[labels[kept]]
    kept = kept[np.argsort(own, kind="stable")]
    starts = np.flatnonzero(np.diff(np.sort(own))) + 1
    for part in np.split(kept, starts):
        if len(part):
            yield labels[part], one[part], other[part]


def _counted(one: Int64s, other: Int64s) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(one.tolist(), other.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def _long_cycle(edges: dict[tuple[int, int], int]) -> list[int] | None:
    """The nodes of a cycle of three or more: an edge, and a way back that is not its reverse."""
    below: dict[int, list[int]] = {}
    for one, other in edges:
        below.setdefault(one, []).append(other)
        below.setdefault(other, [])
    shortest: list[int] | None = None
    for tried, (one, other) in enumerate(edges):
        back = path(below, other, one, without=(other, one))
        if back is not None and (shortest is None or len(back) < len(shortest)):
            shortest = back
        if (shortest is not None and len(shortest) == 3) or tried >= most_paths(edges):
            break
    return shortest


def _first_labels(nodes: Sequence[int], rows: Int64s, one: Int64s, other: Int64s) -> Iterator[int]:
    for better, worse in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        yield int(rows[np.flatnonzero((one == better) & (other == worse))[0]])


def _triangles(edges: dict[tuple[int, int], int]) -> int | None:
    """The cycles A ≻ B ≻ C ≻ A: the trace of the third power of the adjacency matrix, over three."""
    nodes = sorted({node for pair in edges for node in pair})
    if len(nodes) > _TRIANGLES_UP_TO:
        return None
    at = {node: index for index, node in enumerate(nodes)}
    beats: NDArray[np.float64] = np.zeros((len(nodes), len(nodes)))
    for one, other in edges:
        beats[at[one], at[other]] = 1
    return round(float(np.einsum("ij,ji->", beats @ beats, beats)) / 3)
