"""A callback of your own: hear what a stage writes down while it trains, and end it when you have seen enough.

    python examples/callback.py [OUT]

The same seam carries the loggers (`loggers: [tensorboard]` in a recipe). A recipe names a callback as
`callbacks: ["my_rules:make_callback"]`, a function that returns one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keel


class StopWhenGood(keel.Callback):
    """Prints the validation loss when there is one, and ends the stage once it is low enough."""

    def __init__(self, enough: float) -> None:
        self.enough = enough
        self.seen: list[float] = []

    def on_log(self, stage: keel.StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        loss = metrics.get("sft/validation/loss")
        if loss is None:
            return False
        self.seen.append(loss)
        print(f"{stage.name}, step {step}: validation loss {loss:.2f}")
        return loss < self.enough  # True: the stage ends here, and hands on the model as it is

    def on_end(self, stage: keel.StageInfo, summary: Mapping[str, Any]) -> None:
        print(f"{stage.name} ended after {summary['steps']} steps")


def main(out: Path) -> tuple[StopWhenGood, keel.StageResult]:
    callback = StopWhenGood(enough=3.0)
    result = keel.sft(
        keel.SFTConfig(
            data=keel.DataConfig(function="keel.demo:demonstrations", limit=1000),
            epochs=10,
            batch=16,
            lr=5e-3,
            validate_every=20,
        ),
        model=keel.ModelConfig(scratch=keel.ScratchConfig(hidden=32, layers=2, heads=2, vocab=512, context=128)),
        out=out,
        callbacks=[callback],
    )
    return callback, result


if __name__ == "__main__":
    callback, result = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/callback"))
