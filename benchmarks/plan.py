"""The tables of docs/guides/scale.md (`python -m benchmarks.plan`): arithmetic, of which nothing was measured.

PPO of models of known shapes on GPUs of 80 GB, with a critic head, and a reward model of the policy's size. Memory is
`keel.doctor.estimate`'s; bytes and seconds follow from the counts below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import LlamaConfig, Qwen2Config

from keel.config.model import LoRAConfig
from keel.doctor.estimate import SCORING_TOKENS, Load, Model, Shape, estimate
from keel.doctor.shapes import adapter_numbers, shape_of, without_weights

GPU_BYTES, GPU_PEAK, GPU_BANDWIDTH = 80e9, 989e12, 3.35e12  # of an H100: bf16 operations and bytes a second
UTILISATION = 0.4  # share of the peak that an update and a scoring forward reach
LINKS = {"NVLink, 900 GB/s": 900e9, "InfiniBand, 400 Gb/s": 50e9, "Ethernet, 25 Gb/s": 3.125e9}
PROMPT, RESPONSE, ROLLOUT, SLOTS, EPOCHS, TOKENS = 512, 512, 512, 128, 2, 8192
SCORED = 3  # policy (anew, in bfloat16), reference and reward model
GIB = 2**30


def _llama(hidden: int, layers: int, heads: int, intermediate: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        intermediate_size=intermediate,
        vocab_size=128_256,
    )


CONFIGS: dict[str, Any] = {
    "0.5B (Qwen2.5)": Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "8B (Llama 3.1)": _llama(4096, 32, 32, 14_336),
    "70B (Llama 3.1)": _llama(8192, 80, 64, 28_672),
}


@dataclass(frozen=True)
class Plan:
    """A model on so many GPUs, `shard` of which hold it between them."""

    name: str
    gpus: int
    shard: int
    lora: bool = False
    checkpointing: bool = True

    @property
    def layout(self) -> str:
        said = "lora" if self.lora else "full"
        return said if self.checkpointing else f"{said}, no checkpointing"

    @property
    def words(self) -> list[str]:
        return [self.name, f"{self.gpus}, {self.shard}", self.layout]

    @property
    def fits(self) -> bool:
        return estimate(self.load).peak < GPU_BYTES

    @property
    def weights(self) -> int:
        return self.load.models[0].shape.weights

    @property
    def flops(self) -> int:
        """Of an update, a token: forward, recomputation, gradients of the states and of the weights that train."""
        return (2 + 2 * self.checkpointing + 2 + 2 * (not self.lora)) * self.weights

    @property
    def slots(self) -> int:
        return min(SLOTS, math.ceil(ROLLOUT / self.gpus))

    @property
    def load(self) -> Load:
        shape, adapters = looked_at(self.name)
        policy = Model("policy", shape, trained=adapters if self.lora else shape.weights, adapters=self.lora)
        others = () if self.lora else (Model("reference", shape), Model("reward", shape))
        return Load(
            models=(policy, *others),
            precision=2,
            row=PROMPT + RESPONSE,
            update_tokens=TOKENS,
            scoring_tokens=SCORING_TOKENS,
            slots=self.slots,
            checkpointing=self.checkpointing,
            shards=self.shard,
        )


PLANS = (
    Plan("0.5B (Qwen2.5)", 1, 1, checkpointing=False),
    Plan("0.5B (Qwen2.5)", 8, 8, checkpointing=False),
    Plan("0.5B (Qwen2.5)", 64, 8, checkpointing=False),
    Plan("8B (Llama 3.1)", 1, 1),
    Plan("8B (Llama 3.1)", 1, 1, lora=True),
    Plan("8B (Llama 3.1)", 8, 8),
    Plan("8B (Llama 3.1)", 8, 8, lora=True),
    Plan("8B (Llama 3.1)", 64, 8),
    Plan("8B (Llama 3.1)", 64, 64),
    Plan("70B (Llama 3.1)", 8, 8, lora=True),
    Plan("70B (Llama 3.1)", 64, 64, lora=True),
    Plan("70B (Llama 3.1)", 64, 64),
)


@cache
def looked_at(name: str) -> tuple[Shape, int]:
    """A model's shape, and what an adapter of rank 16 trains of it."""
    model = without_weights(CONFIGS[name])
    return shape_of(model), adapter_numbers(model, LoRAConfig())


def shapes() -> Iterator[list[str]]:
    """What the models are."""
    yield ["model", "weights", "in bfloat16", "layers", "hidden", "heads (of keys)", "MLP", "vocabulary"]
    for name, config in CONFIGS.items():
        heads = f"{config.num_attention_heads} ({config.num_key_value_heads})"
        sizes = [config.num_hidden_layers, config.hidden_size, heads, config.intermediate_size, config.vocab_size]
        weights = looked_at(name)[0].weights
        said = [size if isinstance(size, str) else f"{size:,}" for size in sizes]
        yield [name, f"{weights / 1e9:.2f} billion", f"{gib(2 * weights)} GiB", *said]


def memory() -> Iterator[list[str]]:
    """GiB a GPU by role and phase."""
    phases = ["sampling", "scoring", "update", "export"]
    yield [
        "model",
        "GPUs, `shard`",
        "layout",
        "policy",
        "frozen",
        *(f"+ {phase}" for phase in phases),
        "peak",
        "of 80 GB",
    ]
    for plan in PLANS:
        found = estimate(plan.load)
        held = {part.role: 0 for part in found.parts}
        for part in found.parts:
            held[part.role] += part.size if part.phase == "always" else 0
        more = [gib(found.of(phase)) for phase in phases]
        fits = f"{found.peak / GPU_BYTES:.0%}" if found.peak < GPU_BYTES else "**no**"
        frozen = held.get("reference", 0) + held.get("reward", 0)
        yield [*plan.words, gib(held["policy"]), gib(frozen), *more, gib(found.peak), fits]


def parts(plan: Plan = PLANS[5]) -> Iterator[list[str]]:
    """Every term of one plan."""
    yield ["phase", "role", "what", "GiB"]
    for part in estimate(plan.load).parts:
        yield [part.phase, part.role, part.what, f"{part.size / GIB:.2f}"]


def traffic() -> Iterator[list[str]]:
    """What a process receives, how long that takes, and the time of the arithmetic beside it."""
    yield ["model", "GPUs, `shard`", "layout", "for", "GB a process", *LINKS, "arithmetic"]
    for plan in PLANS:
        if plan.gpus > 1 and plan.fits:
            update = plan.flops * TOKENS / (UTILISATION * GPU_PEAK)
            yield [*plan.words, "a micro-batch", *_over_links(micro_batch_bytes(plan)), seconds(update)]
            looking = decode_seconds(plan) + scoring_seconds(plan)
            yield [*plan.words, "an iteration's looking", *_over_links(looking_bytes(plan)), seconds(looking)]


def micro_batch_bytes(plan: Plan) -> float:
    """The weights for the forward and again for the backward, gradients in float32; those of the copies in a ring."""
    model, shard, copies = plan.load.models[0], plan.shard, plan.gpus // plan.shard
    within = (2 * 2 * model.shape.weights + 4 * model.trained) * (shard - 1) / shard
    return within + 2 * 4 * model.trained / shard * (copies - 1) / copies


def looking_bytes(plan: Plan) -> float:
    """A gather for the sampling, and one for each scoring."""
    return (1 + SCORED) * 2 * plan.weights * (plan.shard - 1) / plan.shard


def times() -> Iterator[list[str]]:
    """Seconds an iteration, were there no links to wait for."""
    yield ["model", "GPUs, `shard`", "layout", "sampling", "scoring", "update", "sampling's share"]
    for plan in PLANS:
        if plan.fits:
            sampling, scoring = decode_seconds(plan), scoring_seconds(plan)
            update = EPOCHS * plan.flops * _tokens(plan) / (UTILISATION * GPU_PEAK)
            share = sampling / (sampling + scoring + update)
            yield [*plan.words, seconds(sampling), seconds(scoring), seconds(update), f"{share:.0%}"]


def decode_seconds(plan: Plan) -> float:
    """Each step reads all weights, and the keys and values that stand there by then; nothing else is counted."""
    shape = plan.load.models[0].shape
    cached = plan.slots * (PROMPT + RESPONSE / 2) * 2 * 2 * shape.layers * shape.keys
    rounds = math.ceil(ROLLOUT / plan.gpus / plan.slots)
    return rounds * RESPONSE * (2 * shape.weights + cached) / GPU_BANDWIDTH


def scoring_seconds(plan: Plan) -> float:
    """Of the process's share of the rollout, under each model that reads it."""
    return 2 * SCORED * plan.weights * _tokens(plan) / (UTILISATION * GPU_PEAK)


def _tokens(plan: Plan) -> float:
    """Of a rollout, a process."""
    return ROLLOUT * (PROMPT + RESPONSE) / plan.gpus


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _over_links(size: float) -> list[str]:
    return [f"{size / 1e9:.1f}", *(seconds(size / rate) for rate in LINKS.values())]


def markdown(rows: Iterator[Sequence[str]]) -> str:
    """As a table."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


TABLES = (shapes, memory, parts, traffic, times)


def main() -> None:
    for table in TABLES:
        print(f"{table.__doc__}\n\n{markdown(table())}\n")


if __name__ == "__main__":
    main()
