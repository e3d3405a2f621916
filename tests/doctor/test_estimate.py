"""The memory of a stage, against sums by hand, and against what torch keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from keel.build.workbench import SCORING_TOKENS as WORKBENCH_SCORING_TOKENS
from keel.doctor import estimate as formulas
from keel.doctor.estimate import Load, Model, Part, Shape, estimate, export_bytes, kept_by_layer
from keel.doctor.shapes import shape_of
from keel.engines import live
from keel.models import attention, kernels, policy
from keel.models.adapters import AdapterSpec, add_adapter
from keel.models.attention import use_attention
from tests.worlds import tiny_lm

# A Llama: hidden 8, 2 layers, 4 heads of 2, 2 of them for keys, MLP of 16, 100 words, embeddings tied.
# A block: q 64 + k 32 + v 32 + o 64, MLP 3 x 128, norms 2 x 8 = 592. Outside: 800 + 8. In all 1,992.
SHAPE = Shape(
    weights=1992,
    block=592,
    root=808,
    layers=2,
    hidden=8,
    heads=4,
    normed=16,
    queries=8,
    keys=4,
    intermediate=16,
    gated=True,
    vocabulary=100,
)
POLICY, REFERENCE = Model("policy", SHAPE, trained=1992), Model("reference", SHAPE)
LOAD = Load(
    models=(POLICY, REFERENCE), precision=2, row=10, update_tokens=30, scoring_tokens=20, slots=3, vocabulary_loss=True
)


def size(load: Load, phase: str, what: str, role: str | None = None) -> int:
    return sum(
        part.size
        for part in estimate(load).parts
        if (part.phase, part.what) == (phase, what) and role in (None, part.role)
    )


def test_one_process_by_hand() -> None:
    """bfloat16 on a GPU. Of a layer a token keeps:

    norms' inputs 4 x 16 and normalised 2 x 16, read 2 x 2 x 8, attention 2 x (3 x 8 + 2 x 4), MLP 2 x 4 x 16 = 320.
    """
    working = 2 * 30 * (3 * 16 + 2 * 8)  # three of the MLP's width and two states, 30 tokens
    assert estimate(LOAD).parts == (
        Part("always", "policy", "weights", 2 * 1992),
        Part("always", "policy", "float32 copies", 4 * 1992),
        Part("always", "policy", "moments", 8 * 1992),
        Part("always", "reference", "weights", 2 * 1992),
        Part("sampling", "policy", "cache", 2 * 2 * 2 * 3 * 10 * 4),  # keys and values, 2 layers, 3 rows of 10
        Part("sampling", "policy", "activations", working),  # 30 tokens of prompts
        Part("sampling", "policy", "logits", (2 + 4) * 3 * 100),
        Part("scoring", "policy", "activations", 2 * 20 * (3 * 16 + 2 * 8)),
        Part("scoring", "policy", "logits", (2 + 3 * 4) * 20 * 100),
        Part("update", "policy", "gradients", 4 * 1992),
        Part("update", "policy", "activations", 30 * 2 * 320 + working),
        Part("update", "policy", "gradients in flight", (2 + 4) * 800),
        Part("update", "policy", "logits", (2 * 2 + 3 * 4) * 30 * 100),
    )


def test_several_processes_by_hand() -> None:
    """What is sharded is divided; of what is gathered each process has all, and the buffers through which it came."""
    load = replace(LOAD, shards=4)
    assert size(load, "always", "moments") == 8 * 1992 / 4
    assert size(load, "always", "weights", "policy") == 2 * 1992 / 4
    assert size(load, "update", "gradients") == 4 * 1992 / 4
    assert size(load, "sampling", "gathered") == 2 * (1992 + 808)
    assert size(load, "scoring", "gathered") == 2 * (1992 + 808)
    assert size(load, "update", "gathered") == 2 * (808 + 3 * 592)
    assert size(load, "update", "gradients in flight") == 2 * 808 + (2 + 4) * 2 * 592
    assert size(load, "update", "activations") == size(LOAD, "update", "activations")
    twice = replace(load, shards=8)
    for part, half in zip(estimate(load).parts, estimate(twice).parts, strict=True):
        divided = part.what in ("weights", "float32 copies", "moments", "gradients")
        assert half.size == (part.size / 2 if divided else part.size), part


def test_on_a_cpu_in_float32_by_hand() -> None:
    load = replace(LOAD, precision=4, cpu=True)
    assert size(load, "always", "float32 copies") == 0  # the weights are that already
    assert size(load, "sampling", "packed weights") == 4 * 1992
    # norms 8 x 16, read 2 x 4 x 8, attention 4 x (2 x 8 + 2 x 4 + 4 x 10), MLP 4 x 4 x 16
    assert kept_by_layer(load, POLICY) == 128 + 64 + 256 + 256
    assert size(load, "checkpoint", "a file to write") == (4 + 8) * 1992
    assert size(load, "checkpoint", "gaps") == 6 * 1992
    assert size(replace(load, shards=2), "checkpoint", "a file to write") == 6 * 1992
    large = replace(load, models=(replace(POLICY, trained=10**9),))
    assert size(large, "checkpoint", "a file to write") == 2**28
    assert export_bytes(load) == 0  # it lies there
    assert size(replace(load, shards=2), "export", "collected in process 0") == 4 * 1992


def test_adapters_by_hand() -> None:
    """16-bit: what an adapter reads is kept in float32, and the norms' results are not."""
    base = Model("policy, reference", SHAPE, trained=50, adapters=True)
    load = replace(LOAD, models=(base,))
    assert size(load, "always", "weights") == 2 * 1992 + 4 * 50
    assert size(load, "always", "moments") == 8 * 50
    assert size(load, "always", "float32 copies") == size(load, "update", "gradients in flight") == 0
    assert export_bytes(load) == 2 * 1992
    assert size(load, "export", "one weight") == 2 * SHAPE.vocabulary * SHAPE.hidden
    # norms 4 x 16, read 4 x (5 x 8 + 8 + 16), attention 2 x (2 x 8 + 2 x 4), MLP 2 x 3 x 16
    assert kept_by_layer(load, base) == 64 + 256 + 48 + 96
    both = replace(load, models=(replace(base, passes=2),))
    assert size(both, "update", "activations") == 2 * size(load, "update", "activations")


def test_checkpointing_keeps_a_state_a_layer() -> None:
    saved = size(LOAD, "update", "activations") - size(replace(LOAD, checkpointing=True), "update", "activations")
    assert saved == 30 * (2 * 320 - (2 * 2 * 8 + 320))


def test_the_peak_is_what_is_always_there_and_the_greatest_phase() -> None:
    found = estimate(LOAD)
    held, update = 18 * 1992 - 4 * 1992 + 2 * 1992, found.of("update")
    assert found.of("always") == held
    assert found.phase == "update"
    assert found.peak == held + update == sum(part.size for part in found.peak_parts)
    sampled = estimate(replace(LOAD, slots=1000))
    assert sampled.phase == "sampling"
    assert sampled.peak == held + sampled.of("sampling")


def test_logits_stop_growing() -> None:
    long = replace(LOAD, models=(Model("policy", replace(SHAPE, vocabulary=1 << 20), trained=1992),))
    most = size(replace(long, update_tokens=32), "update", "logits")
    assert size(replace(long, update_tokens=10_000), "update", "logits") == most == 4 * (1 << 25) + 4 * (1 << 26)
    assert size(replace(long, update_tokens=16), "update", "logits") < most


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_keeps_is_what_torch_keeps(family: str, adapters: bool, dtype: torch.dtype) -> None:
    """Within a quarter, mostly within 3 %."""
    model = tiny_lm(family).to(dtype)
    use_attention(model)
    shape = shape_of(model)
    if adapters:
        add_adapter(model, "policy", AdapterSpec(rank=1, alpha=1.0))
    load = replace(LOAD, precision=dtype.itemsize, row=32, cpu=True)
    tokens = torch.arange(4 * 32).reshape(4, 32)
    found = _kept_bytes(model, tokens) / tokens.numel() / shape.layers
    assert kept_by_layer(load, Model("policy", shape, trained=1, adapters=adapters)) == pytest.approx(found, rel=0.25)


def test_the_limits_are_the_engines() -> None:
    assert formulas.HEAD_LOGITS == policy._HEAD_LOGITS
    assert formulas.SCORING_TOKENS == WORKBENCH_SCORING_TOKENS
    assert formulas.PREFILL_TOKENS == live._PREFILL_TOKENS
    assert formulas.PACKED_BYTES == kernels._PACKED_BYTES
    assert formulas.SHORT == attention._SHORT


def _kept_bytes(model: nn.Module, tokens: Tensor) -> int:
    """Of the storages that a forward of the body leaves for its backward, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    body: nn.Module = model.base_model  # type: ignore[assignment]  # untyped
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        body(input_ids=tokens, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
