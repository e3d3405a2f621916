"""Whether the training stages of a recipe fit in memory, before any weight is read (`estimate` has the formulas)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from keel.config.recipe import Recipe
from keel.doctor.estimate import Estimate, Load, estimate, export_bytes
from keel.doctor.finding import Finding, bad, good, note
from keel.doctor.loads import Loads
from keel.errors import UserError
from keel.models.load import resolve_device
from keel.models.memory import in_words

TRAINED = ("sft", "reward", "direct", "ppo")
PROGRAM = 1 << 29  # bytes of a process without models: libraries, or on a GPU its context
_ROOM = 0.9  # of a memory that an estimate may fill: buffers never lie without gaps
_NAMED = 5  # terms that a finding names
_SMALLER = {  # what decides how much a phase of a stage needs
    ("update", "ppo"): "ppo.update.token_budget",
    ("scoring", "ppo"): "ppo.rollout_batch",
    ("sampling", "ppo"): "ppo.sampling.batch",
    ("sampling", "reward"): "reward.normalise_sampling.batch",
    ("scoring", "reward"): "reward.normalise_samples",
    **{("update", stage): f"{stage}.token_budget" for stage in ("sft", "reward", "direct")},
    **{("scoring", stage): f"{stage}.token_budget" for stage in ("sft", "direct")},
}


def check_memory(recipe: Recipe, out: Path, *, processes: int = 1, shard: int | None = None) -> list[Finding]:
    """A finding for each training stage; `shard` processes hold a model's weights between them, all unless given."""
    try:
        device = resolve_device(recipe.device)
    except UserError:
        return []  # said where the device is looked at
    loads = Loads(recipe, out, device, processes, shard or processes)
    return [
        finding
        for stage in TRAINED
        if getattr(recipe, stage) is not None
        for finding in _check_stage(recipe, stage, loads, processes, device)
    ]


def _check_stage(recipe: Recipe, stage: str, loads: Loads, processes: int, device: torch.device) -> list[Finding]:
    what = f"memory of {stage}"
    try:
        load = loads.of(stage)
    except UserError as error:
        return [note(what, f"not estimated: {error}")]
    found, room = estimate(load), memory_of(device)
    sharing = processes if load.cpu else 1
    said = (
        f"{in_words(found.peak)} a process at its peak, the {found.phase} ({_named(found)}); there are {in_words(room)}"
    )
    said += f" for {sharing} processes" if sharing > 1 else ""
    fits = sharing * (found.peak + PROGRAM) <= _ROOM * room
    findings = [good(what, said) if fits else bad(what, said, mend(recipe, stage, load, found, _ROOM * room))]
    written = export_bytes(load)
    if not load.cpu and written > _ROOM * host_memory():
        said = f"it takes {in_words(written)} of the memory of process 0's host, which has {in_words(host_memory())}"
        findings.append(bad(f"writing the model of {stage}", said, "take a host with more memory"))
    return findings


def mend(recipe: Recipe, stage: str, load: Load, found: Estimate, room: float) -> str:
    """What would make it less, of the settings that are not yet so."""
    if max((part.size for part in found.parts if part.what == "gathered"), default=0) > room:
        return (
            "no number of processes helps: to be sampled or scored a model is gathered whole on each; take a "
            "smaller model (docs/guides/scale.md)"
        )
    ways = []
    if recipe.model.tune == "full" and not recipe.model.scratch:
        ways.append("model.tune: lora")
    if stage == "ppo" and recipe.ppo and recipe.ppo.critic == "network":
        ways.append("ppo.critic: head")
    if found.phase == "update" and not load.checkpointing:
        ways.append("model.gradient_checkpointing: true")
    if (found.phase, stage) in _SMALLER:
        ways.append(f"a smaller {_SMALLER[found.phase, stage]}")
    ways.append("a machine with more memory" if load.cpu else "more processes, each with a GPU")
    return "; or ".join(ways)


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU, else of this machine."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else host_memory()


def host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _named(found: Estimate) -> str:
    """The largest terms at the peak, and the rest together."""
    parts = sorted(found.peak_parts, key=lambda part: -part.size)
    said = [f"{in_words(part.size)} {part.what} of {part.role}" for part in parts[:_NAMED]]
    rest = sum(part.size for part in parts[_NAMED:])
    return ", ".join([*said, f"{in_words(rest)} others"] if rest else said)
