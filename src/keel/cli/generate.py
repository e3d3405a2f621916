"""`keel generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[str, typer.Argument(help="A model's directory or hub name.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts (.jsonl).")] = None,
    chat: Annotated[
        bool, typer.Option(help="Send each --prompt as a user's message through the chat template.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 1,
    best_of: Annotated[int, typer.Option(min=1, help="Draw so many for each response and keep the best.")] = 1,
    reward: Annotated[str | None, typer.Option(help="The reward model that judges: a directory or hub name.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.001, max=1, help="Draw from the likeliest tokens that hold this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same responses.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a response.")] = False,
) -> None:
    """Let a model respond to prompts.

    With --best-of and --json what is kept can be trained on: rejection-sampling fine-tuning is `keel sft` on that file.

    **Example:** `keel generate runs/demo/polite/ppo/model --prompt "how do i clean my kettle ?" --samples 3`
    """
    import json

    from keel.cli.console import printable
    from keel.config.data import DataConfig
    from keel.config.sampling import SamplingConfig
    from keel.data.load import load_prompts
    from keel.errors import UserError
    from keel.schema import Message, Prompt

    rows = [Prompt((Message("user", text),) if chat else text) for text in prompt or ()]
    if prompts is not None:
        rows += load_prompts(DataConfig(path=str(prompts), validation=0.0)).train
    if (best_of > 1) != (reward is not None):
        raise UserError("--best-of N and --reward MODEL go together: the model says which of the N is best")
    if not rows:
        raise UserError("give at least one --prompt TEXT, or a file of them with --prompts FILE")

    from keel.build import generate_responses  # torch: no sooner than a mistake is named

    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = generate_responses(
        model, rows, sampling, samples=samples, seed=seed, device=device, best_of=best_of, reward=reward
    )
    for row in drawn:
        shown = printable(f"{row['prompt']}\n  → {row['response'].strip()}\n")
        print(json.dumps(row, ensure_ascii=False) if json_lines else shown)
