"""Which feedback trains with which objective, and the keys that then mean something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from keel.config.data import DataConfig
from keel.config.reward import Objective, Records, RewardConfig
from keel.data.convert import KINDS, convert, guess_kind
from keel.data.read import Row

FILE = {"path": "judged.jsonl"}


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({}, "comparisons"),
        ({"objective": "plackett_luce"}, "rankings"),
        ({"objective": "ordinal"}, "ratings"),
        ({"objective": "accept"}, "labels"),
        ({"records": "rankings", "pairs": "adjacent", "ties": "half"}, "rankings"),
        ({"records": "ratings", "ties": "half", "label_smoothing": 0.1}, "ratings"),
        ({"records": "labels"}, "labels"),
        ({"objective": "ordinal", "records": "ratings"}, "ratings"),
    ],
)
def test_an_objective_reads_its_own_records_unless_told(settings: dict[str, Any], reads: str) -> None:
    assert RewardConfig.model_validate({"data": FILE} | settings).reads == reads


def test_what_is_collected_is_compared() -> None:
    assert RewardConfig().reads == "comparisons"
    assert len(get_args(Objective)) == len(get_args(Records)) == 4


def test_the_guide_shows_every_kind_with_its_objective() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "judgements.md").read_text(encoding="utf-8")
    configs = [yaml.safe_load(block)["reward"] for block in re.findall(r"```yaml\n(.*?)```", guide, re.S)]
    found = [RewardConfig.model_validate(config) for config in configs]
    shown = [("plackett_luce", "rankings"), ("bradley_terry", "rankings"), ("ordinal", "ratings")]
    shown += [("bradley_terry", "ratings"), ("accept", "labels")]
    assert [(config.objective, config.reads) for config in found] == shown
    rows = [json.loads(line) for line in re.findall(r"```json\n(.*)\n```", guide)]
    source = DataConfig(path="guide")
    kinds = [KINDS[name] for name in ("rankings", "ratings", "labels")]
    for row, kind in zip(rows, kinds, strict=True):
        assert guess_kind(row, source) is kind
        (converted,) = convert(Row("guide", 0, row), kind, source)
        assert converted.findings == ()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"objective": "ordinal", "records": "rankings"},
            "objective: ordinal trains on ratings, not on rankings; leave records out",
        ),
        ({"objective": "plackett_luce", "records": "comparisons"}, "trains on rankings, not on comparisons"),
        ({"data": "collect", "objective": "accept"}, "data: collect holds comparisons, not labels; name a file"),
        (
            {"objective": "plackett_luce", "ties": "half"},
            "ties has no effect with objective: plackett_luce, which compares no pairs; leave it out",
        ),
        ({"objective": "accept", "label_smoothing": 0.1}, "label_smoothing has no effect with objective: accept"),
        ({"objective": "ordinal", "flip_probability": 0.1}, "flip_probability has no effect with objective: ordinal"),
        (
            {"objective": "plackett_luce", "ensemble": {"members": 2}},
            "an ensemble's members draw pairs: take objective: bradley_terry, which makes them",
        ),
        ({"pairs": "tournament"}, "pairs has no effect on comparisons, which are pairs already; leave it out"),
        ({"ties": "half"}, "ties has no effect on comparisons"),
        (
            {"records": "ratings", "pairs": "adjacent"},
            "pairs has no effect on ratings, where all of a prompt are compared; leave it out",
        ),
    ],
)
def test_contradictions_and_keys_without_effect_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RewardConfig.model_validate({"data": FILE} | settings)
    assert sentence in str(caught.value)
