"""What was trained, from what, with what: the facts of the first screen, read from a run's files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.report.facts import learned_from, summary
from keel.report.numbers import count, dig, known, percent, size
from keel.runs.layout import STAGES
from keel.runs.read import RunView

_LONGEST_HEADER = 100_000_000  # bytes; what safetensors itself allows

_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".txt")


@dataclass(frozen=True)
class Step:
    """One stage in a line: `standing` is done, reused, going or open; `figure` and `note` say what went through it."""

    stage: str
    standing: str
    figure: str
    note: str


def model(run: RunView) -> str:
    """Base or architecture, size, and which weights were trained."""
    scratch, base = dig(run.recipe, "model", "scratch"), dig(run.recipe, "model", "base")
    name = source(base) if base else "A model"
    if scratch:
        name = f"A model from nothing, {_layers(scratch.get('layers'))}, {scratch.get('hidden')} wide"
    found = parameters(run)
    parts = [name, f"{size(found)} parameters" if found else "", _tuned(run)]
    return " · ".join(part for part in parts if part)


def _layers(found: Any) -> str:
    return f"{found} layer" if found == 1 else f"{found} layers"


def _tuned(run: RunView) -> str:
    how, rank = dig(run.recipe, "model", "tune"), known(dig(run.recipe, "model", "lora", "rank"))
    if how == "lora":
        return "LoRA" if rank is None else f"LoRA of rank {count(rank)}"
    return "all weights trained" if how == "full" else ""


def parameters(run: RunView) -> int | None:
    """How many the latest policy on disk has, from the headers of its safetensors; None where there is none."""
    folders = [run.stages[stage].path / "model" for stage in ("ppo", "direct", "sft") if stage in run.stages]
    if base := dig(run.recipe, "model", "base"):
        folders.append(Path(str(base)))
    for folder in folders:
        counts = [_elements(file) for file in sorted(folder.glob("model*.safetensors"))]
        if counts and None not in counts:
            return sum(filter(None, counts))
    return None


def _elements(file: Path) -> int | None:
    """All tensors' elements, by the format's header: its length in 8 bytes, then JSON; None if it cannot be read."""
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(length, _LONGEST_HEADER)))
        return sum(int(math.prod(tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def steps(run: RunView) -> list[Step]:
    """The stages that the recipe has, in their order, each with what went through it."""
    found = []
    for stage in STAGES:
        where = standing(run, stage)
        if where == "going":
            done = run.stages[stage].metrics[-1:]
            found.append(Step(stage, where, "unfinished", f"step {count(done[0]['iteration'])}" if done else ""))
        elif where == "open":
            found.append(Step(stage, where, "not begun", ""))
        elif where:
            found.append(Step(stage, where, *_FIGURES[stage](run, summary(run, stage))))
    return found


def standing(run: RunView, stage: str) -> str | None:
    """done | reused | going | open, or None for a stage that the recipe does not have."""
    view = run.stages.get(stage)
    if view is None:
        return "open" if run.recipe.get(stage) is not None else None
    if not view.finished:
        return "going"
    return "reused" if view.path.is_symlink() else "done"


def source(data: Any) -> str:
    """What a recipe's data source is called: a file's last name, a set's or a function's name; several joined."""
    if isinstance(data, str):
        return data if _is_name(data) else Path(data).name
    if isinstance(data, Sequence):
        return " + ".join(filter(None, map(source, data)))
    if not isinstance(data, dict):
        return ""
    return source(data.get("function") or data.get("path") or "")


def _is_name(text: str) -> bool:
    """module:function, or owner/name on the hub; not a path."""
    path = text.startswith((".", "/", "~")) or text.endswith(_FILES) or text.count("/") != 1
    return ":" in text or not path


def _sft(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    return _counted(found, "rows", "demonstrations"), source(dig(run.recipe, "sft", "data"))


def _collect(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    return _counted(found, "comparisons", "comparisons"), f"by {name}" if (name := annotator(run)) else ""


def _reward(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    learned, right = learned_from(found), known(found.get("accuracy"))
    if right is None:
        return learned, source(dig(run.recipe, "reward", "data"))
    ceiling = known(found.get("noise_ceiling"))
    return f"{percent(right)} right", learned if ceiling is None else f"of {percent(ceiling)} that noise allows"


def annotator(run: RunView) -> str:
    """Who compared, called scripted where a script did; empty where it is not known."""
    name = str(summary(run, "collect").get("annotator") or "")
    scripted = bool(dig(run.recipe, "collect", "annotator", "script"))
    return f"{name} (scripted)" if name and scripted and name != "scripted" else name


def _direct(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    pairs, right = _counted(found, "rows", "preferences"), known(dig(found, "validation", "accuracy"))
    return pairs, method(run) if right is None else f"{method(run)}, {percent(right)} right"


def method(run: RunView) -> str:
    """The direct stage's method as its authors write it."""
    kind = str(dig(run.recipe, "direct", "kind") or "")
    return {"hinge": "hinge", "simpo": "SimPO"}.get(kind, kind.upper())


def _ppo(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    iterations = _counted(found, "iterations", "iterations")
    batch, done = known(dig(run.recipe, "ppo", "rollout_batch")), known(found.get("iterations"))
    return iterations, f"{count(batch * done)} responses" if batch is not None and done is not None else ""


def _evaluate(run: RunView, found: dict[str, Any]) -> tuple[str, str]:
    each = known(found.get("per_prompt"))
    return _counted(found, "prompts", "prompts"), f"held out, {count(each)} responses each" if each else ""


_FIGURES: dict[str, Callable[[RunView, dict[str, Any]], tuple[str, str]]] = {
    "sft": _sft,
    "collect": _collect,
    "reward": _reward,
    "direct": _direct,
    "ppo": _ppo,
    "evaluate": _evaluate,
}


def _counted(found: dict[str, Any], key: str, name: str) -> str:
    return f"{count(found[key])} {name}" if known(found.get(key)) is not None else ""
