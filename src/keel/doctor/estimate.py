"""How much memory a stage takes in one process: plain numbers in, bytes by role and by what they are out. No torch.

A process holds its shards of all weights throughout, and on top of that what its present phase needs; the phases
follow each other, so the greatest of them counts. Names: p bytes a number, n tokens of a batch, h the hidden width, m
the widths of a layer's norms together, q and k those of queries and of keys (as of values), i that of the MLP.

Kept of a layer for the backward pass, bytes a token:

    norms          (4 + p) m + 2 p h  their input in float32, and normalised; what the two that are read give
    attention      p (3 q + 2 k)      queries, keys, values, the result in rows and as tokens;
                                      on a CPU in float32 p (2 q + 2 k + heads x row): the probabilities themselves
    MLP            4 p i              gate, its activation, up, their product (5 p i of GELU written out)

LoRA keeps no normalised input (the norms do not train) and, where p < 4, a float32 copy of each adapted input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HEAD_LOGITS = 1 << 25  # numbers of logits that exist at one time
SCORING_TOKENS = 16_384  # of a forward without gradient
PREFILL_TOKENS = 2048  # of prompts in one forward of the sampler
PACKED_BYTES = 1 << 30  # of weights that sampling on a CPU copies, at most
SHORT = 256  # keys up to which attention on a CPU makes whole matrices
_CHUNK_CPU, _CHUNK_GPU = 1 << 20, 1 << 26  # numbers of logits that their loss works on at a time, in all its buffers
_COPY, _GRADIENT, _MOMENTS = 4, 4, 8  # bytes a trained number
CHECKPOINT_BYTES = _COPY + _MOMENTS
_FILE = 1 << 28  # of a checkpoint, in bytes, while it is written
_GAPS = 0.5  # of what a phase takes on a CPU: as measured (benchmarks.layouts), not derived


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes: counts of numbers, as they would be in the model itself."""

    weights: int  # in all, what is tied counted once
    block: int  # of the largest block
    root: int  # of what lies outside the blocks: embeddings, head, last norm
    layers: int
    hidden: int
    heads: int
    normed: int  # widths of a layer's norms together
    queries: int  # heads x head size
    keys: int  # key heads x head size; of values as many
    intermediate: int
    gated: bool  # whether the MLP multiplies two projections
    vocabulary: int


@dataclass(frozen=True)
class Model:
    """Weights that lie in memory once, whoever uses them."""

    role: str
    shape: Shape
    trained: int = 0  # numbers that train: all of them, or with `adapters` those of adapters and heads alone
    adapters: bool = False
    passes: int = 1  # forwards of one micro-batch whose activations wait for the backward pass


@dataclass(frozen=True)
class Load:
    """What one stage does with its models."""

    models: tuple[Model, ...]
    precision: int  # bytes a number of weights and activations
    row: int  # tokens of the longest row
    update_tokens: int  # of the largest micro-batch
    scoring_tokens: int  # of the largest batch without gradient
    slots: int = 0  # responses that one process draws side by side; 0: it draws none
    sampler: str = "policy"  # the role of the model that is drawn from
    vocabulary_loss: bool = True  # whether the loss reads logits, or a score alone
    checkpointing: bool = False
    cpu: bool = False
    shards: int = 1  # processes that hold the weights between them

    @property
    def whole_scores(self) -> bool:
        """Whether attention makes matrices of scores."""
        return self.cpu and self.precision == 4 and self.row <= SHORT


@dataclass(frozen=True)
class Part:
    """One term of the sum."""

    phase: str  # "always", "sampling", "scoring", "update", "checkpoint" or "export"
    role: str
    what: str
    size: int  # bytes, of one process


@dataclass(frozen=True)
class Estimate:
    """All terms; those of different phases never meet."""

    parts: tuple[Part, ...]

    def of(self, phase: str) -> int:
        """Bytes of a phase, without what is there always."""
        return sum(part.size for part in self.parts if part.phase == phase)

    @property
    def phase(self) -> str:
        """The one that needs most."""
        return max(dict.fromkeys(part.phase for part in self.parts if part.phase != "always"), key=self.of)

    @property
    def peak_parts(self) -> tuple[Part, ...]:
        """What is there at the peak."""
        return tuple(part for part in self.parts if part.phase in ("always", self.phase))

    @property
    def peak(self) -> int:
        return sum(part.size for part in self.peak_parts)


def estimate(load: Load) -> Estimate:
    """Memory of one process, in bytes, beyond the program itself."""
    phases = (_sampling(load), _scoring(load), _update(load), _writing(load))
    parts = [part for parts in phases for part in parts if part.size]
    return Estimate((*_always(load), *parts, *(_gaps(parts) if load.cpu else ())))


def export_bytes(load: Load) -> int:
    """What the leader takes of its host's memory to write the model, whole, where it does not lie there anyway."""
    model = _written(load)
    there = load.cpu and load.shards == 1 and not model.adapters
    return 0 if there else load.precision * model.shape.weights


def weight_bytes(model: Model, precision: int) -> int:
    """Of a whole model: its own in the precision, adapters and heads beside it in float32."""
    return precision * model.shape.weights + (4 * model.trained if model.adapters else 0)


def kept_by_layer(load: Load, model: Model) -> int:
    """Bytes a token of one layer that wait for the backward pass (see above)."""
    shape, p = model.shape, load.precision
    normalised = 0 if model.adapters else p
    copied = 4 if model.adapters and p < 4 else 0  # what a layer reads, as its adapter takes it
    reads = (copied * 5 if copied else p * 2) * shape.hidden + (copied or p) * (shape.queries + shape.intermediate)
    norms = (4 + normalised) * shape.normed
    attention = p * (shape.queries + 2 * shape.keys)
    attention += p * (shape.heads * load.row if load.whole_scores else shape.queries)
    mlp = p * (3 if shape.gated else 4) * shape.intermediate
    return norms + reads + attention + mlp


def _always(load: Load) -> Iterator[Part]:
    for model in load.models:
        yield Part("always", model.role, "weights", _shard(load, weight_bytes(model, load.precision)))
        if model.trained and not model.adapters and load.precision < 4:
            yield Part("always", model.role, "float32 copies", _shard(load, _COPY * model.trained))
        if model.trained:
            yield Part("always", model.role, "moments", _shard(load, _MOMENTS * model.trained))


def _sampling(load: Load) -> Iterator[Part]:
    if not load.slots:
        return
    model = next(one for one in load.models if load.sampler in one.role.split(", "))
    shape, p, role = model.shape, load.precision, load.sampler
    yield from _gathered(load, "sampling", model)
    packed = 4 * shape.weights
    if load.cpu and p == 4 and packed <= PACKED_BYTES:
        yield Part("sampling", role, "packed weights", packed)
    positions = load.slots * load.row
    yield Part("sampling", role, "cache", 2 * p * shape.layers * positions * shape.keys)
    repeated = 2 * p * positions * shape.queries if shape.keys < shape.queries and not load.whole_scores else 0
    prefill = _working(load, shape, min(PREFILL_TOKENS, positions))
    yield Part("sampling", role, "activations", max(repeated, prefill))
    yield Part("sampling", role, "logits", (4 if p == 4 else 4 + p) * load.slots * shape.vocabulary)


def _scoring(load: Load) -> Iterator[Part]:
    """One model at a time; the one that takes most."""

    def of(model: Model) -> list[Part]:
        working = _working(load, model.shape, load.scoring_tokens)
        logits = _logits(load, model.shape, load.scoring_tokens, copies=1) if load.vocabulary_loss else 0
        parts = [Part("scoring", model.role, "activations", working), Part("scoring", model.role, "logits", logits)]
        return [*_gathered(load, "scoring", model), *parts]

    yield from max(map(of, load.models), key=lambda parts: sum(part.size for part in parts))


def _update(load: Load) -> Iterator[Part]:
    trained = [model for model in load.models if model.trained]
    p = load.precision
    for model in trained:
        yield Part("update", model.role, "gradients", _shard(load, _GRADIENT * model.trained))
        yield Part("update", model.role, "activations", model.passes * _activations(load, model))
    root = sum(model.shape.root for model in trained)
    block = max(model.shape.block for model in trained)
    role = ", ".join(model.role for model in trained)
    full = [model.shape for model in trained if not model.adapters]
    if load.shards > 1:
        yield Part("update", role, "gathered", p * (root + 3 * block))
    if full and load.shards > 1:  # a unit's gradients, whole, and the float32 buffer from which they are reduced
        own, pair = sum(shape.root for shape in full), 2 * max(shape.block for shape in full)
        yield Part("update", role, "gradients in flight", max((p + 4) * own, p * own + (p + 4) * pair))
    elif full:  # that of the largest weight, before it is added
        size = p if p == 4 else p + 4
        yield Part("update", role, "gradients in flight", size * max(one.vocabulary * one.hidden for one in full))
    if load.vocabulary_loss:
        yield Part("update", role, "logits", _logits(load, trained[0].shape, load.update_tokens, copies=2))


def _writing(load: Load) -> Iterator[Part]:
    """A checkpoint, of which a process writes its shards file by file; the model at the end, weight by weight."""
    model = _written(load)
    if load.cpu:
        shards = _shard(load, CHECKPOINT_BYTES * sum(model.trained for model in load.models))
        yield Part("checkpoint", model.role, "a file to write", min(_FILE, shards))
        yield Part("export", model.role, "collected in process 0", export_bytes(load))
    elif load.shards > 1 or model.adapters:
        yield Part("export", model.role, "one weight", load.precision * model.shape.vocabulary * model.shape.hidden)


def _written(load: Load) -> Model:
    """The one that trains and is handed on."""
    return next(model for model in load.models if model.trained)


def _gaps(parts: Sequence[Part]) -> Iterator[Part]:
    """On a CPU freed buffers are kept in the heap, and the next ones, of other shapes, do not all fit between them."""
    for phase in dict.fromkeys(part.phase for part in parts):
        size = sum(part.size for part in parts if part.phase == phase)
        yield Part(phase, "the heap", "gaps", math.ceil(_GAPS * size))


def _activations(load: Load, model: Model) -> int:
    tokens, shape = load.update_tokens, model.shape
    layer = kept_by_layer(load, model)
    states = load.precision * shape.hidden
    kept = shape.layers * states + layer if load.checkpointing else shape.layers * layer
    return tokens * kept + _working(load, shape, tokens)


def _working(load: Load, shape: Shape, tokens: int) -> int:
    """What one layer makes on its way: three of the MLP's width, or of attention's."""
    scores = 3 * shape.heads * load.row if load.whole_scores else 0
    return load.precision * tokens * (max(3 * shape.intermediate, 3 * shape.queries + scores) + 2 * shape.hidden)


def _logits(load: Load, shape: Shape, tokens: int, *, copies: int) -> int:
    """Logits and, in a backward pass, their gradient; and the float32 buffers of their loss."""
    numbers = min(tokens * shape.vocabulary, max(HEAD_LOGITS, shape.vocabulary))
    return copies * load.precision * numbers + 4 * min(3 * numbers, _CHUNK_CPU if load.cpu else _CHUNK_GPU)


def _gathered(load: Load, phase: str, model: Model) -> Iterator[Part]:
    """The model whole, and the buffer through which its largest unit came."""
    if load.shards > 1:
        shape = model.shape
        size = weight_bytes(model, load.precision) + load.precision * max(shape.root, shape.block)
        yield Part(phase, model.role, "gathered", size)


def _shard(load: Load, size: int) -> int:
    return math.ceil(size / load.shards)
