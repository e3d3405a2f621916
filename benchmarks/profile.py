"""Where a part of a PPO iteration spends its time (`python -m benchmarks.profile --part updating --size small`).

The same work as `benchmarks.ppo`, Keel alone, in this process: one round warms up, one is timed, and of one the part
is traced by torch's profiler. Every traced operation's own time falls into one group, and what no operation accounts
for is Python's. Tracing slows small operations, so only shares come from it; the seconds are of the round before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import ppo
from benchmarks.comparison import MAX_LENGTH, MEAN_LENGTH, PROMPT_LENGTH
from benchmarks.measure import Round, Stopwatch, machine, machine_line, matrix_peaks
from benchmarks.models import SIZES, make_models
from benchmarks.peers import HOME, environment

REST = "Python and the rest"
OTHER = "other operations"
# A scope takes all that happens within it; the outermost one that is known decides.
_SCOPES = {
    "optimiser and the gradient's norm": "Optimizer.* aten::_foreach_*",
    "log-probabilities and entropy": "_RowStatistics*",
}
# Any other operation of torch stands for itself, written without `aten::` and the underscore of those in place.
_OPERATIONS = {
    "matrix products": "linear matmul mm addmm mv addmv dot mkldnn_* _linear_pointwise",
    "attention": "bmm baddbmm *scaled_dot_product* *flash_attention*",
    "softmax": "*softmax*",
    "copies and layout": "copy _to_copy to contiguous clone cat stack repeat roll flip",
    "embedding and indexing": "*embedding* index* _index* gather *scatter* masked* nonzero take* where tril triu "
    "slice_backward select_backward",
    "sums, norms, orders": "sum mean prod std var any all max min amax amin argmax *cumsum* sort argsort searchsorted "
    "*norm* logsumexp linalg_vecdot item _local_scalar_dense equal isfinite",
    "elementwise": "add sub rsub mul div neg abs pow sqrt rsqrt exp log sin cos sigmoid* silu* gelu* tanh* clamp* "
    "minimum maximum reciprocal bitwise_* logical_* eq ne lt le gt ge __*__ square addcmul addcdiv floor_divide sign",
    "allocation and filling": "empty* new_* zeros* zero ones* full* fill arange scalar_tensor resize set lift_fresh "
    "uniform normal rand*",
    "views": "view* *reshape* transpose t as_strided slice select unsqueeze squeeze expand* permute detach alias "
    "unbind split* chunk narrow flatten unflatten diagonal _unsafe_view resolve_conj resolve_neg result_type",
}
ENGINE = "autograd's own"
GROUPS = (*_SCOPES, *_OPERATIONS, ENGINE, OTHER, REST)


def group_of(scopes: Sequence[str]) -> str:
    """Where an operation's own time belongs; `scopes` are the names around it, outermost first, and its own."""
    for scope in scopes:
        if (group := _matching(scope, _SCOPES)) is not None:
            return group
    space, _, name = scopes[-1].rpartition("::")
    if space not in ("aten", "mkldnn"):
        return ENGINE
    return _matching(name if name.startswith("__") else name.rstrip("_"), _OPERATIONS) or OTHER


def _matching(name: str, groups: Mapping[str, str]) -> str | None:
    """The first group one of whose patterns is that name."""
    known = (group for group, patterns in groups.items() if any(fnmatchcase(name, one) for one in patterns.split()))
    return next(known, None)


def shares_of(work: Callable[[], object]) -> dict[str, float]:
    """The share of each group in the seconds of `work`, greatest first; they sum to 1."""
    watch = Stopwatch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        watch.lap()
        work()
        seconds = watch.lap()
    spent = dict.fromkeys(GROUPS, 0.0)
    for event in profile.events():
        scopes, around = [event.name], event.cpu_parent
        while around is not None:
            scopes.insert(0, around.name)
            around = around.cpu_parent
        spent[group_of(scopes)] += event.self_cpu_time_total * 1e-6
    spent[REST] = max(0.0, seconds - sum(spent.values()))
    whole = sum(spent.values())
    return dict(sorted(((group, one / whole) for group, one in spent.items()), key=lambda pair: -pair[1]))


def measure(options: argparse.Namespace, folder: Path) -> tuple[Round, dict[str, float]]:
    """A timed round, and the shares of the part that is asked for in the next one."""
    size = SIZES[options.size]
    options.rounds = 2
    models = make_models(size, HOME / "models" / options.size, mean_length=MEAN_LENGTH, max_length=MAX_LENGTH)
    spec = ppo.specify(options, size)
    more = {"vocab": size.vocab, "lr": 1e-6, "bf16": options.bf16, "seed": options.seed, "scratch": str(folder)}
    rollouts = ppo.rollouts({**spec, **more, "models": models.paths()})
    (timed,) = rollouts.measure(1).rounds
    number = 2
    shares: dict[str, float] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        if name != options.part:
            return work()
        done: list[Any] = []
        shares.update(shares_of(lambda: done.append(work())))
        return done[0]

    samples = part("sampling", lambda: rollouts.sample(number))
    scored = part("scoring", lambda: rollouts.score(number, samples))
    part("updating", lambda: rollouts.update(number, *scored))
    return timed, shares


def table(shares: dict[str, float]) -> str:
    """In Markdown."""
    rows = [f"| {group} | {share:.1%} |" for group, share in shares.items()]
    return "\n".join(["| group | share of the time |", "|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description="Where PPO's time goes.")
    parser.add_argument("--part", choices=("sampling", "scoring", "updating"), default="updating")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    ppo.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peaks = matrix_peaks(environment(options.threads, "default"))
    with TemporaryDirectory() as folder:
        timed, shares = measure(options, Path(folder))
    seconds, counts = timed.parts[options.part], timed.counts
    spec = {"prompt_length": PROMPT_LENGTH, "epochs": ppo.EPOCHS, "critic": options.critic, "tune": options.tune}
    useful = ppo.flops(SIZES[options.size], spec, timed)[options.part] / seconds
    print(
        f"{machine_line(machine(options.threads))}\n\n"
        f"{options.part}, {options.size}, critic {options.critic}, tune {options.tune}: {seconds:.2f} s for "
        f"{counts['episodes']:.0f} episodes and {counts['tokens sampled']:.0f} sampled tokens.\n"
        f"Useful operations: {useful / 1e9:.0f} GFLOP/s; of the matrix peak: "
        + ", ".join(f"{useful / peak:.0%} of {name} ({peak / 1e9:.0f})" for name, peak in peaks.items() if peak)
        + f".\n\n{table(shares)}"
    )


if __name__ == "__main__":
    main()
