"""docs/metrics.md explains every metric and every key of a summary that the source writes, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "keel"
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
READERS = ("report", "cli", "feedback")  # they name metrics but make none
METRIC = re.compile(r"(?:sft|reward|direct|ppo|objective|eval|text|time)/\w+(?:/\w+)*")
STAGES = ("sft", "reward", "direct", "ppo")
# name.replace(old, new) in a stage: metrics of these makers appear under a second name as well
RENAMED = (
    ("engines/losses.py", "sft/", "sft/validation/"),
    ("engines/losses.py", "reward/", "reward/validation/"),
    ("engines/direct.py", "direct/", "direct/validation/"),
    ("engines/reward_losses.py", "reward/", "reward/validation/"),
    ("pipeline/measures.py:text_metrics", "objective/", "eval/"),
    ("pipeline/measures.py:text_metrics", "text/", "eval/"),
)
SUMMARIES = {
    "sft": {"pipeline/sft.py:train_sft": ""},
    "collect": {"pipeline/collect.py:_publish": "", "pipeline/collect.py:_counts": ""},
    "reward": {
        "pipeline/reward.py:train_reward": "",
        "pipeline/reward.py:judge_all": "",
        "pipeline/reward.py:judge": "",
        "pipeline/reward.py:judge_levels": "",
        "pipeline/reward.py:thresholds": "thresholds.",
        "assessment/calibration.py:reliability": "reliability.",
    },
    "direct": {"pipeline/direct.py:train_direct": ""},
    "ppo": {"pipeline/ppo.py:_publish": "", "instruments/fits.py:_described": "fits."},
    "evaluate": {
        "pipeline/evaluate.py:evaluate": "",
        "pipeline/evaluate.py:describe": "policy.",
        "pipeline/evaluate.py:compare": "score.",
        "pipeline/evaluate.py:likelihoods": "demonstrations.",
        "pipeline/evaluate.py:spent": "frontier.",
    },
    "assessment": {
        "build/assess.py:assess_reward": "",
        "pipeline/assess.py:assess": "",
        "assessment/findings.py:comparisons": "",
        "assessment/statistics.py:share_right": "accuracy.",
        "assessment/statistics.py:by_value": "by_margin.",
        "assessment/agreement.py:by_agreement": "by_agreement.",
        "assessment/findings.py:_length": "length.",
        "assessment/calibration.py:calibration": "calibration.",
        "assessment/agreement.py:ceiling": "ceiling.",
        "assessment/findings.py:replies": "replies.",
        "assessment/invariance.py:invariance": "invariance.",
    },
}


def tree(place: str) -> ast.AST:
    """A module, or a function of it: pipeline/sft.py, pipeline/sft.py:train_sft."""
    file, _, name = place.partition(":")
    module = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
    if not name:
        return module
    return next(node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == name)


def metrics(node: ast.AST) -> set[str]:
    """Metric names in the string literals below `node`; a name's variable part is NAME, or each of the stages."""
    found: set[str] = set()
    in_pattern = {id(part) for join in ast.walk(node) if isinstance(join, ast.JoinedStr) for part in join.values}
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            found |= {name for name in _spelled(part) if METRIC.fullmatch(name)}
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in in_pattern:
            found |= {part.value} if METRIC.fullmatch(part.value) else set()
    return found


def _spelled(pattern: ast.JoinedStr) -> Iterator[str]:
    for stage in STAGES:
        text = ""
        for part in pattern.values:
            if isinstance(part, ast.Constant):
                text += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                text += stage if ast.unparse(part.value) == "self.name" else "NAME"
        yield text


def made() -> set[str]:
    files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")]
    found = set().union(*(metrics(tree(str(file))) for file in files if file.parts[0] not in READERS))
    for place, old, new in RENAMED:
        found |= {name.replace(old, new, 1) for name in metrics(tree(place)) if name.startswith(old)}
    return found


def keys(place: str) -> set[str]:
    """The text keys of the dictionaries that a function returns, names or appends, and of `name["key"] = …`."""
    function = tree(place)
    dictionaries = [node for node in ast.walk(function) if isinstance(node, ast.Dict)]
    handed_on = [
        argument
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and not (isinstance(call.func, ast.Attribute) and call.func.attr == "append")
        for argument in call.args
    ]
    inside = [value for outer in dictionaries for value in outer.values]
    others = {id(node) for root in (*handed_on, *inside) for node in ast.walk(root)}
    found = {key for node in dictionaries if id(node) not in others for key in node.keys}
    found |= {
        node.targets[0].slice
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
    }
    return {str(key.value) for key in found if isinstance(key, ast.Constant)}


METRICS_PART, SUMMARIES_PART = PAGE.split("\n## Summaries", 1)


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.M)


IN_PAGE = first_column(METRICS_PART)


def test_every_metric_is_explained() -> None:
    assert sorted(made() - set(IN_PAGE)) == []


def test_every_explained_metric_exists() -> None:
    assert sorted(set(IN_PAGE) - made()) == []
    assert len(IN_PAGE) == len(set(IN_PAGE))


def test_the_search_finds_literals_patterns_and_renamed_ones() -> None:
    assert {"sft/loss", "reward/NAME/missing", "ppo/grad_norm", "sft/validation/loss", "eval/ended"} <= made()


@pytest.mark.parametrize("reader", READERS)
def test_readers_name_only_metrics_that_exist(reader: str) -> None:
    named = set().union(
        *(metrics(ast.parse(path.read_text(encoding="utf-8"))) for path in (SOURCE / reader).rglob("*.py"))
    )
    assert sorted(named - set(IN_PAGE)) == []


@pytest.mark.parametrize("stage", SUMMARIES)
def test_summaries_are_explained(stage: str) -> None:
    section = next(part for part in SUMMARIES_PART.split("\n### ") if part.startswith(f"{stage}\n"))
    written = {prefix + key for place, prefix in SUMMARIES[stage].items() for key in keys(place)}
    assert sorted(written) == sorted(first_column(section))
