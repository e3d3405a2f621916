"""docs/guides/over-optimisation.md: its recipe is one, and its ranges are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from keel.config.recipe import parse_recipe
from keel.instruments import alarms
from keel.instruments.peaks import FALSE_ALARMS, least_fall

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "over-optimisation.md").read_text(encoding="utf-8")


def test_the_recipe_is_one() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    tree = yaml.safe_load(found[1])
    recipe = parse_recipe(
        {
            "name": "x",
            "model": {"base": "m"},
            "ppo": {"prompts": "p.jsonl", "reward": [{"model": "runs/mine/reward/model"}], **tree["ppo"]},
        },
        "the guide",
    )
    assert recipe.ppo is not None
    assert recipe.ppo.evaluate.picked_by == "eval/judge"
    assert recipe.ppo.evaluate.alarm_after == alarms.AFTER  # "unless given"


def test_the_ranges_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| ([a-z -]+) \| `.*?\| (.*?) \|", PAGE, re.MULTILINE))
    assert (alarms.LEAST_SURPRISE, alarms.MOST_SURPRISE) == (0.25, 1.25)
    assert rows["entropy"].startswith("below ¼ of its start (mode collapse), or above 1¼ times it")
    assert alarms.LEAST_VARIETY == 1 / 3
    assert rows["variety"].startswith("below ⅓ of its start")
    assert rows["repetition"] == f"{100 * alarms.MOST_REPETITION:.0f} points above its start"
    assert rows["length"] == f"beyond ±{alarms.MOST_CORRELATION}"
    assert alarms.MOST_DISAGREEMENT == 1.5
    assert rows["disagreement of an ensemble"] == "1½ times its start"
    assert rows["held-out score"].startswith("further below its peak than chance allows")
    found = re.search(r"chance .*? is at most (\d+) %", PAGE)
    assert found is not None
    assert int(found[1]) == 100 * FALSE_ALARMS
    quoted = re.findall(r"([\d.]+) after (\w+)", PAGE)
    words = {"one": 1, "two": 2, "five": 5, "ten": 10, "fifty": 50}
    assert [word for _, word in quoted] == list(words)
    assert [float(margin) for margin, _ in quoted] == [round(least_fall(words[word]), 1) for _, word in quoted]
