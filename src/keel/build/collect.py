"""The collect stage from its configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from keel.annotate.base import Annotator
from keel.annotate.people import Panel
from keel.annotate.scripted import ScriptedAnnotator
from keel.build.workbench import Workbench
from keel.config.collect import AnnotatorConfig, CollectConfig, PeopleConfig
from keel.dist import crew
from keel.engines.base import Sampler
from keel.errors import UserError
from keel.feedback.opening import DATABASE, VARIABLE, open_database
from keel.pipeline.collect import (
    Rounds,
    collect_comparisons,
    collect_from_people,
    num_rounds,
    rounds_done,
    sample_for_people,
)
from keel.records import PromptItem
from keel.references import resolve
from keel.text.render import Renderer

if TYPE_CHECKING:
    from keel.annotate.app import PeopleInApp

_POLICY = "policy"


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by an annotator, or by people who are waited for."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models[_POLICY]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_prompt_tokens, config.sampling)
    loaded = bench.prompts("collect.prompts", renderer, room, config.long_prompts).whole()
    items = bench.items(renderer, loaded.train, room)
    prompts = [items[row] for row in loaded.mixture.epoch(bench.draws, "prompts", 0)]
    if config.annotator.people is not None:
        return _from_people(bench, config, config.annotator.people, prompts, renderer)
    sampler = _sampler(bench, renderer)
    return bench.lead(
        lambda: collect_comparisons(
            config,
            sampler,
            make_annotator(config.annotator),
            prompts,
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        )
    )


def _from_people(
    bench: Workbench, config: CollectConfig, people: PeopleConfig, prompts: Sequence[PromptItem], renderer: Renderer
) -> dict[str, Any]:
    """No model is held while people judge, nor loaded where everything has been sampled."""
    stage, console = bench.stage, bench.console
    panels: list[Panel] = []  # the leader's one

    def begin() -> Rounds:
        """Where the project cannot be had that is told before anything is sampled."""
        panels.append(bench.closing.enter_context(open_panel(people, stage.identity.inputs["policy"])))
        return rounds_done(stage)

    rounds = begun = bench.lead(begin)
    if begun.done < num_rounds(prompts):
        rounds = _sampled(bench, config, prompts, renderer, begun)
        bench.models.release(_POLICY)
    pause = crew.shared(time.sleep)  # the other processes would not wait for days for a word
    return bench.lead(
        lambda: collect_from_people(config, panels[0], prompts, rounds, stage=stage, console=console, pause=pause)
    )


def _sampled(
    bench: Workbench, config: CollectConfig, prompts: Sequence[PromptItem], renderer: Renderer, begun: Rounds
) -> Rounds:
    """Every round sampled; the sampler ends with this function."""
    sampler = _sampler(bench, renderer)
    return bench.lead(
        lambda: sample_for_people(
            config, sampler, prompts, begun, stage=bench.stage, draws=bench.draws, console=bench.console
        )
    )


def _sampler(bench: Workbench, renderer: Renderer) -> Sampler:
    return bench.sampler(bench.models.frozen_policy(bench.inputs.models[_POLICY], _POLICY), renderer)


def open_panel(config: PeopleConfig, policy_version: str) -> PeopleInApp:
    """The people of a project. Raises UserError where the database or the project cannot be had."""
    database = open_database(config.database or os.environ.get(VARIABLE) or DATABASE)
    from keel.annotate.app import PeopleInApp

    return PeopleInApp(
        database, config.project, votes=config.votes, round=config.round, policy_version=policy_version
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
