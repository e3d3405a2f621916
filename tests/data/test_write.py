"""What is written reads back as the same records."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, KINDS, LABELS, PROMPTS, RANKINGS, RATINGS
from keel.data.load import read_records
from keel.data.write import write_jsonl
from keel.schema import Comparison, Demonstration, Label, Message, Prompt, Ranking, Rating

SAID = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
TURNS = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), SAID), min_size=1, max_size=4
)
DIALOGUE = SAID | TURNS.map(tuple)
# Names that other layouts know their columns by.
EXTRA = st.dictionaries(
    st.sampled_from(["id", "messages", "conversations", "instruction", "completion", "label", "file", "input"]),
    st.none() | st.booleans() | st.integers() | SAID | st.lists(SAID, max_size=2),
    max_size=3,
)
NUMBER = st.floats(0, 10)
ANNOTATOR = st.none() | SAID


def two_of(one: Any) -> Any:
    return st.lists(one, min_size=2, max_size=2, unique_by=lambda text: text.strip())


RECORDS: dict[str, st.SearchStrategy[Any]] = {
    PROMPTS.name: st.builds(Prompt, DIALOGUE, EXTRA),
    DEMONSTRATIONS.name: st.builds(Demonstration, DIALOGUE, SAID, EXTRA),
    COMPARISONS.name: st.builds(
        lambda prompt, pair, *rest: Comparison(prompt, *pair, *rest),
        DIALOGUE, two_of(SAID), st.none() | NUMBER, ANNOTATOR, st.floats(0.1, 9), EXTRA,
    ),
    RANKINGS.name: st.builds(
        lambda prompt, ranked, *rest: Ranking(prompt, tuple(r for r, _ in ranked), tuple(n for _, n in ranked), *rest),
        DIALOGUE, st.lists(st.tuples(SAID, st.integers(1, 4)), min_size=2, max_size=4), ANNOTATOR, EXTRA,
    ),
    RATINGS.name: st.builds(Rating, DIALOGUE, SAID, NUMBER, st.none() | st.just((0.0, 10.0)), ANNOTATOR, EXTRA),
    LABELS.name: st.builds(Label, DIALOGUE, SAID, st.booleans(), ANNOTATOR, EXTRA),
}  # fmt: skip


@settings(max_examples=25)
@given(st.data())
def test_records_of_every_kind_read_back_as_they_were(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(KINDS.values())))
    records = data.draw(st.lists(RECORDS[kind.name], min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        write_jsonl(path, records)
        back, check = read_records(DataConfig(path=str(path)), kind)
    assert list(back) == records
    assert set(check.layouts) == {"keel"}


def test_a_demonstration_without_a_prompt_reads_back(tmp_path: Path) -> None:
    record = Demonstration("", "Once upon a time.", {"id": 7})
    write_jsonl(tmp_path / "texts.jsonl", [record])
    assert read_records(DataConfig(path=str(tmp_path / "texts.jsonl")), DEMONSTRATIONS)[0] == (record,)
