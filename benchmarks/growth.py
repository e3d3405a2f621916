"""Time and memory of PPO's parts against what they grow with (`python -m benchmarks.growth`).

Around one small point, one at a time: the batch, the responses' length, the vocabulary and the model's size. Each
point is a process of its own: a PPO iteration's sampling, scoring and update (one step), and the pass from hidden
states to log-probabilities and entropy with its backward. Every response runs to its limit. Seconds are the least of
some rounds after one that warms up; memory is what a part took at most beyond what the process held when it began.
The slopes over the largest points of a sweep, on log axes, stand beside what the mathematics allows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import ppo
from benchmarks.comparison import is_side
from benchmarks.measure import ROOT, Round, Side, Stopwatch, machine, machine_line, memory_of
from benchmarks.models import Size, as_text, make_models, random_texts
from benchmarks.peers import HOME, environment, run_keel

PARTS = ("sampling", "scoring", "updating", "log-probabilities")
FITTED = 3  # points, the largest ones
TOLERANCE = 0.15  # of a slope
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#8a5a9e")
_PROMPT = 32


@dataclass(frozen=True)
class Point:
    """What is measured at one time."""

    size: Size
    batch: int
    length: int  # tokens of each response; its prompt has as many in every point

    @property
    def name(self) -> str:
        """As it is printed."""
        size = self.size
        return f"{size.hidden}x{size.layers}, vocabulary {size.vocab}, {self.batch} x ({_PROMPT} + {self.length})"


@dataclass(frozen=True)
class Sweep:
    """Points along one axis, ascending."""

    name: str
    axis: str
    points: tuple[Point, ...]
    where: Callable[[Point], float]  # on the axis


BASE = Point(Size(128, 2, 4, 344, 8192), batch=8, length=32)
SWEEPS = (
    Sweep("batch", "responses", tuple(replace(BASE, batch=8 * n) for n in (1, 2, 4, 8)), lambda at: at.batch),
    Sweep(
        "length", "tokens a response", tuple(replace(BASE, length=32 * n) for n in (1, 2, 4, 8)), lambda at: at.length
    ),
    Sweep(
        "vocabulary",
        "words",
        tuple(replace(BASE, size=replace(BASE.size, vocab=8192 * n)) for n in (1, 2, 4, 8, 16)),
        lambda at: at.size.vocab,
    ),
    Sweep(
        "model",
        "weights, without the embedding",
        tuple(replace(BASE, size=Size(64 * n, n, 2 * n, 172 * n, 8192)) for n in (2, 3, 4, 6)),
        lambda at: at.size.body + at.size.head,
    ),
)


def operations(at: Point) -> dict[str, float]:
    """Useful operations of each part: 2 a weight and token forward, 4 more backward, and those of attention.

    Attention's are 4 a width and pair of a token with one it sees: they grow with the square of a text's length.
    """
    text = _PROMPT + at.length
    pairs = at.batch * text * (text + 1) / 2
    body = 2 * at.size.body * at.batch * text + 4 * at.size.layers * at.size.hidden * pairs
    head = 2 * at.size.head * at.batch * at.length
    return {
        "sampling": body + head,
        "scoring": 2 * body + head,  # the reference, and the reward model, which has no such head
        "updating": 3 * (body + head),
        "log-probabilities": 3 * head,
    }


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line with the least squares through the points' logarithms. ValueError for fewer than two."""
    if len(xs) < 2:
        raise ValueError(f"a slope needs two points, got {len(xs)}")
    across, up = [math.log(x) for x in xs], [math.log(y) for y in ys]
    middle, height = sum(across) / len(across), sum(up) / len(up)
    covariance = sum((x - middle) * (y - height) for x, y in zip(across, up, strict=True))
    return covariance / sum((x - middle) ** 2 for x in across)


def measure(spec: Mapping[str, Any]) -> Side:
    """One point, in its own process: a round that shows the memory, and some that show the seconds."""
    from benchmarks.keel_side import versions

    rollouts, head_pass = ppo.rollouts(spec), _head_pass(spec)

    def one_round(number: int) -> Round:
        seconds: dict[str, float] = {}
        memory: dict[str, float] = {}

        def part(name: str, work: Callable[[], Any]) -> Any:
            watch = Stopwatch()
            if number:
                done = work()
            else:
                done, memory[name] = memory_of(work)
            seconds[name] = watch.lap()
            return done

        samples = part("sampling", lambda: rollouts.sample(number))
        scored = part("scoring", lambda: rollouts.score(number, samples))
        part("updating", lambda: rollouts.update(number, *scored))
        part("log-probabilities", head_pass)
        counts = {"tokens sampled": float(samples.sequences.weight)}
        return Round(sum(seconds.values()), counts, parts=seconds, memory=memory)

    rounds = tuple(one_round(number) for number in range(spec["rounds"] + 1))
    return Side("keel", rounds, peak_memory=0, versions=versions())


def _head_pass(spec: Mapping[str, Any]) -> Callable[[], None]:
    """From hidden states to log-probabilities and entropy, and back: a policy whose body has no layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from keel.batching import pad_rows
    from keel.models.policy import Policy
    from keel.records import EncodedRow

    config: Any = LlamaConfig.from_pretrained(spec["models"]["policy"], num_hidden_layers=0)
    model: Any = LlamaForCausalLM(config)
    model.get_input_embeddings().requires_grad_(False)
    policy = Policy(model.eval())
    texts = random_texts(spec["batch"], 1 + spec["max_length"], 1 + spec["max_length"], spec["vocab"], spec["seed"])
    batch = pad_rows([EncodedRow(tuple(text), 1) for text in texts])

    def forward_and_backward() -> None:
        policy.zero_grad()
        policy(batch, entropy=True).logprobs.sum().backward()  # PPO's entropy is told, and pulls nothing

    return forward_and_backward


def run(at: Point, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds and bytes of each part at that point."""
    from keel.models.quiet import quiet_transformers

    spec = {
        "vocab": at.size.vocab,
        "batch": at.batch,
        "max_length": at.length,
        "epochs": 1,
        "minibatches": 1,
        "critic": "head",
        "on_base": None,
        "lr": 1e-6,
        "rounds": options.rounds,
        "threads": options.threads,
        "seed": options.seed,
    }
    texts = random_texts(at.batch * (options.rounds + 1), _PROMPT, _PROMPT, at.size.vocab, options.seed)
    with TemporaryDirectory(dir=HOME) as folder, quiet_transformers():
        models = make_models(at.size, Path(folder) / "models", mean_length=at.length, max_length=at.length + 1)
        paths = models.paths() | {"policy": str(models.endless.resolve())}
        spec |= {"models": paths, "prompts": [as_text(text) for text in texts]}
        side = run_keel("benchmarks.growth", spec, environment(options.threads, "default"))
    first, *others = side.rounds
    assert first.counts["tokens sampled"] == at.batch * at.length, "a response ended early"
    return {"seconds": {part: min(one.parts[part] for one in others) for part in PARTS}, "bytes": dict(first.memory)}


@dataclass(frozen=True)
class Slope:
    """How one part's seconds or bytes grow along a sweep, and how they may."""

    sweep: str
    part: str
    quantity: str
    found: float
    allowed: float

    @property
    def exceeds(self) -> bool:
        """By more than what timing and caches blur."""
        return self.found > self.allowed + TOLERANCE


def slopes(sweep: Sweep, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Slope]:
    """Of every part; `measured` has the seconds and bytes of each of the sweep's points.

    Seconds may grow as the operations do, and sampling's as its steps, which follow each other. Memory may grow as
    the axis: nothing that is kept grows faster than the tokens, the vocabulary or the weights, but for attention's
    scores, which are small and whole matrices up to 256 keys alone.
    """
    last = slice(-FITTED, None)
    xs = [sweep.where(at) for at in sweep.points][last]
    found = []
    for part in PARTS:
        counted = slope(xs, [operations(at)[part] for at in sweep.points][last])
        if part == "sampling":
            counted = max(counted, slope(xs, [at.length for at in sweep.points][last]))
        for quantity, allowed in (("seconds", counted), ("bytes", 1.0)):
            ys = [one[part] for one in measured[quantity]][last]
            found.append(Slope(sweep.name, part, quantity, slope(xs, ys), allowed))
    return found


def table(found: Sequence[Slope]) -> str:
    """All slopes in Markdown, and a sentence for each that is too steep."""
    lines = ["| against | part | seconds: slope (allowed) | memory: slope (allowed) |", "|---|---|---|---|"]
    for seconds, memory in zip(found[::2], found[1::2], strict=True):
        cells = (f"{one.found:.2f} ({one.allowed:.2f})" for one in (seconds, memory))
        lines.append(f"| {seconds.sweep} | {seconds.part} | {' | '.join(cells)} |")
    steep = [
        f"{one.part}: the {one.quantity} against the {one.sweep} rise by {one.found:.2f}, and the mathematics "
        f"asks for {one.allowed:.2f}."
        for one in found
        if one.exceeds
    ]
    return "\n".join([*lines, "", *(steep or ["Nothing grows faster than its mathematics."])])


def draw(sweep: Sweep, measured: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """Seconds and memory on log axes; dashed, what the mathematics allows from the first fitted point on."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    plt.rcParams["svg.hashsalt"] = "keel"
    xs = [sweep.where(at) for at in sweep.points]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    for panel, quantity, unit in zip(panels, ("seconds", "bytes"), (1.0, 2**20), strict=True):
        for part, colour in zip(PARTS, _COLOURS, strict=True):
            ys = [one[part] / unit for one in measured[quantity]]
            panel.plot(xs, ys, color=colour, marker="o", markersize=4, label=part)
            counts = [operations(at)[part] for at in sweep.points] if quantity == "seconds" else xs
            start = max(0, len(xs) - FITTED)
            expected = [ys[start] * count / counts[start] for count in counts[start:]]
            panel.plot(xs[start:], expected, color=colour, linestyle="--", linewidth=0.9)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(xs, [_number(x) for x in xs])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel(sweep.axis)
        panel.grid(axis="y", which="major", color="#e5e5e5", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title("seconds (dashed: as the operations, attention's square included)", fontsize=9, loc="left")
    panels[1].set_title("MiB over what was held before (dashed: slope 1)", fontsize=9, loc="left")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _number(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1024:.0f} k" if value >= 8192 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="How time and memory grow.")
    parser.add_argument("--quick", action="store_true", help="the first and the last point of each sweep")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of growth-*.svg, .json"
    )
    options = parser.parse_args()
    sweeps = [replace(one, points=(one.points[0], one.points[-1])) if options.quick else one for one in SWEEPS]
    HOME.mkdir(exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    where, done, found = machine(options.threads), {}, []
    for sweep in sweeps:
        for at in sweep.points:
            if at not in done:
                done[at] = run(at, options)
                print(f"{at.name}: {sum(done[at]['seconds'].values()):.2f} s", file=sys.stderr, flush=True)
        measured = {quantity: [done[at][quantity] for at in sweep.points] for quantity in ("seconds", "bytes")}
        found += slopes(sweep, measured)
        draw(sweep, measured, options.out / f"growth-{sweep.name}.svg")
    print(
        f"{machine_line(where)}\nfrom {BASE.name} tokens; fitted over the {FITTED} largest points of a sweep\n\n"
        f"{table(found)}"
    )
    figures = {
        "machine": where,
        "points": [{**asdict(at), **figure} for at, figure in done.items()],
        "slopes": [asdict(one) for one in found],
    }
    (options.out / "growth.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__" and not is_side(measure):
    main()
