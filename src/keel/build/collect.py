"""The collect stage from its configuration."""

from __future__ import annotations

from typing import Any, cast

from keel.annotate.base import Annotator
from keel.annotate.scripted import ScriptedAnnotator
from keel.build.workbench import Workbench
from keel.config.collect import AnnotatorConfig
from keel.errors import UserError
from keel.pipeline.collect import collect_comparisons
from keel.references import resolve


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by the scripted annotator."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_prompt_tokens, config.sampling)
    loaded = bench.prompts("collect.prompts", renderer, room, config.long_prompts).whole()
    prompts = bench.items(renderer, loaded.train, room)
    sampler = bench.sampler(bench.models.frozen_policy(source, "policy"), renderer)
    return bench.lead(
        lambda: collect_comparisons(
            config,
            sampler,
            make_annotator(config.annotator),
            [prompts[row] for row in loaded.mixture.epoch(bench.draws, "prompts", 0)],
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        )
    )


def make_annotator(config: AnnotatorConfig) -> Annotator:
    """The scripted annotator, or what the user's factory returns. Raises UserError if that cannot compare."""
    if config.factory is None:
        script = str(config.script)
        return ScriptedAnnotator(resolve(script), temperature=config.temperature, name=script)
    annotator = resolve(config.factory)()
    if not callable(getattr(annotator, "compare", None)):
        raise UserError(
            f"collect.annotator.factory {config.factory} returned a {type(annotator).__name__}, which has no method "
            "compare(pairs, uniforms)"
        )
    return cast(Annotator, annotator)
