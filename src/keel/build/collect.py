"""The collect stage from its configuration."""

from __future__ import annotations

from typing import Any

from keel.annotate.scripted import ScriptedAnnotator
from keel.build.workbench import Workbench
from keel.engines.sampler import CachedSampler
from keel.pipeline.collect import collect_comparisons
from keel.references import resolve


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by the scripted annotator."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_prompt_tokens, config.sampling)
    prompts = bench.prompts("collect.prompts", renderer, room)
    script = config.annotator.script
    annotator = ScriptedAnnotator(resolve(script), temperature=config.annotator.temperature, name=script)
    return collect_comparisons(
        config,
        CachedSampler(bench.models.frozen_policy(source, "policy"), renderer),
        annotator,
        [renderer.item(prompt) for prompt in (*prompts.train, *prompts.validation)],
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )
