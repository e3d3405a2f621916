"""`keel serve`: a policy, and reward models, over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

_ROUNDS = 4  # times --batch that a round may take: those that wait come in as others end


def serve(
    model: Annotated[str | None, typer.Argument(help="A policy's directory or hub name.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="A reward model's, to be asked for scores; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address; one that others reach needs a --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Responses drawn side by side.")] = 128,
    max_queue: Annotated[int, typer.Option(min=1, help="Responses that may wait; more are sent away (429).")] = 1024,
    token: Annotated[
        str | None, typer.Option(envvar="KEEL_SERVE_TOKEN", help="What clients must send as their API key.")
    ] = None,
    allow_updates: Annotated[
        bool, typer.Option("--allow-updates", help="Take other weights from a directory when told to.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="For requests without a seed of their own; fresh numbers unless given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Serve a policy to OpenAI's clients and to training, and reward models beside it or alone.

    **Example:** `keel serve runs/demo/polite/ppo/model --port 8000`
    """
    from keel.errors import UserError
    from keel.serve.launch import is_loopback, listen, run_until_told, url_of

    if model is None and not reward:
        raise UserError("give a model to serve, or reward models with --reward, or both")
    if allow_updates and model is None:
        raise UserError("--allow-updates has no effect without a policy; give one, or leave --allow-updates out")
    if not token and not is_loopback(host):
        raise UserError(f"others can reach {host}: give a --token (or set KEEL_SERVE_TOKEN) that they must know")
    try:
        from keel.serve.app import make_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"keel serve needs a package that is not installed ({error}); pip install 'keel-rlhf[serve]'"
        ) from None
    with listen(host, port) as listening:
        from keel.serve.desk import Desk
        from keel.serve.models import ServedPolicy, ServedReward
        from keel.serve.worker import Worker

        policy = None if model is None else ServedPolicy(model, device=device, batch=batch, say=print)
        rewards = [ServedReward(source, device=device, say=print) for source in reward or ()]
        worker = Worker(max_queue=max_queue, round_size=_ROUNDS * batch)
        app = make_app(Desk(worker, policy, rewards, seed=seed), token=token or None, updates=allow_updates)
        for served in (policy, *rewards):
            if served is not None:
                print(f"{served.name}: {served.describe()}")
        print(f"Ready at {url_of(listening)}/v1. Try it:\n\n{_example(url_of(listening), policy is not None, token)}\n")
        print("Ctrl-C ends it.", flush=True)
        run_until_told(app, listening)
        worker.close()
    print("Ended.")


def _example(url: str, policy: bool, token: str | None) -> str:
    """A request as a shell takes it."""
    where, body = (
        ("completions", '{"prompt": "Good morning", "max_tokens": 32}')
        if policy
        else ("score", '{"items": [{"prompt": "Good morning", "response": "Good morning to you."}]}')
    )
    key = " -H 'Authorization: Bearer '\"$KEEL_SERVE_TOKEN\"" if token else ""
    return f"  curl {url}/v1/{where} -H 'Content-Type: application/json'{key} \\\n    -d '{body}'"
