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
    if spec.get("onednn"):
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # as Keel does, which says why
    return spec


def now():
    """Seconds, what a CUDA device was given included."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory():
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def write(name, rounds, first_loss=None, packages=()):
    """The rounds but the first, which warmed up."""
    result = {
        "name": name,
        "rounds": rounds[1:],
        "peak_memory": peak_memory(),
        "first_loss": first_loss,
        "versions": {dist: version(dist) for dist in ("torch", "transformers", *packages)},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)


def training_options(spec, **more):
    """What every trainer is told: full precision on a CPU, autocast on a GPU, no checkpoints, nothing recomputed."""
    cuda = spec.get("device") == "cuda"
    micro = spec.get("micro", spec["batch"])
    return {
        "output_dir": spec["scratch"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": spec["batch"] // micro,
        "num_train_epochs": 1,
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": spec["seed"],
        **more,
    }


class Watch(TrainerCallback):
    """Rounds of a trainer, each of so many optimiser steps: from one's end, or the training's start, to the next."""

    def __init__(self, counts, steps=1):
        self.counts = counts  # what was done since it was asked last
        self.parts = dict
        self.rounds = []
        self._steps_a_round = steps
        self._steps = 0

    def on_train_begin(self, args, state, control, optimizer, **kwargs):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper skips steps
        optimizer.register_step_post_hook(self._count)
        self._last = now()

    def _count(self, *_):
        self._steps += 1

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._steps_a_round:
            return
        ended = now()
        counts = {**self.counts(), "optimiser steps": self._steps}
        self.rounds.append({"seconds": ended - self._last, "counts": counts, "parts": self.parts()})
        self._steps, self._last = 0, ended


class WatchedLoss:
    """A trainer's loss: its value in the first step, and the real tokens of every batch."""

    def __init__(self, trainer):
        self.tokens = 0
        self._step = trainer.args.gradient_accumulation_steps
        self._losses = []
        self._compute = trainer.compute_loss
        trainer.compute_loss = self

    def __call__(self, model, inputs, **options):
        mask = inputs.get("attention_mask")
        self.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        result = self._compute(model, inputs, **options)
        self._losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    @property
    def first(self):
        return sum(self._losses[: self._step]) / self._step

    def taken(self):
        tokens, self.tokens = self.tokens, 0
        return tokens
