"""`keel chat`: talk to a model, or to two at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keel.build.conversation import Conversation, Reply

_NEW_TOKENS = 256  # where the context has room for twice as many
_COLUMNS_FROM = 100  # characters of a terminal in which two answers stand side by side
_COMMANDS = "/reset, /system TEXT, /temperature NUMBER, /quit"


def chat(
    model: Annotated[str, typer.Argument(help="A model's directory or hub name.")],
    against: Annotated[
        str | None, typer.Option(help="A second model that answers the same, with the same seed.")
    ] = None,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; 256, or half the context, unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same answers.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Talk to a model through its chat template; with --against, to two at once.

    Commands: /reset, /system TEXT, /temperature NUMBER, /quit. Without a terminal each line of input is a message and
    the answers are printed plainly.

    **Example:** `keel chat runs/mine/ppo/model --against runs/mine/sft/model`
    """
    from keel.build.conversation import Conversation, Responder

    responders = [Responder(source, device) for source in filter(None, (model, against))]
    rooms = [responder.context // 2 for responder in responders if responder.context is not None]
    table = _Table(
        [Conversation(responder, system) for responder in responders],
        new_tokens=max_new_tokens or max(1, min([_NEW_TOKENS, *rooms])),
        temperature=temperature,
        seed=seed,
        live=sys.stdin.isatty() and sys.stdout.isatty(),
    )
    for line in table.lines():
        if line == "/quit":
            break
        if line:
            table.hear(line)


class _Table:
    """Who sits at it, how answers are drawn, and how they are shown."""

    def __init__(
        self, talkers: list[Conversation], *, new_tokens: int, temperature: float, seed: int, live: bool
    ) -> None:
        self._talkers = talkers
        self._new_tokens = new_tokens
        self._temperature = temperature
        self._seed = seed
        self._live = live
        self._turn = 0

    def lines(self) -> Iterator[str]:
        """What the user writes, until the input ends."""
        if not self._live:
            yield from (line.strip() for line in sys.stdin)
            return
        import readline  # noqa: F401  # so that input() can be edited

        self._remark(f"Commands: {_COMMANDS}.")
        while True:
            try:
                yield input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return

    def hear(self, line: str) -> None:
        """A command, or a message that is answered."""
        from keel.errors import UserError

        try:
            if line.startswith("/"):
                self._command(*line.split(maxsplit=1))
            else:
                self._answer(line)
        except UserError as error:
            if not self._live:
                raise
            self._remark(str(error))
        except KeyboardInterrupt:
            if not self._live:
                raise
            self._remark("\n(stopped; the message is forgotten)")

    def _command(self, name: str, value: str = "") -> None:
        from keel.errors import UserError

        if name == "/reset":
            for talker in self._talkers:
                talker.reset()
            self._remark("(the conversation begins anew)")
        elif name == "/system":
            for talker in self._talkers:
                talker.system = value
            self._remark("(system message set)" if value else "(no system message)")
        elif name == "/temperature" and (temperature := _number(value)) is not None:
            self._temperature = temperature
            self._remark(f"(temperature {temperature:g})")
        else:
            raise UserError(f"{name} {value}".strip() + f" is no command; there are {_COMMANDS}")

    def _answer(self, question: str) -> None:
        from keel.config.sampling import SamplingConfig

        sampling = SamplingConfig(max_new_tokens=self._new_tokens, temperature=self._temperature)
        stream = _Stream() if self._live and len(self._talkers) == 1 else None
        replies = [
            talker.ask(question, sampling, seed=self._seed, turn=self._turn, hear=stream) for talker in self._talkers
        ]
        self._turn += 1
        if stream is not None:
            stream.end(replies[0].text)
        else:
            self._show(replies)
        for name, reply in zip(_names(replies), replies, strict=True):
            if reply.forgotten:
                self._remark(f"({name}the context is full; oldest exchanges left out: {reply.forgotten})")
            if not reply.text.strip() and self._live:
                self._remark(f"({name}nothing said)")
            if not reply.ended and self._live:
                self._remark(f"({name}cut at {self._new_tokens} tokens)")

    def _show(self, replies: list[Reply]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from keel.cli.console import printable

        texts = [printable(reply.text.strip()) for reply in replies]
        console = Console(highlight=False)
        if self._live and console.width >= _COLUMNS_FROM:
            columns = Table.grid(padding=(0, 3, 0, 0), expand=True)
            for _ in texts:
                columns.add_column(ratio=1)
            columns.add_row(*(Text(name.removesuffix(": "), style="bold") for name in _names(replies)))
            columns.add_row(*map(Text, texts))
            console.print(columns)
        else:
            for name, text in zip(_names(replies), texts, strict=True):
                print(f"{name}{text}")

    def _remark(self, text: str) -> None:
        """Beside the conversation: not among the answers that a script reads."""
        typer.secho(text, dim=True, err=not self._live)


class _Stream:
    """Writes an answer as it grows."""

    def __init__(self) -> None:
        self._written = ""

    def __call__(self, text: str) -> None:
        from keel.cli.console import printable

        said = text.lstrip()
        if said.endswith("\ufffd") or not said.startswith(self._written):
            return  # the rest of a character is still to come
        print(printable(said[len(self._written) :]), end="", flush=True)
        self._written = said

    def end(self, text: str) -> None:
        self(text.lstrip().rstrip("\ufffd"))
        print()


def _names(replies: list[Reply]) -> list[str]:
    return ["A: ", "B: "] if len(replies) == 2 else [""]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
