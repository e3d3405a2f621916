"""What the peers' scripts share: the specification, a watch over a trainer's steps, the result. No Keel here."""

import json
import sys
import time
from importlib.metadata import version

import torch
from transformers import TrainerCallback


def read_spec():
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    return spec


def peak_memory():
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def write(name, rounds, first_loss=None):
    """The rounds but the first, which warmed up."""
    result = {
        "name": name,
        "rounds": rounds[1:],
        "peak_memory": peak_memory(),
        "first_loss": first_loss,
        "versions": {package: version(package) for package in ("torch", "transformers", name.split()[0])},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)


def training_options(spec, **more):
    """What every trainer is told: full precision, no checkpoints, no reports, nothing recomputed."""
    return {
        "output_dir": spec["scratch"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": spec["seed"],
        **more,
    }


class Watch(TrainerCallback):
    """Rounds of a trainer: from one step's end to the next one's, or from the start of the training."""

    def __init__(self, counts):
        self.counts = counts  # what was done since it was asked last
        self.parts = dict
        self.rounds = []
        self.steps = 0

    def watch_steps(self, optimizer):
        """Count the optimiser's own steps."""
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_):
        self.steps += 1

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        parts = self.parts()
        self.rounds.append({"seconds": now - self._last, "counts": self._counted(), "parts": parts})
        self._last = now

    def _counted(self):
        counted = {**self.counts(), "optimiser steps": self.steps}
        self.steps = 0
        return counted
