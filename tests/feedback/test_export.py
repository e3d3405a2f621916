"""Exports read back by the reader that training uses, and held against what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.config.data import DataConfig
from keel.data.audit.audit import audit
from keel.data.audit.gather import Source
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, LABELS, RANKINGS, RATINGS, Kind
from keel.data.reading import Reading
from keel.feedback.database import Database
from keel.feedback.export import Wanted, What, by_pseudonym, export_files
from keel.feedback.judgements import Said, judge
from keel.feedback.projects import Criterion, Settings, change_settings, find_project
from keel.feedback.tables import Assignment
from keel.feedback.tasks import NewResponse, NewTask, add_tasks
from keel.schema import Comparison, Demonstration, Label, Message, Ranking, Rating
from tests.feedback.worlds import NOW, answered, people, project, tasks_of

CLEAR = {"best": 0, "strength": "clear"}


def exported(database: Database, name: str, out: Path, what: What = "judgements", **more: Any) -> list[dict[str, Any]]:
    """The rows of one file."""
    names = {"names": by_pseudonym(database)} if more.pop("anonymous", False) else {}
    with database.snapshot() as session:
        export_files(session, find_project(session, name), {what: out}, Wanted(**more), **names)
    return [json.loads(line) for line in out.read_text().splitlines()]


def read(out: Path, kind: Kind[Any]) -> list[Any]:
    """As a stage reads it: every row is usable."""
    reading = Reading(DataConfig(path=str(out)), kind)
    records = list(reading)
    assert reading.check.unusable == 0
    return records


def test_a_comparison_says_all_that_is_known_of_it(database: Database, tmp_path: Path) -> None:
    prompt = (Message("user", "why?"), Message("assistant", "how?"), Message("user", "so"))
    task = NewTask(
        prompt,
        [NewResponse("a", "sft", {"ended": True}), NewResponse("b", "ppo", {"ended": False})],
        round=2,
        policy_version="v2",
        row={"topic": "sea", "chosen": "stale", "task": 0, "chosen_first": True},
    )
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=0, criteria=(Criterion(name="helpful"), Criterion(name="kind")))
        add_tasks(session, made, [task], now=NOW)
        (row,) = tasks_of(session, made)
        said = {"best": 1, "strength": "slight"}
        answered(
            session, made, ann, row, said, at=0.25, order=[1, 0], duration=4.500000000000341, comment="né",
            criteria={"helpful": 1, "kind": None},
        )  # fmt: skip
        number = row.id
    out = tmp_path / "out.jsonl"
    assert exported(database, "compare of 0", out)[0]["chosen"] == "b"
    extra = {
        "topic": "sea", "strength": "slight", "time": "1970-01-01T00:00:00.250+00:00", "duration": 4.5, "round": 2,
        "policy_version": "v2", "criteria": {"helpful": "rejected", "kind": None}, "comment": "né", "task": number,
        "chosen_first": True, "chosen_ended": False, "rejected_ended": True,
    }  # fmt: skip
    assert read(out, COMPARISONS) == [Comparison(prompt, "b", "a", annotator="ann", extra=extra)]


def test_ties_go_to_a_file_of_their_own(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=3)
        said = [CLEAR, {"best": None, "strength": "tie"}, {"best": None, "strength": "both_bad"}]
        for task, answer in zip(tasks_of(session, made), said, strict=True):
            answered(session, made, ann, task, answer, order=[1, 0])
        counts = export_files(
            session, made, {"judgements": tmp_path / "out.jsonl", "ties": tmp_path / "ties.jsonl"}, Wanted()
        )
        assert counts == {"judgements": 1, "ties": 2}
    ties = read(tmp_path / "ties.jsonl", RANKINGS)
    assert [(one.responses, one.ranks, one.extra["strength"]) for one in ties] == [
        (("response 1.1", "response 1.0"), (1, 1), "tie"),
        (("response 2.1", "response 2.0"), (1, 1), "both_bad"),
    ]


def test_a_ranking_stands_in_the_order_in_which_it_was_shown(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "rank", tasks=1, responses=3, criteria=(Criterion(name="true"),))
        (task,) = tasks_of(session, made)
        answered(session, made, ann, task, {"ranks": [3, 1, 2]}, order=[2, 0, 1], criteria={"true": 0})
    out = tmp_path / "out.jsonl"
    exported(database, "rank of 1", out)
    (ranking,) = read(out, RANKINGS)
    assert isinstance(ranking, Ranking)
    assert dict(zip(ranking.responses, ranking.ranks, strict=True)) == {
        "response 0.2": 2,
        "response 0.0": 3,
        "response 0.1": 1,
    }
    assert ranking.responses[0] == "response 0.2"
    assert ranking.extra["criteria"] == {"true": 0}  # the first shown, which is position 2
    assert [one.extra["chosen_first"] for one in read(out, COMPARISONS)] == [True, False, False]


def test_ratings_carry_their_scale_unless_it_has_changed(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "rate", tasks=1, responses=2, scale=(1, 7))
        (task,) = tasks_of(session, made)
        answered(session, made, ann, task, {"ratings": [6, 2]})
        change_settings(session, made, Settings(scale=(1, 5)))
    out = tmp_path / "out.jsonl"
    exported(database, "rate of 1", out)
    found = read(out, RATINGS)
    assert all(isinstance(one, Rating) for one in found)
    assert [(one.response, one.rating, one.scale) for one in found] == [
        ("response 0.0", 6.0, None),
        ("response 0.1", 2.0, (1.0, 5.0)),
    ]


def test_what_is_accepted_or_edited_is_a_demonstration(database: Database, tmp_path: Path) -> None:
    said = [
        {"accepted": True, "edited": None},
        {"accepted": False, "edited": "better"},
        {"accepted": False, "edited": None},
    ]
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, "review", tasks=3, responses=1)
        for task, answer in zip(tasks_of(session, made), said, strict=True):
            answered(session, made, ann, task, answer)
    labels, demonstrations = tmp_path / "labels.jsonl", tmp_path / "demonstrations.jsonl"
    exported(database, "review of 3", labels)
    exported(database, "review of 3", demonstrations, "demonstrations")
    found = read(labels, LABELS)
    assert all(isinstance(one, Label) for one in found)
    assert [(one.response, one.accepted) for one in found] == [
        ("response 0.0", True),
        ("response 1.0", False),
        ("response 2.0", False),
    ]
    shown = read(demonstrations, DEMONSTRATIONS)
    assert all(isinstance(one, Demonstration) for one in shown)
    assert [(one.prompt, one.response, one.extra["edited"]) for one in shown] == [
        ("prompt 0", "response 0.0", False),
        ("prompt 1", "better", True),
    ]


def test_only_what_stands_and_no_gold_practice_or_repeat_unless_asked_for(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        (ann,) = people(session, "ann")
        made = project(session, tasks=3)
        for number, purpose in enumerate(("gold", "practice")):
            task = NewTask(f"{purpose}?", [NewResponse("a"), NewResponse("b")], purpose=purpose, expected=CLEAR)  # type: ignore[arg-type]
            add_tasks(session, made, [task], now=NOW + number)
        one, two, three, *others = tasks_of(session, made)
        corrected = answered(session, made, ann, one, CLEAR)
        judge(session, ann, "again", corrected.id, Said("answer", {"best": 1, "strength": "clear"}), now=NOW)
        taken_back = answered(session, made, ann, two, CLEAR)
        judge(session, ann, "withdrawn", taken_back.id, Said("withdrawn"), now=NOW)
        answered(session, made, ann, three, None, verdict="skip")
        answered(session, made, ann, one, CLEAR, occasion=1)
        for task_row in others:
            answered(session, made, ann, task_row, CLEAR)
        assert session.get(Assignment, corrected.id) is not None
    out = tmp_path / "out.jsonl"
    assert [(row["prompt"], row["chosen"]) for row in exported(database, "compare of 3", out)] == [
        ("prompt 0", "response 0.1")
    ]
    everything = exported(database, "compare of 3", out, everything=True)
    assert [(row["prompt"], row["purpose"], row["occasion"]) for row in everything] == [
        ("prompt 0", "label", 0),
        ("prompt 0", "label", 1),
        ("gold?", "gold", 0),
        ("practice?", "practice", 0),
    ]
    assert exported(database, "compare of 3", out, round=2) == []


def test_pseudonyms_are_stable_and_tell_nobodys_name(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        users = people(session, "ann", "bob")
        made = project(session, tasks=2)
        for task in tasks_of(session, made):
            for user in users:
                answered(session, made, user, task, CLEAR)
    first = exported(database, "compare of 2", tmp_path / "out.jsonl", anonymous=True)
    again = exported(database, "compare of 2", tmp_path / "out.jsonl", anonymous=True)
    names = [row["annotator"] for row in first]
    assert names == [row["annotator"] for row in again]
    assert len(set(names)) == 2
    assert names[:2] == names[2:]
    assert "ann" not in (tmp_path / "out.jsonl").read_text().replace("annotator", "")


def test_the_audit_reads_an_export(database: Database, tmp_path: Path) -> None:
    """Two people on twelve pairs, of which they agree on nine; one of them always takes what is shown first."""
    with database.writing() as session:
        ann, bob = people(session, "ann", "bob")
        made = project(session, tasks=12)
        for number, task in enumerate(tasks_of(session, made)):
            order = [number % 2, 1 - number % 2]
            answered(session, made, ann, task, {"best": order[0], "strength": "clear"}, order=order)
            other = order[0] if number < 9 else order[1]
            answered(session, made, bob, task, {"best": other, "strength": "clear"}, order=order[::-1])
    out = tmp_path / "out.jsonl"
    exported(database, "compare of 12", out)
    found = audit([Source(DataConfig(path=str(out)), COMPARISONS)])
    assert [(one.name, one.votes) for one in found.annotators.people] == [("ann", 12), ("bob", 12)]
    assert found.annotators.agreement is not None
    assert found.annotators.agreement.value == pytest.approx(9 / 12)
    assert found.annotators.people[0].first.share == 1.0
