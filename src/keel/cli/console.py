"""The live display of a run in a terminal, and its plain form in a file or pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from keel.runs.leaving import STOPPED

_PLAIN_EVERY = 20.0  # seconds between two lines where there is no terminal to redraw


class TerminalConsole:
    """A progress line a stage with the few numbers that matter, and samples as they come. A context manager."""

    def __init__(self, console: RichConsole | None = None) -> None:
        self.rich = console or RichConsole(highlight=False)
        self._live = self.rich.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),  # people's names among them
            console=self.rich,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said_at: dict[str, float] = {}

    def __enter__(self) -> TerminalConsole:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            self._progress.stop()
        if kind is KeyboardInterrupt:
            self.say(STOPPED)

    def say(self, text: str) -> None:
        self.rich.print(Text(text))

    def heading(self, text: str) -> None:
        """A rule with a title; the stages that follow get progress lines of their own."""
        for task in self._tasks.values():
            self._progress.stop_task(task)
        self._tasks.clear()
        self._said_at.clear()
        self.rich.rule(text, align="left")

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        shown = "  ".join(f"{_label(stage, name)} {value:z.4g}" for name, value in numbers.items())
        if self._live:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, total=total, numbers="")
            self._progress.update(self._tasks[stage], completed=done, total=total, numbers=shown)
            return
        now = time.monotonic()
        if done == total or now - self._said_at.get(stage, -_PLAIN_EVERY) >= _PLAIN_EVERY:
            self._said_at[stage] = now
            self.rich.print(Text(f"{stage:<9} {done}/{total}  {shown}"), soft_wrap=True)

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        for row in rows[:1]:
            line = Text(f"{'':9} ")
            line.append(one_line(row["prompt"], 60), style="dim")
            line.append(" → ")
            line.append(one_line(row["response"], 160))
            line.append(f"  [score {row['score']:z.2f}, KL {row['kl']:z.1f}]", style="dim")
            self.rich.print(line, soft_wrap=True)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A small table; the first column is text, the others numbers."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.rich.print(table)


def _label(stage: str, name: str) -> str:
    """`sft/validation/loss` in the line of sft is its `validation loss`."""
    return name.removeprefix(f"{stage}/").replace("validation/", "validation ")


def one_line(text: str, width: int) -> str:
    """A text of foreign origin on one line of at most `width` characters."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def printable(text: str) -> str:
    """Without control characters but line breaks and tabs: a response must not be able to steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
