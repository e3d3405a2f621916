"""`keel watch`: live pages of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    runs: Annotated[list[Path], typer.Argument(help="Runs' directories, or directories that runs lie in.")],
    host: Annotated[str, typer.Option(help="The address; one that others reach needs a --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8100,
    token: Annotated[
        str | None, typer.Option(envvar="KEEL_WATCH_TOKEN", help="What browsers must bring, in the address, once.")
    ] = None,
) -> None:
    """Show runs, running or finished, in the browser: stages, curves, samples, alarms, side by side.

    Reads the directories and nothing else: training does not notice.

    **Example:** `keel watch runs`
    """
    import asyncio

    from keel.errors import UserError
    from keel.serve.launch import is_loopback, listen, run_until_told, url_of

    if not token and not is_loopback(host):
        raise UserError(f"others can reach {host}: give a --token (or set KEEL_WATCH_TOKEN) that they must bring")
    try:
        from keel.feedback.watch.app import make_watch_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"keel watch needs a package that is not installed ({error}); pip install 'keel-rlhf[feedback]'"
        ) from None
    ending = asyncio.Event()
    app = make_watch_app(runs, is_local=is_loopback, token=token or None, ending=ending)
    with listen(host, port) as listening:
        print(f"Open {url_of(listening)}/{'?token=…' if token else ''} in a browser. Ctrl-C ends it.", flush=True)
        run_until_told(app, listening, ending)
    print("Ended.")
