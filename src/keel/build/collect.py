"""The collect stage from its configuration."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, cast

from keel.annotate.base import Annotator
from keel.annotate.scripted import ScriptedAnnotator
from keel.build.workbench import Workbench
from keel.config.collect import AnnotatorConfig, PeopleConfig
from keel.dist import crew
from keel.errors import UserError
from keel.feedback.opening import DATABASE, VARIABLE, open_database
from keel.pipeline.collect import collect_comparisons, collect_from_people
from keel.references import resolve

if TYPE_CHECKING:
    from keel.annotate.app import PeopleInApp


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by an annotator, or by people who are waited for."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_prompt_tokens, config.sampling)
    loaded = bench.prompts("collect.prompts", renderer, room, config.long_prompts).whole()
    items = bench.items(renderer, loaded.train, room)
    prompts = [items[row] for row in loaded.mixture.epoch(bench.draws, "prompts", 0)]
    sampler = bench.sampler(bench.models.frozen_policy(source, "policy"), renderer)
    shared: dict[str, Any] = {"stage": bench.stage, "draws": bench.draws, "console": bench.console}
    if config.annotator.people is None:
        return bench.lead(
            lambda: collect_comparisons(config, sampler, make_annotator(config.annotator), prompts, **shared)
        )
    people, version = config.annotator.people, bench.stage.identity.inputs["policy"]
    pause = crew.shared(time.sleep)  # the other processes would not wait for days for a word

    def ask() -> dict[str, Any]:
        with open_panel(people, version) as panel:
            return collect_from_people(config, sampler, panel, prompts, pause=pause, **shared)

    return bench.lead(ask)


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
