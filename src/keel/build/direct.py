"""The direct stage from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.config.direct import DirectConfig
from keel.data.convert import COMPARISONS
from keel.data.load import Labelled, Mixed, labels_or_comparisons
from keel.dist.crew import lead, shared
from keel.engines.direct import choices_loss, labels_loss
from keel.engines.learner import GradientLearner
from keel.engines.scorers import PolicyScorer
from keel.errors import UserError
from keel.inputs import hash_model
from keel.models.policy import Policy
from keel.pipeline.direct import DirectEngines, train_direct
from keel.pipeline.epochs import total_steps
from keel.pipeline.judgements import by_prompt, microbatches, mixture_of
from keel.pipeline.preferences import (
    EncodedChoice,
    EncodedLabel,
    RefLogprobs,
    choices_batch,
    labels_batch,
    mismatched,
    reference_point,
)
from keel.pipeline.reference import CACHE, cached_logprobs, response_logprobs
from keel.records import EncodedRow
from keel.schema import Comparison, Label
from keel.text.render import Renderer

Batches = Callable[[Sequence[Sequence[Any]]], list[Any]]


def run_direct(bench: Workbench) -> dict[str, Any]:
    """The start model, trained on preferences themselves; of its reference only log-probabilities stay in memory."""
    config = bench.recipe.direct
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    if config.method.reference:
        bench.require_same_tokenizer(renderer, bench.inputs.models["reference"], "direct.reference")
    room = bench.room([source, *bench.other_models()], config.max_tokens)
    data = _load(bench, config, renderer, room)
    encode: Callable[..., Sequence[Any]] = _choices if config.method.pairs else _labels
    train, validation = (
        [one for row in rows for one in encode(renderer, row, room)] for rows in (data.train, data.validation)
    )
    mismatches = {}
    if not config.method.pairs:
        _require_both(train)
        mismatches = mismatched([*train, *validation], bench.draws, room, renderer.cut)
    rows = [row for one in (*train, *validation) for row in one.rows] + list(mismatches.values())
    policy, reference = _models(bench, config, list(dict.fromkeys(rows)))
    scorer = PolicyScorer(policy, temperature=1.0, token_budget=SCORING_TOKENS)

    def choice_batches(groups: Sequence[Sequence[EncodedChoice]]) -> list[Any]:
        return microbatches(groups, config.token_budget, choices_batch(reference))

    def label_batches(groups: Sequence[Sequence[EncodedLabel]]) -> list[Any]:
        point = reference_point(
            groups, mismatches, reference, lambda rows: response_logprobs(scorer, rows, SCORING_TOKENS)
        )
        return microbatches(groups, config.token_budget, labels_batch(reference, point))

    loss: Any = choices_loss(config) if config.method.pairs else labels_loss(config)
    batches: Batches = choice_batches if config.method.pairs else label_batches
    steps = total_steps(config, mixture_of(by_prompt(train, config.max_pairs), data.weights).epoch_size)
    bench.say_models()
    learner = GradientLearner[Any]("direct", policy, loss, config, total_steps=steps, **bench.tells(renderer))
    engines = DirectEngines(
        learner=learner,
        batches=batches,
        export=bench.models.export_policy(policy, renderer, source),
    )
    return bench.lead(
        lambda: train_direct(
            config,
            engines,
            train,
            validation,
            weights=data.weights,
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        ),
        learner,
    )


def _load(bench: Workbench, config: DirectConfig, renderer: Renderer, room: int) -> Mixed[Any]:
    """Comparisons; for a method that takes single responses each source may hold labels instead."""
    data: Mixed[Any] = bench.load(
        "direct.data",
        COMPARISONS if config.method.pairs else labels_or_comparisons,
        renderer,
        room,
        config.long_prompts,
    )
    margins = sum(bool(getattr(row.record, "margin", None)) for row in data.train)
    if margins:
        bench.console.say(f"direct: {margins} comparisons have a margin, which direct methods do not read.")
    return data


def _choices(renderer: Renderer, row: Labelled[Comparison], room: int) -> list[EncodedChoice]:
    chosen, rejected = renderer.comparison(row.record, room=room)
    return [EncodedChoice(chosen, rejected, row.record.weight, row.source, row.kind)]


def _labels(renderer: Renderer, row: Labelled[Comparison | Label], room: int) -> list[EncodedLabel]:
    """A label, or of a comparison two: the chosen response is desirable, the rejected one is not."""
    if isinstance(row.record, Label):
        encoded = renderer.encode(row.record.prompt, row.record.response, room=room)
        return [EncodedLabel(encoded, row.record.accepted, 1.0, row.source, row.kind)]
    return [
        EncodedLabel(side, accepted, pair.weight, row.source, row.kind)
        for pair in _choices(renderer, Labelled(row.record, row.kind, row.source), room)
        for side, accepted in ((pair.chosen, True), (pair.rejected, False))
    ]


def _require_both(labels: Sequence[EncodedLabel]) -> None:
    if len({label.accepted for label in labels}) < 2:
        said = "accepted" if labels[0].accepted else "rejected"
        raise UserError(
            f"direct.data: every response is {said}, and kto learns from both kinds; add the others, or use sft"
        )


def _models(bench: Workbench, config: DirectConfig, rows: Sequence[EncodedRow]) -> tuple[Policy, RefLogprobs]:
    """The policy that trains, and what its reference makes of the rows; no second model is held beside the policy.

    With an adapter the two are one base, so the policy is there first; else the reference is gone before it comes.
    """
    source, shelf = bench.inputs.models["policy"], bench.models
    policy = shelf.trained_policy(source) if shelf.config.tune == "lora" else None
    reference: RefLogprobs = {}
    if config.method.reference:
        name = bench.inputs.models["reference"]

        def compute(rows: Sequence[EncodedRow]) -> Tensor:
            scorer = PolicyScorer(shelf.frozen_policy(name, "reference"), temperature=1.0, token_budget=SCORING_TOKENS)
            return response_logprobs(
                scorer, rows, SCORING_TOKENS, lambda done: bench.console.progress("reference", done, len(rows), {})
            )

        identity = f"{hash_model(name)} in {shelf.precision}"
        together = shared(compute)
        reference = lead(lambda: cached_logprobs(bench.stage.artefact(CACHE), identity, rows, together))
        shelf.release("reference")
    return policy or shelf.trained_policy(source), reference
