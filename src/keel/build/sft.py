"""Supervised fine-tuning from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keel.build.workbench import Workbench
from keel.data.convert import DEMONSTRATIONS
from keel.data.load import Labelled, load
from keel.dist.crew import lead
from keel.engines.learner import GradientLearner
from keel.engines.losses import sft_loss
from keel.models.policy import Policy
from keel.models.scratch import scratch_causal_lm
from keel.pipeline.epochs import total_steps
from keel.pipeline.sft import train_sft
from keel.records import EncodedText, Texts
from keel.schema import Demonstration
from keel.text.render import Renderer, dialogue_text
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec, train_codec


def run_sft(bench: Workbench) -> dict[str, Any]:
    """Supervised fine-tuning of the base, or of a model from nothing."""
    config = bench.recipe.sft
    assert config is not None
    renderer = _scratch_renderer(bench) if bench.recipe.model.scratch else bench.renderer(bench.inputs.models["base"])
    scratch, base = bench.recipe.model.scratch, bench.inputs.models.get("base", "")
    room = min(config.max_tokens, scratch.context) if scratch else bench.room([base], config.max_tokens)
    loaded = bench.load("sft.data", DEMONSTRATIONS, renderer, room, config.long_prompts)

    def encoded(rows: Sequence[Labelled[Demonstration]]) -> list[EncodedText]:
        return [renderer.demonstration(row.record, train_on=config.train_on, room=room, kind=row.kind) for row in rows]

    policy = _scratch_policy(bench, renderer.codec) if scratch else bench.models.trained_policy(base)
    steps = total_steps(config, loaded.mixture.epoch_size)
    learner = GradientLearner[Texts]("sft", policy, sft_loss, config, total_steps=steps, **bench.tells(renderer))
    export = bench.models.export_policy(policy, renderer, base)
    return bench.lead(
        lambda: train_sft(
            config,
            learner,
            encoded(loaded.train),
            encoded(loaded.validation),
            mixture=loaded.mixture,
            export=export,
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        ),
        learner,
    )


def _scratch_renderer(bench: Workbench) -> Renderer:
    """The tokenizer trained on the demonstrations; kept, so that an interrupted run goes on with the same one."""
    scratch = bench.recipe.model.scratch
    if scratch is not None and scratch.tokenizer is not None:
        return bench.renderer(scratch.tokenizer)
    folder = bench.stage.artefact("tokenizer")

    def make() -> None:
        assert scratch is not None
        rows = [row for data in bench.inputs.sources("sft.data") for row in load(data, DEMONSTRATIONS).train]
        texts = (part for row in rows for part in (dialogue_text(row.prompt), row.response))
        codec = train_codec(texts, vocab=scratch.vocab, context=scratch.context)
        install_template(codec, bench.recipe.model.chat_template)
        codec.save(bench.stage.work("tokenizer"))
        bench.stage.publish("tokenizer")

    lead(lambda: None if folder.exists() else make())
    return bench.renderer(str(folder))


def _scratch_policy(bench: Workbench, codec: TextCodec) -> Policy:
    scratch = bench.recipe.model.scratch
    assert scratch is not None
    backbone = scratch_causal_lm(
        hidden=scratch.hidden,
        layers=scratch.layers,
        heads=scratch.heads,
        intermediate=scratch.intermediate,
        vocab=len(codec.hf),
        context=scratch.context,
        eos_id=int(codec.hf.eos_token_id),
        seed=bench.draws.torch_seed("weights"),
        attention=bench.recipe.model.attention,
    )
    return bench.models.own_policy(backbone.to(bench.models.precision))
