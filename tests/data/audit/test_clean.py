"""What is fit to use is written as it was read, what is not is listed, and a second audit finds nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keel.config.data import DataConfig
from keel.data.audit.audit import Audit, audit
from keel.data.audit.clean import beside, clean
from keel.data.audit.faults import Fault
from keel.data.convert import COMPARISONS, RANKINGS, RATINGS
from keel.data.load import load_comparisons
from keel.errors import UserError
from tests.data.audit.support import Row, audit_of, pair, save, source


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def faults_left(found: Audit) -> list[str]:
    return [one.fault.value for one in found.found if len(one) and one.fault.unfit(found.splits.by_file)]


DIRTY = [
    pair("a", "x", "y", "ann", id=0),
    pair("a", "x", "y", "ann", id=1),  # duplicate
    pair("a", "X ", "y", "ann", id=2),  # duplicate but for space and case
    pair("a", "y", "x", "bob", id=3),  # disagrees, and is kept
    pair("b", "x", "x", id=4),  # identical
    pair("b", "x", "X", id=5),  # identical but for case
    pair("b", "", "x", id=6),  # empty
    pair("b", "Human: x", "y", id=7),  # leaks
    {"prompt": "b", "chosen": "x", "id": 8},  # not usable
    pair("c", "x", "y", "ann", id=9),
    pair("c", "y", "x", "ann", id=10),  # 9 and 10 contradict each other
    pair("d", "x", "y", id=11),
    pair("d", "y", "z", id=12),
    pair("d", "z", "x", id=13),  # a circle is kept
    pair("e", "It ends with <|endoftext|> always.", "y", id=14),  # speaks of a marker, and is kept
]


def test_what_is_left_out_and_why(tmp_path: Path) -> None:
    found = audit_of(tmp_path, DIRTY)
    out = tmp_path / "clean.jsonl"
    done = clean(found, out)
    assert lines(out) == [DIRTY[number] for number in (0, 3, 11, 12, 13, 14)]
    listed = lines(beside(out))
    assert beside(out).name == "clean.left-out.jsonl"
    assert [(line["row"], line["reason"]) for line in listed] == [
        (1, "duplicate"),
        (2, "duplicate but for space or case"),
        (4, "identical pair"),
        (5, "identical but for space or case"),
        (6, "empty reply: chosen"),
        (7, "role marker in a reply"),
        (8, "not usable: missing field: no rejected; the row has prompt, chosen, id"),
        (9, "contradicts itself"),
        (10, "contradicts itself"),
    ]
    assert {line["file"] for line in listed} == {str(tmp_path / "rows.jsonl")}
    assert done.kept == 6
    assert sum(done.left_out.values()) == 9
    again = audit([source(str(out))])
    assert faults_left(again) == []
    assert len(load_comparisons(DataConfig(path=str(out), validation=0)).train) == 6


REPLIES = st.sampled_from(["x", "y", "z", "X", " y", "", "Human: z"])
ROWS = st.lists(
    st.builds(pair, st.sampled_from(["p", "P", "q"]), REPLIES, REPLIES, st.sampled_from([None, "ann", "bob"])),
    min_size=1, max_size=25,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(ROWS)
def test_a_second_audit_finds_nothing_unfit(tmp_path: Path, rows: list[Row]) -> None:
    out = tmp_path / "clean.jsonl"
    try:
        found = audit_of(tmp_path, rows)
        clean(found, out)
    except UserError:
        return
    assert faults_left(audit([source(str(out), validation=0.0)])) == []
    assert len(lines(out)) + len(lines(beside(out))) == len(rows)


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(30))
    train = [pair(prompt, "x", "y") for prompt in ("Tea?", words, "Milk?")]
    held_out = [pair(prompt, "u", "v") for prompt in (" TEA?", words + " more", "Jam?", "Jam?")]
    test = save(tmp_path / "test.jsonl", held_out)
    found = audit([source(save(tmp_path / "train.jsonl", train), held_out=False), source(test, held_out=True)])
    out = tmp_path / "clean.jsonl"
    clean(found, out)
    assert lines(out) == [train[2]]
    assert [line["reason"] for line in lines(beside(out))] == [
        "prompt is held out too",
        "prompt is nearly a held-out one",
    ]
    assert not {line["file"] for line in lines(beside(out))} & {test}
    assert faults_left(audit([source(str(out), held_out=False)])) == []


def test_many_prompts_of_one_template_are_held_to_few_held_out(tmp_path: Path) -> None:
    """3,000 that differ from each other and from three held-out ones in a word of 40: all go at once, one stays."""
    words = " ".join(f"word{number}" for number in range(39))
    train = [pair(f"{words} train{number}", "x", "y") for number in range(3000)] + [pair("Milk?", "x", "y")]
    test = save(tmp_path / "test.jsonl", [pair(f"{words} test{number}", "u", "v") for number in range(3)])
    given = source(save(tmp_path / "train.jsonl", train), held_out=False)
    done = clean(audit([given, source(test, held_out=True)]), tmp_path / "clean.jsonl")
    assert lines(tmp_path / "clean.jsonl") == train[-1:]
    assert (done.kept, done.unsure) == (1, 0)


def test_a_prompt_nearly_one_that_is_on_both_sides_goes_at_once(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(30))
    train = [pair(prompt, "x", "y") for prompt in (words, words + " more", "Milk?")]
    test = save(tmp_path / "test.jsonl", [pair(words, "u", "v")])
    given = source(save(tmp_path / "train.jsonl", train), held_out=False)
    clean(audit([given, source(test, held_out=True)]), tmp_path / "clean.jsonl")
    assert lines(tmp_path / "clean.jsonl") == train[-1:]


def test_rankings_are_written_as_comparisons_and_ratings_as_they_are(tmp_path: Path) -> None:
    ranking = {"prompt": "p", "responses": ["a", "b", "b"], "ranks": [1, 2, 3]}
    clean(audit_of(tmp_path, [ranking], RANKINGS), tmp_path / "pairs.jsonl")
    assert lines(tmp_path / "pairs.jsonl") == [pair("p", "a", "b", chosen_first=True)]
    assert [line["reason"] for line in lines(tmp_path / "pairs.left-out.jsonl")] == [
        "identical pair: responses 2 and 3", "duplicate",
    ]  # fmt: skip
    rated = [{"prompt": "p", "response": text, "rating": 2.0} for text in ("a", "a", "b", "Human: c")]
    clean(audit_of(tmp_path, rated, RATINGS), tmp_path / "rated.jsonl")
    assert lines(tmp_path / "rated.jsonl") == [rated[0], rated[2]]


def test_ties_are_listed(tmp_path: Path) -> None:
    """Of three replies in equal ranks but for one: a tie and two comparisons. The other question has a tie alone."""
    rows: list[Row] = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
        {"prompt": "q", "responses": ["a", "b"], "preferred": "tie"},
    ]
    done = clean(audit_of(tmp_path, rows), tmp_path / "clean.jsonl")
    listed = lines(tmp_path / "clean.left-out.jsonl")
    assert [(line["row"], line["reason"]) for line in listed] == [(0, "tie: responses 2 and 3"), (1, "tie")]
    assert (done.kept, done.left_out) == (2, {Fault.TIE: 2})
    assert faults_left(audit_of(tmp_path, rows)) == []


def test_a_row_is_left_out_for_the_first_of_its_faults(tmp_path: Path) -> None:
    rows = [pair("a", "Human: x", "y", "ann")] * 2 + [pair("a", "x", "y", "ann")] * 2 + [pair("a", "y", "x", "ann")]
    clean(audit_of(tmp_path, [*rows, pair("b", "x", "y")]), tmp_path / "clean.jsonl")
    assert [line["reason"] for line in lines(tmp_path / "clean.left-out.jsonl")] == [
        "role marker in a reply", "role marker in a reply", "contradicts itself", "duplicate", "contradicts itself",
    ]  # fmt: skip


def test_nothing_is_written_where_nothing_is_fit(tmp_path: Path) -> None:
    found = audit_of(tmp_path, [pair("a", "Human: x", "y")])
    with pytest.raises(UserError, match="no row is fit to use"):
        clean(found, tmp_path / "clean.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    found = audit_of(tmp_path, DIRTY)
    save(tmp_path / "rows.jsonl", DIRTY[:-1])
    with pytest.raises(UserError, match=r"rows\.jsonl has changed while it was audited"):
        clean(found, tmp_path / "clean.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    pairs = source(save(tmp_path / "pairs.jsonl", [pair("a", "x", "y")]), COMPARISONS)
    rated = source(save(tmp_path / "rated.jsonl", [{"prompt": "p", "response": "a", "rating": 2}]), RATINGS)
    with pytest.raises(UserError, match="a file holds one kind of record"):
        clean(audit([pairs, rated]), tmp_path / "clean.jsonl")
