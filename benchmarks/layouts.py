"""Peak memory and seconds an iteration of PPO in every layout of the same model (`python -m benchmarks.layouts`).

A Llama from nothing (some 20 million weights) answers the demo's prompts; its reward model is trained briefly. Then
each layout runs the same iterations in a process of its own. Memory is the process's high-water mark over what it
held after its imports (CUDA: over what torch allocated); beside it stands what `keel doctor` foretells.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, memory_of

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
            "max_prompt_tokens": 16,
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
    import peft  # noqa: F401  # what the run will import counts for nothing
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from keel.build import run_recipe
    from keel.doctor.estimate import estimate
    from keel.doctor.loads import Loads
    from keel.models.load import resolve_device
    from keel.runs.console import SilentConsole

    wanted, started = recipe(base, settings), Path(reuse) if reuse else None
    _, taken = memory_of(lambda: run_recipe(wanted, Path(out), console=SilentConsole(), reuse=started))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else taken
    if not (Path(out) / "ppo").exists():
        return print("{}")
    foretold = estimate(Loads(wanted, Path(out), resolve_device("auto")).of("ppo"))
    lines = [json.loads(line) for line in (Path(out) / "ppo" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["time/rollout_seconds"] + line["time/update_seconds"] for line in lines[1:]]
    print(json.dumps({"peak": peak, "foretold": foretold.peak, "seconds": statistics.median(seconds)}))


def measure(base: Path, out: Path, reuse: Path | None, settings: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.layouts", "--child", str(base), str(out), str(reuse or ""), *settings]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="some layouts alone")
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
        for number, name in enumerate(arguments.only):
            settings = LAYOUTS[name]
            first = Path(folder) / settings[0]  # the reward model is made once a kind
            if not first.exists():
                measure(base, first, None, [*settings[:1], "ppo=null"])
            rows[name] = measure(base, Path(folder) / str(number), first, settings)
            one = next(iter(rows.values()))
            row = rows[name]
            print(
                f"{name:28} {row['peak'] / 2**20:7.0f} MiB  {row['peak'] / one['peak']:.2f} x   foretold "
                f"{row['foretold'] / 2**20:5.0f} MiB, {row['foretold'] / row['peak']:.2f} of it   "
                f"{row['seconds']:6.2f} s an iteration  {row['seconds'] / one['seconds']:.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
