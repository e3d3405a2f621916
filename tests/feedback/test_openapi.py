"""Whatever a client sends that the OpenAPI document allows, or nearly: an answer that it describes, never a failure."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select

from keel.feedback import people
from keel.feedback.database import Database
from keel.feedback.leases import lease
from keel.feedback.tables import Assignment, Kind
from tests.feedback.support import URL, add_user, quick_app
from tests.feedback.watch.support import begin_run, begin_stage, log
from tests.feedback.worlds import NOW, project

_EXAMPLES = 12
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def living_app(folder: Path, database: Database) -> FastAPI:
    """The app with something to find in every corner."""
    log(begin_stage(begin_run(folder / "runs" / "polite")), range(1, 4))
    ending = asyncio.Event()
    ending.set()  # a stream ends with what there is
    add_user(database, "ann")
    with database.writing() as session:
        root = people.everybody(session)[0].user
        kinds: list[tuple[Kind, int]] = [("compare", 2), ("rank", 3), ("rate", 2), ("review", 1)]
        for kind, responses in kinds:
            lease(session, project(session, kind, responses=responses), root, count=1, now=NOW)
    return quick_app(database, runs=[folder / "runs"], ending=ending)


def token_of(database: Database, name: str) -> str:
    """A new one: what was tried before may have ended the last."""
    with database.writing() as session:
        user = next(one.user for one in people.everybody(session) if one.user.name == name)
        return people.make_token(session, user, "fuzz", now=NOW)[1]


@pytest.mark.parametrize("name", ["root", "ann"])
def test_every_operation_answers_as_the_document_says(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where schemathesis keeps what it found
    app = living_app(tmp_path, database)
    with database.reading() as session:
        held = session.scalars(select(Assignment.id)).all()
    answered: Counter[int] = Counter()
    tried = 0
    for found in schemathesis.openapi.from_asgi("/api/openapi.json", app).get_all_operations():
        assert isinstance(found, Ok)
        _try_out(found.ok(), token_of(database, name), {"project_id": [1, 2, 3, 4], "assignment_id": held}, answered)
        tried += 1
    assert tried == sum(len(methods) for methods in app.openapi()["paths"].values()) > 30
    assert answered[200] + answered[201] > tried  # or nothing was tried but refusals


def _try_out(
    operation: APIOperation[Any, Any, Any, Any], token: str, real: Mapping[str, Sequence[Any]], answered: Counter[int]
) -> None:
    """One in two requests asks for what is there."""

    @settings(max_examples=_EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), there=st.booleans(), which=st.integers(0, 3))
    def answers(case: schemathesis.Case[Any], there: bool, which: int) -> None:
        if there:
            for key in case.path_parameters.keys() & real.keys():
                case.path_parameters[key] = real[key][which]
            if isinstance(case.body, dict) and "assignment" in case.body:
                case.body["assignment"] = real["assignment_id"][which]
        answer = case.call(base_url=URL, headers={"Authorization": f"Bearer {token}"})
        answered[answer.status_code] += 1
        case.validate_response(answer, checks=_CHECKS)

    answers()
