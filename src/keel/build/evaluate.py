"""The evaluation from its configuration."""

from __future__ import annotations

from typing import Any

from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.data.convert import DEMONSTRATIONS
from keel.engines.best_of import BestOfSampler
from keel.engines.scorers import PolicyScorer
from keel.models.policy import Policy
from keel.pipeline.evaluate import EvaluateEngines, evaluate
from keel.records import EncodedRow


def run_evaluate(bench: Workbench) -> dict[str, Any]:
    """The policy against its reference."""
    config = bench.recipe.evaluate
    assert config is not None
    policy_source, reference_source = bench.inputs.models["policy"], bench.inputs.models["reference"]
    renderer = bench.renderer(policy_source)
    sampling = config.sampling
    bench.require_same_tokenizer(renderer, reference_source, "evaluate.reference")
    room = bench.room([policy_source, *bench.other_models()], config.max_prompt_tokens, sampling)
    loaded = bench.prompts("evaluate.prompts", renderer, room, config.long_prompts).whole()
    policy = bench.models.frozen_policy(policy_source, "policy")
    reference = bench.models.frozen_policy(reference_source, "reference")
    temperature = sampling.temperature

    def scorer(model: Policy, at: float) -> PolicyScorer:
        return PolicyScorer(model, temperature=at, token_budget=SCORING_TOKENS)

    demonstrations: list[EncodedRow] = []
    if config.demonstrations is not None:
        longest = bench.room([policy_source, reference_source], config.max_prompt_tokens + sampling.max_new_tokens)
        answered = bench.load("evaluate.demonstrations", DEMONSTRATIONS, renderer, longest, config.long_prompts)
        rows = [row.record for row in answered.whole().train[: config.count]]
        demonstrations = [renderer.encode(row.prompt, row.response, room=longest) for row in rows]
    judge, drawer = bench.scorer(renderer), bench.sampler(policy, renderer)
    engines = EvaluateEngines(
        policy_sampler=drawer if config.best_of == 1 else BestOfSampler(drawer, judge, config.best_of),
        reference_sampler=bench.sampler(reference, renderer),
        reference=scorer(reference, temperature),
        likelihood=(scorer(policy, 1.0), scorer(reference, 1.0)),
        scorer=judge,
        utility=bench.function("utility"),
        measures={name: measure for name in config.measures if (measure := bench.function(f"measure {name}"))},
    )
    return bench.lead(
        lambda: evaluate(
            config,
            engines,
            bench.items(renderer, bench.some(loaded.train, config.count), room),
            demonstrations,
            stage=bench.stage,
            draws=bench.draws,
            console=bench.console,
        )
    )
