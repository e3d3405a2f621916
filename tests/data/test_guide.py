"""What docs/guides/data.md says holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, PROMPTS, convert, guess_kind
from keel.data.read import Row
from keel.data.reasons import Reason

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text(encoding="utf-8")


def test_every_reason_stands_there_with_its_sentence() -> None:
    assert [reason for reason in Reason if f"| {reason.value} | {reason.sentence} |" not in GUIDE] == []


def test_the_example_rows_are_of_the_kinds_they_illustrate() -> None:
    lines = re.findall(r"^\| \w+ \|.*\| `(\{.*\})` \|$", GUIDE, re.M) + re.findall(r"```json\n(.*)\n```", GUIDE)
    kinds = []
    for line in lines:
        row = json.loads(line)
        kind = guess_kind(row, {})
        assert kind is not None
        kinds.append(kind)
        record, findings = convert(Row("guide", 0, row), kind, {})
        assert record is not None
        assert findings == []
    assert kinds == [PROMPTS, DEMONSTRATIONS, COMPARISONS, DEMONSTRATIONS, COMPARISONS, COMPARISONS]


def test_the_example_configurations_are_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    *strings, mapping = [yaml.safe_load("data:" + part)["data"] for part in block.split("data:")[1:]]
    assert [DataConfig.model_validate(string).name for string in strings] == strings
    config = DataConfig.model_validate(mapping)
    assert set(mapping) | {"function"} == set(DataConfig.model_fields)
    assert config.fields == {"chosen": "better", "rejected": "worse"}
