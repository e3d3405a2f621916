"""The reward model from its configuration."""

from __future__ import annotations

from typing import Any

from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.data.load import load_comparisons
from keel.engines.learner import GradientLearner
from keel.engines.losses import reward_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import (
    RewardModelScorer,
)
from keel.errors import UserError
from keel.pipeline.epochs import total_steps
from keel.pipeline.reward import EncodedPair, RewardEngines, by_prompt, train_reward
from keel.records import Pairs
from keel.schema import FIRST_PROBABILITY, Comparison, Prompt
from keel.text.render import Renderer


def run_reward(bench: Workbench) -> dict[str, Any]:
    """A scalar head on the start model's body, trained on the comparisons."""
    config = bench.recipe.reward
    assert config is not None
    source = bench.inputs.models["init"]
    renderer = bench.renderer(source)
    data = bench.inputs.data["reward.data"]
    room = bench.room([source], config.max_tokens)
    loaded = load_comparisons(data, fits=lambda row: renderer.length(row) <= room)
    bench.report(data, loaded.check)
    if (config.flip_probability or config.label_smoothing) and any(row.margin for row in loaded.train):
        raise UserError(f"{data.name} has margins, which exclude flip_probability and label_smoothing; drop either")
    model = bench.models.new_reward_model(source)
    train = [_encode_pair(renderer, row) for row in loaded.train]
    num_prompts = len(by_prompt(train, config.max_pairs))
    learner = GradientLearner[Pairs](
        "reward",
        model,
        reward_loss(config.flip_probability, config.label_smoothing),
        config,
        total_steps=total_steps(config, num_prompts),
        head=tuple(model.head.parameters()),
        head_lr_scale=config.head_lr_scale,
    )
    scorer = RewardModelScorer("reward", model, token_budget=SCORING_TOKENS)
    reference = bench.inputs.models["reference"]
    bench.require_same_tokenizer(renderer, reference, "the reference of the reward stage")
    sampling = config.normalise_sampling
    room = bench.room([reference, source], room, sampling)
    prompts = [item for row in loaded.train if len((item := renderer.item(Prompt(row.prompt))).tokens) <= room]
    if not prompts:
        raise UserError(f"reward: no prompt leaves room for the {sampling.max_new_tokens} tokens of normalise_sampling")
    engines = RewardEngines(
        learner=learner,
        score_rows=scorer.score_rows,
        scorer=scorer,
        reference=CachedSampler(bench.models.frozen_policy(reference, "reference"), bench.renderer(reference)),
        normalise=model.normalise,
        export=bench.models.export_reward_model(model, renderer, source),
    )
    bench.say_models()
    return train_reward(
        config,
        engines,
        train,
        [_encode_pair(renderer, row) for row in loaded.validation],
        prompts,
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def _encode_pair(renderer: Renderer, row: Comparison) -> EncodedPair:
    chosen, rejected = renderer.comparison(row)
    known = row.extra.get(FIRST_PROBABILITY)
    return EncodedPair(chosen, rejected, row.margin or 0.0, row.weight, known if isinstance(known, float) else None)
