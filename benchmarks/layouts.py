"""Peak memory and seconds an iteration of PPO in every layout of the same model (`python -m benchmarks.layouts`).

A Llama from nothing (some 20 million weights) answers the demo's prompts; its reward model is trained briefly. Then
each layout runs the same iterations in a process of its own. Memory is the process's high-water mark over what it
held after its imports (CUDA: over what torch allocated).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {"hidden": 512, "layers": 6, "heads": 8, "vocab": 1024, "context": 256}
ITERATIONS = 3
LAYOUTS: dict[str, list[str]] = {
    "full, head": ["model.tune=full"],
    "full, network": ["model.tune=full", "ppo.critic=network"],
    "full, head, checkpointing": ["model.tune=full", "model.gradient_checkpointing=true"],
    "full, head, bfloat16": ["model.tune=full", "model.precision=bfloat16"],
    "lora, head": ["model.tune=lora"],
    "lora, network": ["model.tune=lora", "ppo.critic=network"],
    "lora, head, checkpointing": ["model.tune=lora", "model.gradient_checkpointing=true"],
    "lora, head, bfloat16": ["model.tune=lora", "model.precision=bfloat16"],
}


def recipe(base: str, settings: list[str]) -> Any:
    from keel.config.recipe import apply_override, parse_recipe

    prompts = {"function": "keel.demo:prompts", "limit": 64}
    tree: dict[str, Any] = {
        "name": "layouts",
        "model": {"base": base},
        "collect": {
            "prompts": prompts,
            "annotator": {"script": "keel.demo:polite", "temperature": 0.5},
            "sampling": {"max_new_tokens": 48},
        },
        "reward": {"batch": 32, "lr": 1e-4, "normalise_samples": 32, "normalise_sampling": {"max_new_tokens": 48}},
        "ppo": {
            "prompts": prompts,
            "iterations": ITERATIONS,
            "rollout_batch": 32,
            "sampling": {"max_new_tokens": 48},
            "update": {"epochs": 1, "minibatches": 2, "token_budget": 1024},
            "evaluate": {"count": 2, "every": 100},
            "max_truncated": 1.0,
            "checkpoint_every": 100,
        },
    }
    for setting in settings:
        apply_override(tree, setting)
    return parse_recipe(tree, "layouts")


def save_base(folder: Path) -> None:
    """The model, and a tokenizer trained on the demo's demonstrations."""
    from keel.config.data import DataConfig
    from keel.data.load import load_demonstrations
    from keel.models.export import save_policy
    from keel.models.scratch import scratch_causal_lm
    from keel.text.render import dialogue_text
    from keel.text.templates import install_template
    from keel.text.tokenizers import train_codec

    rows = load_demonstrations(DataConfig(function="keel.demo:demonstrations", limit=400)).train
    codec = train_codec((dialogue_text(row.prompt) + row.response for row in rows), vocab=SHAPE["vocab"], context=256)
    install_template(codec, "auto")
    size = {key: SHAPE[key] for key in ("hidden", "layers", "heads", "context")}
    model = scratch_causal_lm(**size, intermediate=None, vocab=len(codec.hf), eos_id=int(codec.hf.eos_token_id), seed=0)
    save_policy(model, codec.hf, folder, eos_ids=codec.eos_ids)


def child(base: str, out: str, reuse: str | None, settings: list[str]) -> None:
    """One process: run what is asked for, and print its figures."""
    import torch

    from keel.build import run_recipe
    from keel.runs.console import SilentConsole

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run_recipe(recipe(base, settings), Path(out), console=SilentConsole(), reuse=Path(reuse) if reuse else None)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else after - before
    if not (Path(out) / "ppo").exists():
        return print("{}")
    lines = [json.loads(line) for line in (Path(out) / "ppo" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["time/rollout_seconds"] + line["time/update_seconds"] for line in lines[1:]]
    print(json.dumps({"peak": peak, "seconds": statistics.median(seconds), "kl": lines[1]["objective/kl"]}))


def measure(base: Path, out: Path, reuse: Path | None, settings: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(base), str(out), str(reuse or ""), *settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        base, out, reuse, *settings = arguments.child
        return child(base, out, reuse or None, settings)
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        save_base(base)
        weights = (base / "model.safetensors").stat().st_size
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, transformers "
              f"{transformers.__version__}; the base is {weights / 2**20:.0f} MiB in float32")  # fmt: skip
        rows = {}
        for number, (name, settings) in enumerate(LAYOUTS.items()):
            first = Path(folder) / settings[0]  # the reward model is made once a kind
            if not first.exists():
                measure(base, first, None, [*settings[:1], "ppo=null"])
            rows[name] = measure(base, Path(folder) / str(number), first, settings)
            one = next(iter(rows.values()))
            print(
                f"{name:28} {rows[name]['peak'] / 2**20:7.0f} MiB  {rows[name]['peak'] / one['peak']:.2f} x   "
                f"{rows[name]['seconds']:6.2f} s an iteration  {rows[name]['seconds'] / one['seconds']:.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
