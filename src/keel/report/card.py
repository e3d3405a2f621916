"""The model card of an exported model: what it is, what was measured, and what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from keel.report import facts
from keel.report.about import method
from keel.report.numbers import dig, percent, percent_range
from keel.runs.layout import STAGES
from keel.runs.read import RunView


def model_card(run: RunView, stage: str, *, adapter: bool) -> str:
    """Markdown with the front matter that hubs read. Nothing of the machine it was made on stands in it."""
    base = str(dig(run.recipe, "model", "base") or "")
    path = Path(base)
    on_hub = bool(base) and not path.is_absolute() and not path.exists() and base.count("/") == 1
    made_of = STAGES[: STAGES.index(stage) + 1]
    template = Environment(
        loader=PackageLoader("keel.report"), undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("card.md.j2")
    return template.render(
        name=run.name,
        stage=stage,
        adapter=adapter,
        method=method(run),
        online=facts.online_method(run) or "PPO",
        base=(base if on_hub else path.name) or "a model from nothing",
        base_on_hub=on_hub,
        rows=facts.comparison([run]) if stage == facts.judged_stage(run) and facts.summary(run, "evaluate") else [],
        ensemble=dig(run.recipe, "reward", "ensemble"),
        judged=_judged(facts.summary(run, "reward")) if stage == "reward" else {},
        objective=dig(run.recipe, "reward", "objective") or "bradley_terry",
        inputs=[
            (name, key, digest)
            for name in made_of
            if name in run.stages and (identity := run.stages[name].identity)
            for key, digest in identity.inputs.items()
        ],
        versions=run.starts[-1],
        recipe=yaml.safe_dump(_without_paths(run.recipe), sort_keys=False, allow_unicode=True),
    )


def _judged(summary: dict[str, Any]) -> dict[str, str]:
    """How good the reward model is on held-out pairs."""
    found = {}
    if summary.get("accuracy") is not None:
        found["right on held-out pairs"] = _rate(summary, "accuracy")
        found["“the longer one wins” on the same pairs"] = percent(summary.get("longer_wins"))
    if summary.get("level_accuracy") is not None:
        found["held-out responses scored in their level"] = _rate(summary, "level_accuracy")
        found["“always the commonest level” on the same responses"] = percent(summary.get("commonest_level"))
    if found:
        found["trained on"] = facts.learned_from(summary)
        found["held-out pairs"] = f"{summary.get('validation_pairs'):,}"
    return found


def _rate(summary: dict[str, Any], key: str) -> str:
    return f"{percent(summary[key])} (95 % interval {percent_range(summary.get(f'{key}_interval'))})"


def _without_paths(value: Any) -> Any:
    """Absolute paths by their last part, and without the keys that say nothing."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
