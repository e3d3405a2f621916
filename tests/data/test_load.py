from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keel.config.data import DataConfig
from keel.data.load import Mixed, load_comparisons, load_demonstrations, load_prompts
from keel.data.reasons import Reason
from keel.data.write import write_jsonl
from keel.errors import UserError
from keel.schema import Comparison, Demonstration, Message, Prompt
from tests.data.conftest import Write


def said(*turns: str) -> str:
    """A transcript in the manner of hh-rlhf: "H: …" and "A: …" are its turns."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[3:]}" for turn in turns)


def pair(before: list[str], chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": said(*before, f"A: {chosen}"), "rejected": said(*before, f"A: {rejected}")}


# The kinds of dirt that real whole-dialogue comparisons contain.
DIRTY = [
    pair(["H: Hi"], "Hello!", "What?"),  # 0 sound
    pair(["H: Do you “like” tea?"], "I do.", "I do."),  # 1 the same
    pair(["H: Hi", "A: Yes?", "H: Tea"], "Here.", " "),  # 2 empty rejected
    {"chosen": said("H: Why?", "A: So."), "rejected": said("H: Why?", "A: So.", "A: Or so.")},  # 3 prompts differ
    {"chosen": said("H: Why?", "A: So.", "A: Or."), "rejected": said("H: Why?", "A: So.")},  # 4 differ, repeated
    pair(["H: Hi", "A: Yes?", "A: Well?", "H: Tea"], "Here.", "No."),  # 5 repeated role
    pair(["H: Is it?"], "It is.  Human: Good.", "Is it?"),  # 6 marker
    pair(["H: Title?"], "To be.", "To Sell is Human: a book"),  # 7 marker
]


def test_the_dirt_of_whole_dialogues(write: Write) -> None:
    config = DataConfig(path=write(*DIRTY), max_unusable=0.5, validation=0)
    loaded = load_comparisons(config)
    rows = {reason: [f.row for f in findings] for reason, findings in loaded.check.table().items()}
    assert rows == {
        Reason.EMPTY_RESPONSE: [2],
        Reason.SAME_RESPONSES: [1],
        Reason.PROMPTS_DIFFER: [3, 4],
        Reason.REPEATED_ROLE: [4, 5],
        Reason.ROLE_MARKER: [6, 7],
    }
    assert (loaded.check.total, loaded.check.usable) == (8, 4)
    assert loaded.train[0] == Comparison((Message("user", "Hi"),), "Hello!", "What?")
    assert [record.chosen for record in loaded.train] == ["Hello!", "Here.", "It is.  Human: Good.", "To be."]


def test_more_than_is_allowed_stops(write: Write) -> None:
    path = write(*DIRTY)
    with pytest.raises(
        UserError, match=r"rows.jsonl: 4 of 8 rows \(50.0%\) cannot be used, most often “prompts differ”"
    ):
        load_comparisons(DataConfig(path=path))


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {n}", "response": f"Answer {n}", "id": n, "topic": "t"} for n in range(count)]


def test_the_split_keeps_every_record_once_in_order_and_prompts_together(write: Write) -> None:
    rows = demonstrations(200)
    again = [row | {"response": "Another"} for row in rows]
    loaded = load_demonstrations(DataConfig(path=write(*rows, *again), validation=0.2))
    train, held = ([record.prompt for record in side] for side in (loaded.train, loaded.validation))
    assert not set(train) & set(held)
    assert len(train) + len(held) == 400
    assert 20 < len(set(held)) < 60
    assert [p for p in (row["prompt"] for row in rows) if p in set(train)] == train[: len(train) // 2]
    other = load_demonstrations(DataConfig(path=write(*reversed(rows), name="other.jsonl"), validation=0.2))
    assert {record.prompt for record in other.validation} == set(held)


def test_texts_without_a_prompt_are_held_out_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Text {n}" for n in range(200)))
    loaded = load_demonstrations(DataConfig(path=str(tmp_path / "texts.txt"), validation=0.2))
    assert 20 < len(loaded.validation) < 60
    assert len(loaded.train) + len(loaded.validation) == 200


def test_the_limit_counts_usable_rows_and_reads_no_further(write: Write) -> None:
    path = write(b"{", *demonstrations(3), b"{", b"{")
    loaded = load_demonstrations(DataConfig(path=path, limit=2, max_unusable=0.4, validation=0))
    assert [record.extra["id"] for record in loaded.train] == [0, 1]
    assert (loaded.check.total, loaded.check.usable) == (3, 2)


def test_what_does_not_fit_is_too_long(write: Write) -> None:
    config = DataConfig(path=write({"prompt": "short"}, {"prompt": "long" * 9}), max_unusable=0.5, validation=0)
    loaded = load_prompts(config, fits=lambda record: len(record.prompt) < 9)
    assert loaded.train == (Prompt("short"),)
    (finding,) = loaded.check.findings
    assert (finding.reason, finding.row) == (Reason.TOO_LONG, 1)


def test_fields_that_the_kind_has_not_are_refused(write: Write) -> None:
    with pytest.raises(UserError, match="fields maps response, but comparisons have prompt, chosen"):
        load_comparisons(DataConfig(path=write(DIRTY[0]), fields={"response": "chosen"}))


def test_nothing_to_train_on_is_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl holds no rows"):
        load_prompts(DataConfig(path=write(b"", b"  ")))
    config = DataConfig(path=write({"prompt": "The only one"}), validation=0.999999)
    with pytest.raises(UserError, match="every one of its 1 usable rows has a prompt that is held out"):
        load_prompts(config)


RECORDS = [
    Comparison("Hi", "Hello!", "Human: What?"),
    Comparison(
        (Message("system", ""), Message("user", " Hi\u2028")), " Hello 😀", "No.\n", 0.5, "ann", 2.0, {"id": [1]}
    ),
]


def test_written_records_read_back_identically(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_jsonl(path, RECORDS)
    assert load_comparisons(DataConfig(path=str(path), validation=0)).train == tuple(RECORDS)
    demonstration = Demonstration("Human: Hi", "Hello!", {"chosen": None})
    write_jsonl(path, [demonstration])
    assert load_demonstrations(DataConfig(path=str(path), validation=0)).train == (demonstration,)
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_jsonl(path, RECORDS)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_jsonl(path, [Prompt("Hi", {"when": object()})])
    assert path.read_bytes() == before


# --- system messages, and several sources ---

SYSTEM = Message("system", "Be brief.")


def test_a_system_message_goes_before_every_dialogue_without_one(write: Write) -> None:
    own = {"prompt": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Hi"}]}
    rows = [{"prompt": "Hi"}, {"prompt": [{"role": "user", "content": "Ho"}]}, own]
    loaded = load_prompts(DataConfig(path=write(*rows), system="Be brief.", validation=0))
    assert [record.prompt for record in loaded.train] == [
        (SYSTEM, Message("user", "Hi")),
        (SYSTEM, Message("user", "Ho")),
        (Message("system", "Be long."), Message("user", "Hi")),
    ]


def test_a_system_message_holds_out_the_same_prompts(write: Write) -> None:
    path = write(*demonstrations(60))
    without = load_demonstrations(DataConfig(path=path, validation=0.3))
    beside = load_demonstrations(DataConfig(path=path, validation=0.3, system="Be brief."))
    assert 5 < len(without.validation) < 40
    assert [row.extra["id"] for row in beside.validation] == [row.extra["id"] for row in without.validation]
    assert all(isinstance(row.prompt, tuple) and row.prompt[0] == SYSTEM for row in beside.validation)


def test_several_sources_stand_one_after_another(write: Write) -> None:
    one = DataConfig(path=write(*demonstrations(20)), validation=0.2, kind="safety", weight=2.0)
    other = DataConfig(path=write({"prompt": "Z", "response": "z"}, name="other.jsonl"), validation=0)
    mixed = Mixed(tuple((config, load_demonstrations(config)) for config in (one, other)))
    assert [(row.kind, row.source) for row in mixed.train] == [("safety", 0)] * mixed.mixture.sizes[0] + [(None, 1)]
    assert mixed.train[-1].record == Demonstration("Z", "z")
    assert {row.kind for row in mixed.validation} == {"safety"}
    assert mixed.mixture.sizes == (20 - len(mixed.validation), 1)
    assert mixed.mixture.weights == (2.0, 1.0)
    whole = mixed.whole()
    assert (whole.mixture.sizes, whole.validation) == ((20, 1), ())
    assert {row.record for row in whole.train} == {row.record for row in (*mixed.train, *mixed.validation)}


def test_a_topic_is_held_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Prompt(f"topic{n % 8}_view {n}") for n in range(80)])
    loaded = load_prompts(DataConfig(path=str(path), validation=0.4, together="^[^_]*"))
    sides = [{str(row.prompt).split("_")[0] for row in part} for part in (loaded.train, loaded.validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        DataConfig(path="rows.jsonl", together="(")
