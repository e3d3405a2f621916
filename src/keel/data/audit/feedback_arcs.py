"""The least number of labels to drop so that the rest agree with an order: a minimum feedback arc set.

Strict preferences can be explained by a utility if and only if they have no cycle, which is what the consistency
conditions of revealed preference come to where each choice is between two. Finding the fewest to drop is NP-hard: in
groups of up to EXACT responses that lie on common cycles it is solved, beyond that it is bounded from both sides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

EXACT = 15
"""Responses on common cycles up to which the answer is exact: 2^15 subsets."""

_MOST_SWEEPS = 20
_MOST_STEPS = 20_000_000  # edges walked along in search of cycles to pack
_DENSE = 600  # responses up to which an order is improved by moving each of them

Edges = dict[tuple[int, int], int]
"""(better, worse): how many labels say so, at least 1."""


@dataclass(frozen=True)
class FeedbackArcs:
    """At least `low` and at most `high` labels must go; without those against `order`, best first, none need."""

    low: int
    high: int
    order: tuple[int, ...]

    @property
    def exact(self) -> bool:
        return self.low == self.high


def minimum_feedback_arcs(edges: Mapping[tuple[int, int], int]) -> FeedbackArcs:
    """Of the labels between responses of one prompt. Orders hold every response that is named.

    A pair that is labelled both ways costs its minority whatever the order, so only majorities are searched; and only
    within strongly connected components, which follow each other without cost.
    """
    net, both = _net(edges)
    low = high = both
    order: list[int] = []
    nodes = dict.fromkeys(node for pair in edges for node in pair)
    for component in components(nodes, net):
        inside = {pair: w for pair, w in net.items() if pair[0] in component and pair[1] in component}
        if len(component) <= EXACT:
            cost, part = _solved(sorted(component), inside)
            floor = cost
        else:
            cost, part = _bounded(sorted(component), inside)
            floor = packed_cycles(component, inside)
        low, high = low + floor, high + cost
        order += part
    return FeedbackArcs(low, high, tuple(order))


def against(edges: Iterable[tuple[int, int]], order: Sequence[int]) -> list[bool]:
    """Whether each edge (better, worse) contradicts the order."""
    place = {node: at for at, node in enumerate(order)}
    return [place[better] > place[worse] for better, worse in edges]


def _net(edges: Mapping[tuple[int, int], int]) -> tuple[Edges, int]:
    """Majorities and by how much, and the number of labels in the minority."""
    net: Edges = {}
    both = 0
    for (one, other), weight in edges.items():
        back = edges.get((other, one), 0)
        if weight > back:
            net[one, other] = weight - back
        both += min(weight, back)  # met from either end
    return net, both // 2


def components(nodes: Iterable[int], edges: Iterable[tuple[int, int]]) -> list[set[int]]:
    """The strongly connected components, each before those that it has edges to (Tarjan, 1972; without recursion)."""
    below: dict[int, list[int]] = {node: [] for node in nodes}
    for one, other in edges:
        below[one].append(other)
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    open_nodes: set[int] = set()
    found: list[set[int]] = []
    for root in below:
        if root in number:
            continue
        walk = [(root, iter(below[root]))]
        number[root] = lowest[root] = len(number)
        stack.append(root)
        open_nodes.add(root)
        while walk:
            node, rest = walk[-1]
            for child in rest:
                if child not in number:
                    number[child] = lowest[child] = len(number)
                    stack.append(child)
                    open_nodes.add(child)
                    walk.append((child, iter(below[child])))
                    break
                if child in open_nodes:
                    lowest[node] = min(lowest[node], number[child])
            else:
                walk.pop()
                if walk:
                    lowest[walk[-1][0]] = min(lowest[walk[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    at = stack.index(node)
                    found.append(set(stack[at:]))
                    open_nodes.difference_update(stack[at:])
                    del stack[at:]
    return found[::-1]


def _weights(nodes: Sequence[int], edges: Mapping[tuple[int, int], int]) -> NDArray[np.int64]:
    """[n, n]: how many say that the row's node is better than the column's."""
    at = {node: index for index, node in enumerate(nodes)}
    weights = np.zeros((len(nodes), len(nodes)), np.int64)
    for (one, other), weight in edges.items():
        weights[at[one], at[other]] = weight
    return weights


def _solved(nodes: Sequence[int], edges: Mapping[tuple[int, int], int]) -> tuple[int, list[int]]:
    """By dynamic programming over sets of nodes that come first: cost(S + v) = min cost(S) + labels v ≻ u, u in S."""
    count = len(nodes)
    weights = _weights(nodes, edges)
    sets = np.arange(1 << count)
    late = np.zeros((count, 1 << count), np.int64)  # what it costs to put v after all of a set
    for other in range(count):
        late += np.outer(weights[:, other], (sets >> other) & 1)
    sizes = np.bitwise_count(sets)
    cost = np.full(1 << count, np.iinfo(np.int64).max)
    cost[0] = 0
    last = np.zeros(1 << count, np.int64)
    for size in range(count):
        of_size = sets[sizes == size]
        for node in range(count):
            before = of_size[(of_size >> node) & 1 == 0]
            after = before | (1 << node)
            tried = cost[before] + late[node, before]
            better = tried < cost[after]
            cost[after[better]] = tried[better]
            last[after[better]] = node
    order: list[int] = []
    left = (1 << count) - 1
    while left:
        order.append(int(last[left]))
        left ^= 1 << order[-1]
    return int(cost[-1]), [nodes[index] for index in reversed(order)]


def _bounded(nodes: Sequence[int], edges: Mapping[tuple[int, int], int]) -> tuple[int, list[int]]:
    """An order by wins minus losses, then each node moved to where it costs least until no move helps."""
    if len(nodes) > _DENSE:
        lead = dict.fromkeys(nodes, 0)
        for (one, other), weight in edges.items():
            lead[one] += weight
            lead[other] -= weight
        order = sorted(nodes, key=lambda node: -lead[node])
        lost = against(edges, order)
        return sum(weight for weight, is_lost in zip(edges.values(), lost, strict=True) if is_lost), order
    weights = _weights(nodes, edges)
    gain = weights - weights.T
    places = np.argsort(-gain.sum(axis=1), kind="stable")
    for _ in range(_MOST_SWEEPS):
        moved = False
        for node in range(len(nodes)):
            at = int(np.flatnonzero(places == node)[0])
            others = np.delete(places, at)
            # What is won by standing before the last k of the others, against standing behind them all.
            won = np.concatenate([np.cumsum(gain[node, others[::-1]])[::-1], [0]])
            best = int(np.argmax(won))
            if won[best] > won[at]:
                places, moved = np.insert(others, best, node), True
        if not moved:
            break
    cost = int(np.tril(weights[np.ix_(places, places)]).sum())
    return cost, [nodes[index] for index in places]


def packed_cycles(nodes: Iterable[int], edges: Mapping[tuple[int, int], int]) -> int:
    """A lower bound: cycles are taken out one after another, and each costs one label of its own at least."""
    left = dict(edges)
    below: dict[int, set[int]] = {node: set() for node in nodes}
    for one, other in left:
        below[one].add(other)
    found = 0
    for edge in islice(list(left), most_paths(edges)):
        while left.get(edge, 0) > 0:
            back = path(below, edge[1], edge[0])
            if back is None:
                break
            cycle = [edge, *pairwise(back)]
            taken = min(left[each] for each in cycle)
            found += taken
            for each in cycle:
                left[each] -= taken
                if not left[each]:
                    below[each[0]].discard(each[1])
    return found


def most_paths(edges: Sized) -> int:
    """How many paths are searched for in a graph with these edges, so that the search ends."""
    return max(1, _MOST_STEPS // max(1, len(edges)))


def path(
    below: Mapping[int, Iterable[int]], start: int, goal: int, without: tuple[int, int] | None = None
) -> list[int] | None:
    """A shortest path between two nodes that does not use the edge `without`; None if there is none."""
    came: dict[int, int] = {start: start}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == goal:
            found = [node]
            while found[-1] != start:
                found.append(came[found[-1]])
            return found[::-1]
        for child in below[node]:
            if child not in came and (node, child) != without:
                came[child] = node
                queue.append(child)
    return None
