"""The reward model from its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from keel.build.objectives import make_task
from keel.build.workbench import SCORING_TOKENS, Fits, Workbench
from keel.config.data import sources_of
from keel.config.reward import RewardConfig
from keel.data.convert import KINDS, LABELS, RATINGS
from keel.data.load import Labelled, feedback_kind
from keel.dist.crew import shared
from keel.engines.learner import GradientLearner
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.pipeline.epochs import total_steps
from keel.pipeline.judgements import by_prompt, mixture_of
from keel.pipeline.reward import RewardEngines, train_reward
from keel.records import PromptItem
from keel.schema import Prompt
from keel.text.render import Renderer


def run_reward(bench: Workbench) -> dict[str, Any]:
    """A scalar head on the start model's body, trained on judgements."""
    config = bench.recipe.reward
    assert config is not None
    source = bench.inputs.models["init"]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_tokens)
    with _naming_another_objective(bench):
        data = bench.load("reward.data", KINDS[config.reads], renderer, room, config.long_prompts)
    _warn_of_seen(bench)
    model = bench.models.new_reward_model(source, config.ensemble)
    task = make_task(config, data, model, renderer, room, bench.draws)
    if config.ensemble is not None and config.ensemble.of == "adapters":
        # each member's forward keeps its own activations for the backward pass
        config = config.model_copy(update={"token_budget": config.token_budget // config.ensemble.members})
    mixture = mixture_of(by_prompt(task.train, config.max_pairs), data.weights)
    scorer = RewardModelScorer("reward", model, token_budget=SCORING_TOKENS)
    reference = bench.inputs.models["reference"]
    bench.require_same_tokenizer(renderer, reference, "the reference of the reward stage")
    prompt_room = bench.room([reference, source], room, config.normalise_sampling)
    prompts = _prompts_to_normalise(bench, config, renderer, data.train, prompt_room)
    sampler = bench.sampler(bench.models.frozen_policy(reference, "reference"), bench.renderer(reference))
    # Last, for it leaves each process its shard of the model and of all that lives on the same base.
    learner = GradientLearner[Any](
        "reward",
        task.module,
        task.loss,
        config,
        total_steps=total_steps(config, mixture.epoch_size),
        head=(*model.head_weights, *task.thresholds),
        head_lr_scale=config.head_lr_scale,
        **bench.tells(renderer),
    )
    engines = RewardEngines(
        learner=learner,
        collate=task.collate,
        score_rows=scorer.score_rows,
        scorer=scorer,
        reference=sampler,
        normalise=shared(model.normalise),
        export=bench.models.export_reward_model(model, renderer, source),
        judges=task.judges,
    )
    bench.say_models()
    return bench.lead(
        lambda: train_reward(
            config,
            engines,
            task.train,
            task.held_out,
            prompts,
            weights=data.weights,
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        ),
        learner,
    )


@contextmanager
def _naming_another_objective(bench: Workbench) -> Iterator[None]:
    """Where the data cannot be read, for they are ratings or labels, say which objective learns from those."""
    config = bench.recipe.reward
    assert config is not None
    try:
        yield
    except UserError as error:
        seen = [feedback_kind(data) for data in bench.inputs.sources("reward.data")]
        kind = next((kind.name for kind in seen if kind in (RATINGS, LABELS)), config.reads)
        if kind == config.reads:
            raise
        objective = {"ratings": "ordinal", "labels": "accept"}[kind]
        raise UserError(
            f"{str(error).removesuffix('.')}. Its rows are {kind}: set reward.objective to {objective}, which is "
            "trained on those"
        ) from error


def _prompts_to_normalise(
    bench: Workbench, config: RewardConfig, renderer: Renderer, train: Sequence[Labelled[Any]], room: int
) -> list[PromptItem]:
    """The judgements' prompts that leave room for a response, and a word on those that do not."""
    fits = Fits(renderer, room, config.long_prompts)
    asked = [Labelled(Prompt(row.record.prompt), row.kind) for row in train]
    kept = [prompt for prompt in asked if fits(prompt.record)]
    if not kept:
        tokens = config.normalise_sampling.max_new_tokens
        raise UserError(f"reward: no prompt leaves room for the {tokens} tokens of normalise_sampling")
    if len(kept) < len(asked):
        left_out = len(asked) - len(kept)
        bench.console.say(
            f"reward: normalisation: {left_out} of {len(asked)} prompts left out (longer than the {room} tokens that "
            "normalise_sampling leaves)."
        )
    bench.report_cuts("normalisation", fits)
    return bench.items(renderer, kept, room)


def _warn_of_seen(bench: Workbench) -> None:
    """What sft imitated is no longer held out for the reward model that starts from it: it knows the chosen replies.

    A prompt is held out by its hash, so equal shares of one source hold out the same prompts in both stages.
    """
    sft = bench.recipe.sft
    shares = {source.name: source.validation for source in sources_of(sft.data)} if sft else {}
    for source in bench.inputs.sources("reward.data"):
        seen = shares.get(source.name)
        if seen is not None and seen < source.validation:
            bench.console.say(
                f"reward: warning: sft held out {seen:g} of {source.name} and this stage holds out "
                f"{source.validation:g}, so the start model has seen replies that are to judge it; give both the same "
                "validation."
            )
