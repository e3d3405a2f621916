"""What an audit tells of each way of judging: figures counted by hand, and none that make no sense there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

from keel.data.audit.audit import Audit, audit
from keel.data.audit.gather import Source
from keel.feedback.database import Database
from keel.feedback.overview import audit_of
from keel.feedback.tables import Kind
from tests.feedback.worlds import answered, people, project, tasks_of

CLEAR, TIE = {"best": 0, "strength": "clear"}, {"best": None, "strength": "tie"}
COMPARED = ["the longer response is preferred", "prompts whose judgements agree with no order"]


@pytest.mark.parametrize(
    ("kind", "responses", "said", "figures"),
    [
        (
            "compare",
            2,
            [CLEAR, CLEAR, TIE],
            {"comparisons": "2", "ties": "1", "the response that stood first is preferred": "100% of 2 (34% to 100%)"},
        ),
        ("rank", 3, [{"ranks": [1, 2, 3]}, {"ranks": [1, 1, 2]}], {"comparisons": "5", "ties": "1"}),
        (
            "rate",
            2,
            [{"ratings": [7, 2]}, {"ratings": [5, 5]}],
            {"ratings": "4", "how often each was given": "2: 1, 5: 2, 7: 1", "comparisons that follow": "1"},
        ),
        ("rate", 1, [{"ratings": [7]}], {"ratings": "1", "how often each was given": "7: 1"}),
        (  # Wilson's interval of 3 of 4, worked out by hand
            "review",
            1,
            [{"accepted": True}, {"accepted": True}, {"accepted": True}, {"accepted": False}],
            {"labels": "4", "accepted": "75% of 4 (30% to 95%)"},
        ),
    ],
)
def test_an_audit_has_the_figures_of_its_way_of_judging(
    database: Database, kind: Kind, responses: int, said: list[Any], figures: dict[str, str]
) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, kind, tasks=len(said), responses=responses)
        for task, answer in zip(tasks_of(session, made), said, strict=True):
            answered(session, made, ann, task, answer)
        number = made.id
    found = dict(audit_of(database, number).figures)
    assert found.items() >= figures.items()
    comparisons = any(name.startswith("comparisons") for name in figures)
    assert [name for name in COMPARED if name in found] == (COMPARED if comparisons else [])
    assert ("the response that stood first is preferred" in found) == (kind in ("compare", "rank"))


def test_the_database_is_let_go_before_the_audit_computes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit of much takes long; few connections are open at a time."""
    busy: list[int] = []
    connections = database._engine.pool
    assert isinstance(connections, QueuePool)

    def look(sources: Sequence[Source]) -> Audit:
        busy.append(connections.checkedout())
        return audit(sources)

    monkeypatch.setattr("keel.feedback.overview.audit", look)
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=1)
        answered(session, made, ann, tasks_of(session, made)[0], CLEAR)
        number = made.id
    audit_of(database, number)
    assert busy == [0]
