"""What docs/guides/data.md says holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import yaml

from keel.config.data import DataConfig, LayoutName, sources_of
from keel.config.reward import RewardConfig
from keel.config.sft import SFTConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, LABELS, PROMPTS, RANKINGS, RATINGS, convert, guess_kind
from keel.data.files import ENDINGS
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
        config = DataConfig(path="guide")
        kind = guess_kind(row, config)
        assert kind is not None
        kinds.append(kind)
        (found,) = convert(Row("guide", 0, row), kind, config)
        assert found.record is not None
        assert found.findings == ()
    own_form = [PROMPTS, DEMONSTRATIONS, COMPARISONS, RANKINGS, RATINGS, LABELS]
    assert kinds == [*own_form, DEMONSTRATIONS, COMPARISONS, COMPARISONS]


def test_the_example_configurations_are_valid() -> None:
    *stages, block, mixed = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    for stage in stages:
        RewardConfig.model_validate(yaml.safe_load(stage)["reward"])
    *strings, mapping = [yaml.safe_load("data:" + part)["data"] for part in block.split("data:")[1:]]
    assert [DataConfig.model_validate(string).name for string in strings] == strings
    config = DataConfig.model_validate(mapping)
    assert set(mapping) | {"function"} == set(DataConfig.model_fields)
    assert config.fields == {"chosen": "better", "rejected": "worse"}
    sft = SFTConfig.model_validate(yaml.safe_load(mixed)["sft"])
    assert [source.weight for source in sources_of(sft.data)] == [2, 0.5, 1]


def test_every_layout_and_ending_is_named() -> None:
    assert [name for name in get_args(LayoutName) if f"`{name}`" not in GUIDE and name != "auto"] == []
    assert [ending for ending in ENDINGS if f"`{ending}`" not in GUIDE and ending not in (".gz", ".parquet")] == []
