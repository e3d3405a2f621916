"""A model's directory and data files as a user has them, small."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keel.demo import demonstrations
from keel.text.tokenizers import TextCodec, train_codec
from tests.worlds import save_tiny_lm

CONTEXT = 128
ROWS = list(demonstrations())[:150]


def save_world(folder: Path) -> None:
    """`model` (no chat template, a context of 128), demos.jsonl (150 rows), pairs.jsonl (80), prompts.jsonl (40)."""
    save_tiny_lm(folder / "model", world_codec())
    write_context(folder / "model", CONTEXT)
    save_rows(folder / "demos.jsonl", ({"prompt": row["prompt"], "response": row["response"]} for row in ROWS))
    save_rows(
        folder / "pairs.jsonl",
        ({"prompt": row["prompt"], "chosen": row["response"], "rejected": "no ."} for row in ROWS[:80]),
    )
    save_rows(folder / "prompts.jsonl", ({"prompt": row["prompt"]} for row in ROWS[100:140]))


def world_codec() -> TextCodec:
    return train_codec([row["prompt"] + row["response"] for row in ROWS], vocab=320, context=CONTEXT)


def write_context(model: Path, context: int) -> None:
    """Rotary positions: any number of them fits the same weights."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
