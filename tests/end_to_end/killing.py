"""Kills a run again and again, and holds what it ends with to a run that was left alone.

Half of the kills come at a random moment, the other half at a random disk synchronisation, so that many fall inside
the write of a checkpoint, an artefact or a log. The run is a forked child: the imports are paid once.

    python -m tests.end_to_end.killing --kills 20
    python -m tests.end_to_end.killing --kills 20 --processes 2 --layouts head network lora
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from keel.build import run_recipe
from keel.config.recipe import Recipe
from keel.dist.launcher import LOST, Lost
from keel.runs.console import SilentConsole
from tests.dist.crowd import held_port
from tests.end_to_end.tiny import tiny_recipe

_GRACE = 10.0  # seconds until those that are left are killed too
LAYOUTS = {
    "head": [],
    "network": ["ppo.critic=network"],
    "lora": ["model.tune=lora"],
    "lora-network": ["model.tune=lora", "ppo.critic=network"],
    "grpo": ["ppo.critic=none", "ppo.advantage={kind: grpo}", "ppo.per_prompt=4"],
}


def run_in_child(
    recipe: Recipe,
    out: Path,
    *,
    processes: int = 1,
    victim: int = 0,
    kill_after: float | None = None,
    kill_at_sync: int | None = None,
    **options: Any,
) -> bool:
    """Run the recipe in forked processes, one of which may be killed; True if they ended by themselves."""
    children = []
    mine = held_port()
    where = _places(processes, mine.getsockname()[1])
    for rank, place in enumerate(where):
        child = os.fork()
        if child == 0:
            os.environ |= place
            _child(recipe, out, kill_at_sync if rank == victim else None, options)
        children.append(child)
    mine.close()
    ends = _ends(children, children[victim], kill_after)
    if -signal.SIGKILL in ends:
        return False
    assert ends == [0] * processes, f"the run failed ({ends}); its traceback is above"
    return True


def _places(processes: int, port: int) -> list[dict[str, str]]:
    """What a launcher tells each process; nothing to one alone."""
    if processes == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["GLOO_SOCKET_IFNAME"] = "lo"
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _ends(children: list[int], victim: int, kill_after: float | None) -> list[int]:
    """The exit codes; -9 of those that were killed.

    As a launcher does, this ends those that still wait for one that was killed: before they have met, they would wait
    for an hour.
    """
    ends: dict[int, int] = {}
    kill_at = math.inf if kill_after is None else time.monotonic() + kill_after
    others_at = math.inf
    while len(ends) < len(children):
        for child in set(children) - ends.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ends[child] = os.waitstatus_to_exitcode(status)
                if ends[child] == -signal.SIGKILL:
                    others_at = min(others_at, time.monotonic() + _GRACE)
        for child in set(children) - ends.keys():
            if time.monotonic() >= (min(kill_at, others_at) if child == victim else others_at):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [ends[child] for child in children]


def _child(recipe: Recipe, out: Path, kill_at_sync: int | None, options: dict[str, Any]) -> None:
    try:
        torch.set_num_threads(1)
        if kill_at_sync is not None:
            _die_at_sync(kill_at_sync)
        run_recipe(recipe, out, console=SilentConsole(), **options)
    except Lost:
        os._exit(LOST)  # its peer was killed
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _die_at_sync(number: int) -> None:
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]  # only ever called with a descriptor here


def kill_until_done(
    recipe: Recipe, out: Path, kills: int, seed: int, seconds: float, processes: int = 1, **options: Any
) -> int:
    """Start the run until it ends by itself, killing its first `kills` lives; returns how many kills met it alive."""
    dice = random.Random(seed)
    met = 0
    for life in range(kills):
        victim = dice.randrange(processes)
        how: dict[str, Any] = (
            {"kill_at_sync": dice.randint(1, 60)}
            if life % 2
            else {"kill_after": dice.uniform(0.05, seconds / max(4, kills) * 2)}
        )
        ended = run_in_child(recipe, out, processes=processes, victim=victim, **how, **options)
        met += not ended
        if ended:
            return met
    assert run_in_child(recipe, out, processes=processes, **options)
    return met


def kill_an_extension_and_a_fork(folder: Path) -> None:
    """Both die at their first syncs, at later ones, and go on: they end as what they go on from, left alone, does."""
    recipe, longer = (two_stages(iterations) for iterations in (4, 8))
    assert run_in_child(longer, folder / "alone")
    assert run_in_child(recipe, folder / "extended")
    for number in (2, 5, 9, 14, 30):
        assert not run_in_child(longer, folder / "extended", kill_at_sync=number, extend=True)
    assert run_in_child(longer, folder / "extended", extend=True)
    point = f"{folder / 'alone'}/ppo@7"
    for number in (3, 12, 20, 30):
        assert not run_in_child(longer, folder / "forked", kill_at_sync=number, fork=point)
    assert run_in_child(longer, folder / "forked", fork=point)
    for name in ("extended", "forked"):
        wrong = differences(folder / "alone" / "ppo" / "model", folder / name / "ppo" / "model")
        wrong += differences(folder / "alone" / "ppo" / "checkpoints", folder / name / "ppo" / "checkpoints")
        assert not wrong, (name, wrong)
    print("an extension and a fork, killed again and again, ended bitwise as the run left alone")


def two_stages(iterations: int, *overrides: str) -> Recipe:
    """sft and ppo; the rate is constant, so that a longer run begins as a shorter one does."""
    constant = ["ppo.update.schedule=constant", "ppo.update.warmup=0", f"ppo.iterations={iterations}"]
    without = [f"{stage}=null" for stage in ("collect", "reward", "direct", "evaluate")]
    return tiny_recipe([*without, "ppo.reward=[{function: 'keel.demo:polite'}]", *constant, *overrides])


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, bit by bit, but for times."""
    found: list[str] = []
    names = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        if name.parts[-1] in ("run.json", ".lock", "clock.json", "manifest.json"):
            continue  # starts and times; a manifest repeats what is compared
        pair = (one / name, other / name)
        if not all(path.exists() for path in pair):
            found.append(f"{name} is in one of them only")
        elif name.suffix == ".safetensors":
            found += [f"{name}: {key}" for key in _tensors_that_differ(*pair)]
        elif _timeless(pair[0]) != _timeless(pair[1]):
            found.append(str(name))
    return found


def _tensors_that_differ(one: Path, other: Path) -> list[str]:
    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys():
        return ["other names"]
    return [
        key
        for key in first
        if first[key].dtype != second[key].dtype
        or first[key].shape != second[key].shape
        or not torch.equal(*(side[key].contiguous().flatten().view(torch.uint8) for side in (first, second)))
    ]


def _timeless(path: Path) -> Any:
    if path.name == "done.json":
        summary = json.loads(path.read_text())
        return {key: value for key, value in summary.items() if key != "seconds" and not key.startswith("time/")}
    if path.name == "identity.json":
        return _without_hashes_of_times(json.loads(path.read_text()))
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    return path.read_bytes()


def _without_hashes_of_times(identity: dict[str, Any]) -> dict[str, Any]:
    """Data in the run's own directory is named by its path there."""
    config = {key: value for key, value in identity["config"].items() if not key.endswith("path")}
    return {"config": config, "inputs": identity["inputs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["head"], help="of ppo, one after the other")
    options = parser.parse_args()
    if options.processes == 1:
        with tempfile.TemporaryDirectory() as folder:
            kill_an_extension_and_a_fork(Path(folder))
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            kill_one_layout(Path(folder), layout, options.kills, options.seed, options.processes)


def kill_one_layout(folder: Path, layout: str, kills: int, seed: int, processes: int) -> None:
    recipe = tiny_recipe(LAYOUTS[layout])
    met = lives = 0
    started = time.monotonic()
    assert run_in_child(recipe, folder / "alone", processes=processes)
    seconds = time.monotonic() - started
    print(f"{layout}, left alone: {seconds:.1f} s", flush=True)
    while met < kills:
        out = folder / f"killed-{lives}"
        met += kill_until_done(recipe, out, kills - met, seed + lives, seconds, processes)
        lives += 1
        wrong = differences(folder / "alone", out)
        print(f"run {lives}: {met} kills so far, {len(wrong)} differences {wrong[:5]}", flush=True)
        assert not wrong
    print(f"{layout}: {met} kills over {lives} runs: every run ended bitwise as the one left alone", flush=True)


if __name__ == "__main__":
    main()
