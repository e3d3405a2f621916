"""How many labels it saves to have people judge first what tells a reward model most (the demo's world).

`python -m benchmarks.active_selection --policies RUN/sft/model …`: for each supervised model, which is a seed, replies
to the demo's prompts in pairs, compared by its scripted annotator. Small heads on that model's frozen states learn from
few labels, choose the next ones, learn anew, and so on; what they make of pairs of other prompts is held to the
annotator's true preference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from keel.annotate.base import Pair
from keel.annotate.scripted import ScriptedAnnotator
from keel.batching import pad_rows
from keel.build import generate_responses
from keel.build.conversation import load_policy
from keel.build.workbench import load_renderer
from keel.config.sampling import SamplingConfig
from keel.demo import polite, prompts
from keel.functional.ensembles import doubt
from keel.functional.preference import bradley_terry_loss
from keel.models.hidden import last_hidden
from keel.schema import Prompt

SAMPLING = SamplingConfig(max_new_tokens=40)
TEMPERATURE = 0.3  # the demo's annotator
PER_PROMPT = 3
HELD_OUT = 0.25  # of the prompts
START, BATCH, MOST = 64, 64, 1600  # labels
REPEATS = 3  # of each curve, from other first labels and other heads
WIDTH = 64  # principal components of the states that the heads read
MEMBERS, HIDDEN, STEPS, RATE, DECAY = 5, 32, 100, 3e-3, 1e-2
LEVELS = (0.70, 0.725, 0.75, 0.775, 0.80)  # of the held-out pairs, right

ARMS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    # What is asked next, from the log-odds that each member gives to each pair that is left [N, k].
    "random": lambda gaps, draw: torch.rand(len(gaps), generator=draw),
    "ensemble": lambda gaps, draw: doubt(gaps),  # where its members contradict each other
    "toss": lambda gaps, draw: doubt(gaps.mean(dim=1, keepdim=True)),  # where it is closest to even
}


@dataclass(frozen=True)
class Pairs:
    """Pairs of replies to one prompt."""

    states: Tensor  # [N, 2, WIDTH], of the first and of the second
    labels: Tensor  # bool [N], whether the annotator said the first
    truth: Tensor  # bool [N], whether it is the better one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", required=True, help="supervised models of the demo, a seed each")
    parser.add_argument("--prompts", type=int, default=1600, help="of the demo's")
    parser.add_argument("--json", type=Path, help="where the curves are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    curves = [measure(policy, options.prompts, seed) for seed, policy in enumerate(options.policies)]
    print(table(curves))
    print(f"\n{time.process_time() - started:.0f} s of processor time")
    if options.json:
        options.json.write_text(json.dumps(curves, indent=1) + "\n")


def measure(policy: str, count: int, seed: int) -> dict[str, dict[int, float]]:
    """For each arm the share of held-out pairs that are right, by the labels it was given."""
    pool, held_out = make_pairs(policy, count, seed)
    known = "pairs: {}, held out: {}, labels that are right: {:.3f}"
    print(known.format(len(pool.labels), len(held_out.labels), float((pool.labels == pool.truth).double().mean())))
    found: dict[str, dict[int, float]] = {}
    for arm, choose in ARMS.items():
        curves = [learning_curve(choose, pool, held_out, REPEATS * seed + repeat) for repeat in range(REPEATS)]
        found[arm] = {count: mean(curve[count] for curve in curves) for count in curves[0]}
    return found


def make_pairs(policy: str, count: int, seed: int) -> tuple[Pairs, Pairs]:
    """A pool to label, and pairs of other prompts; those that are equally good or the same are left out."""
    chosen = prompts()[:count]
    rows = generate_responses(
        policy, [Prompt(str(row["prompt"])) for row in chosen], SAMPLING, samples=PER_PROMPT, seed=seed, device="cpu"
    )
    annotator = ScriptedAnnotator(polite, temperature=TEMPERATURE, name="polite")
    pairs, places = [], []
    for start in range(0, len(rows), PER_PROMPT):
        for one, other in combinations(range(start, start + PER_PROMPT), 2):
            pairs.append(Pair(rows[one]["prompt"], rows[one]["response"], rows[other]["response"], {}))
            places.append((one, other))
    draw = torch.Generator().manual_seed(seed)
    judged = annotator.compare(pairs, torch.rand(len(pairs), generator=draw, dtype=torch.float64).tolist())
    kept = [number for number, said in enumerate(judged) if said.margin]
    ends = torch.tensor([places[number] for number in kept])
    both = Pairs(
        states=projected(states_of(policy, rows))[ends],
        labels=torch.tensor([judged[number].first_wins for number in kept]),
        truth=torch.tensor([(judged[number].margin or 0.0) > 0 for number in kept]),
    )
    held = ends[:, 0] // PER_PROMPT < HELD_OUT * count
    return _some(both, ~held), _some(both, held)


def _some(pairs: Pairs, which: Tensor) -> Pairs:
    return Pairs(pairs.states[which], pairs.labels[which], pairs.truth[which])


@torch.no_grad()
def states_of(policy: str, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """[N, 2 H]: the frozen model's state at each reply's end, and the mean over the reply."""
    renderer, model = load_renderer(policy), load_policy(policy, "cpu")
    found = []
    for start in range(0, len(rows), 128):
        batch = pad_rows([renderer.encode(row["prompt"], row["response"]) for row in rows[start : start + 128]])
        hidden = last_hidden(model.backbone, batch.tokens)
        ends = batch.prompt_lengths + batch.response_lengths
        place = torch.arange(hidden.shape[1])
        reply = ((place >= batch.prompt_lengths[:, None]) & (place < ends[:, None])).float()
        last = hidden[torch.arange(len(hidden)), ends - 1]
        found.append(torch.cat([last, (hidden * reply[:, :, None]).sum(dim=1) / reply.sum(dim=1, keepdim=True)], dim=1))
    return torch.cat(found)


def projected(states: Tensor) -> Tensor:
    """Their first principal components, each of variance 1; no label plays a part."""
    centred = states - states.mean(dim=0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    components: Tensor = centred @ directions[:WIDTH].T / values[:WIDTH] * len(states) ** 0.5
    return components


def learning_curve(
    choose: Callable[[Tensor, torch.Generator], Tensor], pool: Pairs, held_out: Pairs, seed: int
) -> dict[int, float]:
    """Accuracy by the number of labels; every arm starts from the same ones."""
    draw = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(pool.labels), generator=draw)
    asked, left = order[:START], order[START:]
    curve = {}
    while True:
        heads = Heads(seed)
        heads.learn(_some(pool, asked), draw)
        right = (heads.gaps(held_out.states).mean(dim=1) > 0) == held_out.truth
        curve[len(asked)] = float(right.double().mean())
        if len(asked) >= MOST:
            return curve
        ranked = left[choose(heads.gaps(pool.states[left]), draw).argsort(descending=True)]
        asked, left = torch.cat([asked, ranked[:BATCH]]), ranked[BATCH:]


class Heads:
    """An ensemble of small networks on the states, each with its own start and its own resample of the labels."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(2000 + seed)
        self.first = torch.randn(MEMBERS, WIDTH, HIDDEN, generator=draw) / WIDTH**0.5
        self.second = torch.randn(MEMBERS, HIDDEN, generator=draw) / HIDDEN**0.5

    def gaps(self, states: Tensor) -> Tensor:
        """Log-odds [N, k] of the first of each pair, from [N, 2, WIDTH]."""
        hidden = torch.tanh(torch.einsum("nsd,kdh->nskh", states, self.first))
        scores = torch.einsum("nskh,kh->nsk", hidden, self.second)
        return scores[:, 0] - scores[:, 1]

    def learn(self, pairs: Pairs, draw: torch.Generator) -> None:
        count = len(pairs.labels)
        drawn = torch.randint(count, (MEMBERS, count), generator=draw)
        weights = torch.stack([torch.bincount(row, minlength=count) for row in drawn], dim=1).float()
        sign = torch.where(pairs.labels, 1.0, -1.0)[:, None]
        self.first.requires_grad_()
        self.second.requires_grad_()
        optimiser = torch.optim.AdamW([self.first, self.second], lr=RATE, weight_decay=DECAY / RATE)
        for _ in range(STEPS):
            gaps = sign * self.gaps(pairs.states)
            loss = (weights * bradley_terry_loss(gaps, torch.zeros_like(gaps))).sum() / count
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimiser.step()
        self.first, self.second = self.first.detach(), self.second.detach()


def labels_for(curve: Mapping[int, float], level: float) -> float | None:
    """The labels from which on the accuracy, averaged over three batches, has reached the level."""
    counts = sorted(curve)
    for before, here, after in zip(counts, counts[1:], counts[2:], strict=False):
        if mean([curve[before], curve[here], curve[after]]) >= level:
            return here
    return None


def table(curves: Sequence[Mapping[str, Mapping[int, float]]]) -> str:
    """Labels that each arm needs for each level, a number a seed, and the accuracy at some counts."""
    lines = ["| right | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for level in LEVELS:
        needed = [[labels_for(curve[arm], level) for curve in curves] for arm in ARMS]
        shown = [", ".join("–" if one is None else f"{one:.0f}" for one in some) for some in needed]
        lines.append(f"| {level:.1%} | " + " | ".join(shown) + " |")
    lines += ["", "| labels | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for count in sorted(curves[0]["random"])[::4]:
        found = [[curve[arm][count] for curve in curves] for arm in ARMS]
        spread = [f"{mean(one):.1%}" + (f" ± {stdev(one):.1%}" if len(one) > 1 else "") for one in found]
        lines.append(f"| {count} | " + " | ".join(spread) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
