"""The report: one HTML file that needs nothing else, of one run or several side by side, finished or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from keel.errors import UserError
from keel.report import against_kl, curves, facts, numbers
from keel.report.figures import NUM_RUN_COLOURS, Panel, draw
from keel.runs.files import write_bytes
from keel.runs.layout import STAGES
from keel.runs.read import RunView, read_run

_FIRST_SAMPLES = 3
_LONGEST_TEXT = 2000
_TIMES_SHOWN = 6
_PROMPTS_OVER_TIME = 4


@dataclass(frozen=True)
class _Figure:
    title: str
    note: str
    svg: Markup  # drawn from numbers and fixed words only
    size: str


@dataclass(frozen=True)
class _Section:
    """A group of figures: sentences about what is missing or worth saying, then the figures."""

    anchor: str
    title: str
    notes: list[str]
    figures: list[_Figure]
    legend: bool  # whose colour is whose


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of the runs in these directories to `out` in one step, and return `out`.

    Raises UserError if a directory holds no run, `runs` is empty, or `out` cannot be written.
    """
    if not runs:
        raise UserError("there is nothing to report on; name at least one run's directory.")
    page = render([read_run(path) for path in runs])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, page.encode("utf-8", "replace"))  # a response may hold half of a surrogate pair
    except OSError as error:
        raise UserError(f"the report cannot be written to {out} ({error.strerror}); give another --out.") from error
    return out


def render(runs: Sequence[RunView]) -> str:
    """The page as text. Whatever comes from the data is escaped; a policy in the page forbids scripts and loading."""
    environment = Environment(
        loader=PackageLoader("keel.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": numbers.number, "percent": numbers.percent, "clip": _clip}
    ids = count()
    names = facts.labels(runs)

    def section(anchor: str, title: str, panels: list[Panel], notes: list[str]) -> _Section:
        figures = [
            _Figure(panel.title, panel.note, Markup(draw(panel, next(ids))), panel.size)
            for panel in panels
            if not panel.empty
        ]
        coloured = any(curve.colour.startswith("run") for panel in panels for curve in panel.curves)
        return _Section(anchor, title, notes, figures, legend=len(runs) > 1 and coloured)

    page: str = environment.get_template("report.html.j2").render(
        css=Markup(environment.get_template("report.css").render()),
        colours=NUM_RUN_COLOURS,
        names=names,
        cards=[_card(run, label) for run, label in zip(runs, names, strict=True)],
        first_samples=facts.samples(runs)[:_FIRST_SAMPLES],
        samples=facts.samples(runs),
        comparison=facts.comparison(runs),
        evaluated=any("reference" in facts.summary(run, "evaluate") for run in runs),
        sections=_sections(runs, section),
        over_time=[_over_time(run, label, index) for index, (run, label) in enumerate(zip(runs, names, strict=True))],
        recipes=[yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100) for run in runs],
        timings=facts.timings(runs),
        starts=[(label, run.starts) for label, run in zip(names, runs, strict=True)],
    )
    return page


def _sections(runs: Sequence[RunView], section: Callable[..., _Section]) -> list[_Section]:
    labels = facts.labels(runs)

    def noted(find: Callable[[RunView], str | None]) -> list[str]:
        return [_of(label, labels) + found for run, label in zip(runs, labels, strict=True) if (found := find(run))]

    return [
        section(
            "frontier",
            "Score against KL",
            against_kl.frontier_panels(runs),
            noted(facts.reliability_note) + _missing(runs, "evaluate"),
        ),
        section(
            "truth", "Proxy and truth", against_kl.truth_panels(runs), noted(facts.peak_note) + noted(_unknown_truth)
        ),
        section("ppo", "PPO", curves.ppo_panels(runs), _missing(runs, "ppo") + noted(_ended)),
        section(
            "reward",
            "Reward model",
            curves.reward_panels(runs),
            noted(_collected) + _missing(runs, "reward") + noted(_judged),
        ),
        section(
            "sft", "Supervised fine-tuning", curves.sft_panels(runs), _missing(runs, "sft") + _shared(runs, labels)
        ),
    ]


def _card(run: RunView, label: str) -> dict[str, Any]:
    """What the first screen says of one run."""
    found = facts.summary(run, "evaluate")
    kind, sentence = facts.verdict(run)
    frontier = found.get("frontier")
    tiles = [
        (
            "Win rate, true utility",
            numbers.percent(numbers.dig(found, "utility", "win_rate")),
            _interval(numbers.dig(found, "utility", "win_rate_interval")),
        ),
        (
            "Win rate, reward model",
            numbers.percent(numbers.dig(found, "score", "win_rate")),
            _interval(numbers.dig(found, "score", "win_rate_interval")),
        ),
        ("KL to the reference", numbers.number(found.get("kl")), _kl_note(found)),
        (
            "Reached of what this KL can buy",
            numbers.percent(numbers.dig(frontier, "reached")),
            _frontier_note(frontier),
        ),
    ]
    return {
        "label": label,
        "model": facts.describe_model(run),
        "seed": run.recipe.get("seed"),
        "line": [(stage, _standing(run, stage)) for stage in STAGES if _standing(run, stage)],
        "verdict": kind,
        "sentence": sentence,
        "tiles": [tile for tile in tiles if tile[1] != numbers.ABSENT],
        "measures": facts.measures_note(run),
        "peak": facts.peak_note(run),
    }


def _standing(run: RunView, stage: str) -> str | None:
    """done | going | open, or None for a stage that the recipe does not have."""
    view = run.stages.get(stage)
    if view is None:
        return "open" if run.recipe.get(stage) is not None else None
    return "done" if view.finished else "going"


def _interval(bounds: Any) -> str:
    text = numbers.percent_range(bounds)
    return f"95% interval {text}" if text else ""


def _kl_note(found: dict[str, Any]) -> str:
    error, token = found.get("kl_standard_error"), found.get("kl_per_token")
    spread = f"± {numbers.number(error)} " if numbers.known(error) is not None else ""
    return f"{spread}nats a response" + (
        f", {numbers.number(token, 3)} a token" if numbers.known(token) is not None else ""
    )


def _frontier_note(frontier: Any) -> str:
    samples, half = numbers.dig(frontier, "samples_a_prompt"), numbers.dig(frontier, "bound_from_half_the_samples")
    trust = "reliable" if numbers.dig(frontier, "reliable") else "not reliable at this KL"
    bound = numbers.dig(frontier, "bound")
    return (
        f"{trust}: {samples} samples a prompt, bound {numbers.number(bound)}, from half of them {numbers.number(half)}"
    )


def _of(label: str, labels: Sequence[str]) -> str:
    return f"{label}: " if len(labels) > 1 else ""


def _missing(runs: Sequence[RunView], stage: str) -> list[str]:
    labels = facts.labels(runs)
    found = [(label, facts.state(run, stage)) for run, label in zip(runs, labels, strict=True)]
    return [f"{label}: {sentence}." for label, sentence in found if sentence]


def _ended(run: RunView) -> str | None:
    found = facts.summary(run, "ppo")
    if not found:
        return None
    early = f", because {found['stopped']}" if found.get("stopped") else ""
    taken = f"the model handed on is that of iteration {found.get('model_of_iteration')}"
    return f"Ended after {found.get('iterations')} iterations{early}; {taken}."


def _collected(run: RunView) -> str | None:
    found = facts.summary(run, "collect")
    if not found:
        return None
    return (
        f"{found.get('comparisons')} comparisons of responses to {found.get('prompts')} prompts by the scripted "
        f"annotator {found.get('annotator')}; {found.get('identical_pairs')} pairs of identical responses left out."
    )


def _judged(run: RunView) -> str | None:
    found = facts.summary(run, "reward")
    if numbers.known(found.get("accuracy")) is None:
        return None
    interval, pairs = numbers.percent_range(found.get("accuracy_interval")), found.get("validation_pairs")
    ceiling = numbers.known(found.get("noise_ceiling"))
    allowed = f"; the annotator's noise allows {numbers.percent(ceiling, 1)}" if ceiling is not None else ""
    return f"Accuracy {numbers.percent(found['accuracy'], 1)} ({interval}) on {pairs} held-out pairs{allowed}."


def _shared(runs: Sequence[RunView], labels: Sequence[str]) -> list[str]:
    groups = [source.runs for source in curves.sources(runs, "sft") if len(source.runs) > 1]
    return [f"Shared by {' and '.join(labels[index] for index in group)}." for group in groups]


def _unknown_truth(run: RunView) -> str | None:
    if numbers.series(run.stages.get("ppo"), "eval/utility"):
        return None
    if numbers.dig(run.recipe, "ppo", "evaluate", "utility"):
        return "The true utility has not been measured yet."
    return "The true utility is not measured; where it is known, name it in the recipe as ppo.evaluate.utility."


def _over_time(run: RunView, label: str, index: int) -> dict[str, Any]:
    """A few held-out prompts, each with its response at some iterations from the first to the last."""
    prompts = list(facts.prompts_over_time(run.stages.get("ppo")).items())[:_PROMPTS_OVER_TIME]
    return {"label": label, "index": index, "prompts": [(prompt, _spread(rows)) for prompt, rows in prompts]}


def _spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    last = len(rows) - 1
    kept = sorted({round(last * index / (_TIMES_SHOWN - 1)) for index in range(_TIMES_SHOWN)})
    return [rows[index] for index in kept]


def _clip(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
