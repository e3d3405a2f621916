"""Supervised training with and without packing: the same texts, side by side (`python benchmarks/packing.py`).

Every step holds 64 texts. They are of one length, of lengths as in a chat data set (log-normal), or short but for a
few long ones; unpacked, texts of like length meet in a padded batch. Prints the ratio of the median times.
"""

from __future__ import annotations

import platform
import statistics
import time

import numpy as np
import torch
import transformers

from keel.batching import text_batches
from keel.engines.losses import sft_loss
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm
from keel.records import EncodedText

BATCH, STEPS, TOKEN_BUDGET, LONGEST, VOCAB = 64, 7, 8192, 512, 1024


def texts_of(lengths: np.ndarray, generator: np.random.Generator) -> list[EncodedText]:
    return [
        EncodedText(tuple(generator.integers(1, VOCAB, length).tolist()), (False, *[True] * (length - 1)))
        for length in lengths.tolist()
    ]


def seconds_of_step(policy: Policy, texts: list[EncodedText], *, packing: bool) -> float:
    start = time.perf_counter()
    batches = text_batches(texts, TOKEN_BUDGET, packing=packing)
    tokens = sum(batch.weight for batch in batches)
    for batch in batches:
        loss, _ = sft_loss(policy, batch, tokens)
        torch.autograd.backward(loss)
    policy.zero_grad()
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def padding(texts: list[EncodedText], *, packing: bool) -> float:
    total = sum(batch.tokens.numel() for batch in text_batches(texts, TOKEN_BUDGET, packing=packing))
    return 1 - sum(len(text.tokens) for text in texts) / total


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (
        {"hidden": 192, "layers": 4, "heads": 4}
        if device.type == "cpu"
        else {"hidden": 1024, "layers": 16, "heads": 16}
    )
    backbone = scratch_causal_lm(**size, intermediate=None, vocab=VOCAB, context=LONGEST, eos_id=0, seed=0)
    policy = Policy(backbone).to(device).eval()
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{where}; torch {torch.__version__}, transformers {transformers.__version__}; {size}, {BATCH} texts a step")
    generator = np.random.default_rng(0)
    cases = {
        "one length (128)": np.full(BATCH, 128),
        "log-normal, median 90": np.clip(generator.lognormal(4.5, 0.8, BATCH), 8, LONGEST).astype(int),
        "short (24), four of 512": np.array([LONGEST] * 4 + [24] * (BATCH - 4)),
    }
    for name, lengths in cases.items():
        texts = texts_of(lengths, generator)
        times: dict[bool, list[float]] = {False: [], True: []}
        for step in range(STEPS + 1):
            for packing in (False, True):
                seconds = seconds_of_step(policy, texts, packing=packing)
                if step:  # the first one warms up
                    times[packing].append(seconds)
        apart, packed = statistics.median(times[False]), statistics.median(times[True])
        print(
            f"{name}: unpacked {apart:.3f} s (padding {padding(texts, packing=False):.0%}), packed {packed:.3f} s "
            f"(padding {padding(texts, packing=True):.0%}), unpacked / packed {apart / packed:.2f}"
        )


if __name__ == "__main__":
    main()
