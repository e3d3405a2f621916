"""Sampling: 64 prompts of 32 tokens, responses of at most 64, temperature 1, no cuts (`python -m benchmarks.sampling`).

The policy ends its responses itself, or with `--endless` never does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.comparison import MAX_LENGTH, PROMPT_LENGTH, Benchmark, Work, main
from benchmarks.measure import Round, Side, Stopwatch, rounds_of
from benchmarks.models import Size, as_text, random_texts
from benchmarks.peers import trl, vllm

BATCH = 64


def specify(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Prompts for every round."""
    prompts = random_texts(BATCH * (options.rounds + 1), PROMPT_LENGTH, PROMPT_LENGTH, size.vocab, options.seed)
    return {
        "prompts": [as_text(tokens) for tokens in prompts],
        "policy": "endless" if options.endless else "policy",
        "batch": BATCH,
        "prompt_length": PROMPT_LENGTH,
        "max_length": MAX_LENGTH,
    }


def measure(spec: Mapping[str, Any]) -> Side:
    """Keel's side; it gives each token's log-probability too."""
    from benchmarks.keel_side import make_shelf, versions
    from keel.build.workbench import load_renderer
    from keel.config.sampling import SamplingConfig
    from keel.engines.base import DrawKey
    from keel.engines.sampler import CachedSampler
    from keel.schema import Prompt
    from keel.seeds import Draws

    path, batch = spec["models"][spec["policy"]], spec["batch"]
    renderer = load_renderer(path)
    sampler = CachedSampler(make_shelf(spec).frozen_policy(path, "policy"), renderer)
    config = SamplingConfig(max_new_tokens=spec["max_length"], batch=batch)
    draws = Draws(spec["seed"], "sampling")

    def one_round(number: int) -> Round:
        watch = Stopwatch()
        texts = spec["prompts"][number * batch : (number + 1) * batch]
        samples = sampler.sample(
            [renderer.item(Prompt(text)) for text in texts], config, DrawKey(draws, "rollout", number)
        )
        seconds = watch.lap()
        return Round(seconds, {"responses": len(texts), "tokens sampled": int(samples.sequences.weight)})

    return Side("keel", rounds_of(one_round, spec["rounds"]), peak_memory=0, versions=versions())


def flops(size: Size, spec: Mapping[str, Any], one: Round) -> dict[str, float]:
    """Useful operations: every real token once through the body, every sampled one through the head."""
    sampled = one.counts["tokens sampled"]
    tokens = one.counts["responses"] * spec["prompt_length"] + sampled
    return {"all": 2 * (size.body * tokens + size.head * sampled)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Whether responses end."""
    parser.add_argument("--endless", action="store_true", help="no response ends before its limit")


BENCHMARK = Benchmark(
    module="benchmarks.sampling",
    work=Work("Sampling", "tokens sampled", ("responses",), ("tokens sampled",)),
    peers={
        "transformers": trl("1.16.0", "generate.py"),  # in whose environment it is
        "vllm": vllm("0.32.0", "vllm_generate.py"),
    },
    specify=specify,
    measure=measure,
    flops=flops,
    add_options=add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
