"""The least number of labels to drop, held to all orders of few replies and to graphs whose answer is known."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.audit.feedback_arcs import (
    EXACT,
    Edges,
    against,
    components,
    minimum_feedback_arcs,
    packed_cycles,
    path,
)


def cost(edges: Edges, order: tuple[int, ...]) -> int:
    place = {node: at for at, node in enumerate(order)}
    return sum(weight for (better, worse), weight in edges.items() if place[better] > place[worse])


def by_all_orders(edges: Edges) -> int:
    nodes = sorted({node for pair in edges for node in pair})
    return min((cost(edges, order) for order in permutations(nodes)), default=0)


GRAPHS = st.dictionaries(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1]), st.integers(1, 4)
)


@given(GRAPHS)
def test_the_least_is_that_of_all_orders(edges: Edges) -> None:
    found = minimum_feedback_arcs(edges)
    assert found.low == found.high == by_all_orders(edges)
    assert cost(edges, found.order) == found.high
    assert (
        sum(w for (pair, w), lost in zip(edges.items(), against(edges, found.order), strict=True) if lost) == found.high
    )


@pytest.mark.parametrize(
    ("edges", "least"),
    [
        ({}, 0),
        ({(1, 2): 5, (2, 3): 5, (1, 3): 1}, 0),
        ({(1, 2): 3, (2, 1): 2}, 2),
        ({(1, 2): 2, (2, 1): 2}, 2),
        ({(1, 2): 3, (2, 3): 2, (3, 1): 4}, 2),
        ({(1, 2): 1, (2, 3): 1, (3, 1): 1, (3, 4): 1, (4, 5): 1, (5, 3): 1}, 2),  # two circles meet in 3
    ],
)
def test_hand_made_graphs(edges: Edges, least: int) -> None:
    found = minimum_feedback_arcs(edges)
    assert (found.low, found.high) == (least, least)


def rings(count: int, size: int) -> Edges:
    """Circles of `size`, each sharing a node with the next: one strongly connected component."""
    edges: Edges = {}
    for ring in range(count):
        nodes = [ring * (size - 1) + at for at in range(size)]
        edges |= dict.fromkeys(zip(nodes, [*nodes[1:], nodes[0]], strict=True), 1)
    return edges


@pytest.mark.parametrize(("count", "size"), [(10, 5), (200, 4)])
def test_many_replies_are_bounded_from_both_sides(count: int, size: int) -> None:
    edges = rings(count, size)
    assert len({node for pair in edges for node in pair}) > EXACT
    found = minimum_feedback_arcs(edges)
    assert found.low <= count <= found.high <= 2 * count
    assert found.low == count  # the rings have no label in common
    assert cost(edges, found.order) == found.high


def test_a_random_tournament_is_bounded() -> None:
    draw = np.random.default_rng(0)
    edges = {(a, b) if draw.random() < 0.7 else (b, a): 1 for a in range(30) for b in range(a + 1, 30)}
    found = minimum_feedback_arcs(edges)
    in_order = cost(edges, tuple(range(30)))  # the order the labels were drawn from
    assert 0 < found.low <= found.high <= in_order
    assert cost(edges, found.order) == found.high


@given(GRAPHS)
def test_the_bounds_hold_where_the_answer_is_known(edges: Edges) -> None:
    nodes = {node for pair in edges for node in pair}
    assert packed_cycles(nodes, edges) <= by_all_orders(edges)


@given(GRAPHS)
def test_components_are_what_reaches_each_other(edges: Edges) -> None:
    nodes = sorted({node for pair in edges for node in pair})
    below = {node: [worse for better, worse in edges if better == node] for node in nodes}
    reach = {(a, b) for a in nodes for b in nodes if path(below, a, b) is not None}
    found = components(nodes, edges)
    assert sorted(node for part in found for node in part) == nodes
    place = {node: at for at, part in enumerate(found) for node in part}
    for a in nodes:
        for b in nodes:
            assert (place[a] == place[b]) == ((a, b) in reach and (b, a) in reach)
    assert all(place[better] <= place[worse] for better, worse in edges)
