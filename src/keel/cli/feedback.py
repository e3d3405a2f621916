"""`keel feedback`: people judge responses, in a web app on a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keel.feedback.opening import DATABASE, VARIABLE, open_database

if TYPE_CHECKING:
    from keel.feedback.database import Database

feedback_app = typer.Typer(no_args_is_help=True)

DatabaseOption = Annotated[str, typer.Option(envvar=VARIABLE, help="A file, or postgresql://USER:PASSWORD@HOST/NAME.")]
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")]


class Judging(StrEnum):
    COMPARE = "compare"
    RANK = "rank"
    RATE = "rate"
    REVIEW = "review"


@feedback_app.callback()
def feedback() -> None:
    """People judge responses: a web app on a database of its own."""


@feedback_app.command()
def serve(
    database: DatabaseOption = DATABASE,
    host: Annotated[
        str, typer.Option(help="The address; others than this machine's need TLS before it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8400,
    public_url: Annotated[
        str | None, typer.Option(help="How browsers reach it, where that is not the address: https://HOST.")
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Runs, or a directory of runs, that admins and viewers watch; repeatable.")
    ] = None,
) -> None:
    """Serve the app in which people judge. The first start prints a link that makes the first admin.

    **Example:** `keel feedback serve --database feedback.db`
    """
    import asyncio

    from keel.serve.launch import is_loopback, listen, run_until_told, url_of

    with database_at(database, new=True) as opened:
        from keel.feedback.app import make_app

        ending = asyncio.Event()
        app = make_app(opened, public_url=public_url, host=host, runs=runs or (), ending=ending)
        with listen(host, port) as listening:
            url = (public_url or url_of(listening)).rstrip("/")
            print(f"Feedback in {opened}, at {url}")
            if not is_loopback(host) and not url.startswith("https:"):
                print(
                    "Others can reach it, and passwords travel as they are typed: put a proxy with TLS before it, and "
                    "give its address as --public-url https://HOST"
                )
            _print_setup(opened, url)
            print("Ctrl-C ends it.", flush=True)
            run_until_told(app, listening, ending)
    print("Ended.")


@contextmanager
def database_at(url: str, *, new: bool = False) -> Iterator[Database]:
    """The database, made only where that may be, and for nothing that fails. What it refuses is a UserError."""
    from keel.errors import UserError

    if not new and "://" not in url and not Path(url).exists():
        raise UserError(f"there is no database {url}; name the one that `keel feedback serve` was given")
    database = open_database(url)
    from keel.feedback.refused import for_the_terminal

    try:
        with for_the_terminal(), database.for_the_terminal():
            yield database
    except BaseException:
        database.discard()
        raise
    database.close()


def _print_setup(database: Database, url: str) -> None:
    """The link of the first admin, while there is none."""
    import time

    from keel.feedback import people

    with database.writing() as session:
        secret = people.setup_secret(session, now=time.time())
    if secret is not None:
        print(
            f"Nobody can sign in yet. This link makes the first admin, once, within 7 days:\n\n  {url}/join/{secret}\n"
        )
