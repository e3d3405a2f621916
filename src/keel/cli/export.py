"""`keel export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Stage(StrEnum):
    SFT = "sft"
    REWARD = "reward"
    DIRECT = "direct"
    PPO = "ppo"


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def export(
    source: Annotated[Path, typer.Argument(help="A run's directory, or one that holds a LoRA adapter.")],
    out: Annotated[Path, typer.Option(help="Where the model goes; it must not be there yet.")],
    stage: Annotated[Stage | None, typer.Option(help="Whose model; the run's last one unless given.")] = None,
    adapter_only: Annotated[bool, typer.Option(help="The adapter's weights alone, without its base.")] = False,
    dtype: Annotated[Precision | None, typer.Option(help="Convert the weights; as they are unless given.")] = None,
) -> None:
    """Write a trained model with its model card: data hashes, recipe, measured figures.

    **Example:** `keel export runs/demo/polite --out polite-model`
    """
    from keel.build.export import export_model

    done = export_model(source, out, stage=stage, adapter_only=adapter_only, dtype=dtype)
    print(f"Written to {done}. transformers loads it: from_pretrained({str(done)!r})")
