"""What a run's end shows in the terminal: the numbers that matter, and responses before and after."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from keel.cli.console import TerminalConsole, one_line
from keel.report import facts, samples
from keel.report.concerns import instruments
from keel.report.verdict import verdict
from keel.runs.read import RunView

_SAMPLES = 3
_LONGEST = 300


def print_summary(console: TerminalConsole, runs: Sequence[RunView]) -> None:
    """A table with a column a run (and one for the reference, once evaluated), verdicts, and a few samples."""
    names = facts.labels(runs)
    evaluated = any("reference" in facts.summary(run, "evaluate") for run in runs)
    header = ["", *(["reference"] if evaluated else []), *names]
    rows = [[row.label, *([row.reference] if evaluated else []), *row.values] for row in facts.comparison(runs)]
    rows += [[f"time: {row.label}", *([""] if evaluated else []), *row.values] for row in facts.timings(runs)]
    if rows:
        console.table("Results", header, rows)
    for name, run in zip(names, runs, strict=True):
        alarms = [alarm.sentence for alarm in instruments(run)]
        sentences = filter(None, (verdict(run).text, facts.reliability_note(run), *alarms))
        console.rich.print(Text(f"{name}: {' '.join(dict.fromkeys(sentences))}"))
    for sample in samples.samples(runs)[:_SAMPLES]:
        _show(console, sample)


def _show(console: TerminalConsole, sample: samples.Sample) -> None:
    console.rich.print(Text(f"\n{one_line(sample.prompt, _LONGEST)}", style="bold"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for answer in sample.answers:
        text = Text(one_line(answer.text, _LONGEST) or "(empty)")
        text.append(f"  [{answer.note}]" if answer.note else "", style="dim")
        grid.add_row(Text(f"  {answer.label}", style="dim", no_wrap=True), text)
    console.rich.print(grid)
