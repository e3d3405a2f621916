"""The report: one HTML file that needs nothing else, of one run or several side by side, finished or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from keel.errors import UserError
from keel.report import facts, first_screen, numbers, samples, sections
from keel.report.concerns import concerns
from keel.report.figures import NUM_RUN_COLOURS, Panel, draw
from keel.runs.files import write_bytes
from keel.runs.read import RunView, read_run

_FIRST_SAMPLES = 3
_LONGEST_TEXT = 2000
_TIMES_SHOWN = 6
_PROMPTS_OVER_TIME = 4
_FINGERPRINT = 12  # characters of a hash


@dataclass(frozen=True)
class _Figure:
    title: str
    note: str
    svg: Markup  # drawn from numbers and fixed words, its title escaped
    minor: bool


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
    pages = environment()
    names = facts.labels(runs)
    found = samples.samples(runs)
    page: str = pages.get_template("report.html.j2").render(
        css=Markup(pages.get_template("report.css").render()),
        colours=NUM_RUN_COLOURS,
        names=names,
        cards=[first_screen.card(run, label) for run, label in zip(runs, names, strict=True)],
        first_samples=found[:_FIRST_SAMPLES],
        other_samples=found[_FIRST_SAMPLES:],
        rule=samples.rule(runs),
        concerns=[(label, concerns(run)) for run, label in zip(runs, names, strict=True)],
        stages=sections.stages(runs),
        figures=drawing(),
        over_time=[samples.over_time(run, _PROMPTS_OVER_TIME, _TIMES_SHOWN) for run in runs],
        recipes=[yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100) for run in runs],
        timings=facts.timings(runs),
        inputs=[_inputs(run) for run in runs],
        starts=[run.starts for run in runs],
    )
    return page


@cache
def environment() -> Environment:
    """The templates of this package, with what turns numbers into words."""
    pages = Environment(
        loader=PackageLoader("keel.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters |= {"number": numbers.number, "clip": _clip}
    return pages


def drawing() -> Callable[[Sequence[Panel]], list[_Figure]]:
    """Draws panels, each with ids of its own on the page; those without a curve are left out."""
    ids = count()

    def figures(panels: Sequence[Panel]) -> list[_Figure]:
        return [
            _Figure(panel.title, panel.note, Markup(draw(panel, next(ids))), panel.minor)
            for panel in panels
            if not panel.empty
        ]

    return figures


def _inputs(run: RunView) -> list[tuple[str, str, str]]:
    """(stage, input, the start of its hash or its version) of everything that was read."""
    return [
        (view.name, name, value[:_FINGERPRINT] if _is_hash(value) else value)
        for view in run.stages.values()
        for name, value in (view.identity.inputs if view.identity else {}).items()
    ]


def _is_hash(value: str) -> bool:
    return len(value) == 64 and " " not in value


def _clip(value: Any) -> str:
    text = str(value).strip()
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
