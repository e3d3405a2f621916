"""What a person who judges pairs in a terminal sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keel.annotate.base import Pair
from keel.annotate.terminal import Key
from keel.cli.console import printable

_SIDE_BY_SIDE = 72  # columns from which the two replies stand beside each other
_WIDEST = 110  # longer lines read badly
_SAID = {Key.FIRST: "left", Key.SECOND: "right", Key.EQUAL: "equal", Key.SKIP: "skipped"}
_HELP = "← → the better one    ↑ equal    ↓ skip    u undo    q stop here"
_LETTERS = "a or 1, b or 2 the better one    = equal    s skip    u undo    q stop here"


@contextmanager
def pair_screen(console: Console, pairs: Sequence[Pair], answers: Sequence[Key]) -> Iterator[Callable[[int], None]]:
    """A function that shows pair n, or past the last one that all are judged; `answers` grows while it is used.

    In a terminal each pair takes the place of the one before, on a screen of its own that is gone afterwards.
    """

    def show(number: int) -> None:
        if console.is_terminal:
            console.clear()
        width = min(console.width, _WIDEST)
        last = f"the last answer: {_SAID[answers[-1]]}" if answers else ""
        console.print(_head(number, len(pairs), width))
        if number < len(pairs):
            console.print(_pair(pairs[number], width), width=width)
            console.print(Text(_HELP if console.is_terminal else _LETTERS), style="bold", width=width)
            console.print(Text(last), style="dim")
        else:
            console.print(Text("\nAll pairs are judged."))
            console.print(Text("u takes the last answer back; any other key goes on to the training."), style="bold")
            console.print(Text(last), style="dim")

    if console.is_terminal:
        with console.screen(hide_cursor=True):
            yield show
    else:
        yield show


def _head(number: int, count: int, width: int) -> Table:
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(
        Text("Which reply would you rather get?", style="bold"),
        Text(f"{min(number + 1, count)} of {count}", style="dim"),
        ProgressBar(total=count, completed=number, width=max(5, min(30, width - 50))),
    )
    return head


def _pair(pair: Pair, width: int) -> Padding:
    """The request, and the replies side by side or, where that is too narrow, one under the other."""
    first, second = (Text(printable(text)) for text in (pair.first, pair.second))
    if width >= _SIDE_BY_SIDE:
        replies = Table.grid(expand=True, padding=(0, 4, 0, 0))
        replies.add_column(ratio=1)
        replies.add_column(ratio=1)
        replies.add_row(Text("←", style="bold cyan"), Text("→", style="bold magenta"))
        replies.add_row(first, second)
    else:
        replies = Table.grid(padding=(0, 1, 0, 0))
        replies.add_row(Text("←", style="bold cyan"), first)
        replies.add_row("", "")
        replies.add_row(Text("→", style="bold magenta"), second)
    whole = Table.grid(expand=True)
    whole.add_row(Text(printable(pair.prompt), style="italic"))
    whole.add_row("")
    whole.add_row(replies)
    return Padding(whole, (1, 0))
