"""PPO from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from keel.build.servers import drawing_ahead, ppo_sampler
from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.config.ppo import PPOConfig
from keel.data.held_out import none_held_out
from keel.data.load import Labelled, Mixed
from keel.dist.crew import shared
from keel.dist.fsdp import gathered
from keel.engines.base import Scorer
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.engines.scorers import (
    PolicyScorer,
    explain_ratio,
)
from keel.errors import UserError
from keel.models.policy import Policy
from keel.pipeline.faults import saving_rollouts
from keel.pipeline.guards import RATIO_TOLERANCE, ROUGH_RATIO_TOLERANCE, require_near_servers
from keel.pipeline.heldout import HeldOut
from keel.pipeline.ppo import PPOEngines, train_ppo
from keel.pipeline.rollouts import Actors
from keel.records import PolicyBatch, PromptItem, Rollout
from keel.schema import Prompt
from keel.text.render import Renderer


def run_ppo(bench: Workbench) -> dict[str, Any]:
    """PPO in the layout that the recipe asks for: who shares a base is the shelf's business."""
    config = bench.recipe.ppo
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    reference_source = bench.inputs.models["reference"]
    bench.require_same_tokenizer(renderer, reference_source, "ppo.reference")
    room = bench.room([source, *bench.other_models()], config.max_prompt_tokens, config.sampling)
    loaded, held_out = _prompts(bench, config, renderer, room)
    policy = bench.models.trained_policy(source, critic=config.critic, critic_source=_critic_source(bench, renderer))
    temperature = config.sampling.temperature
    reference = bench.models.frozen_policy(reference_source, "reference")
    prompts = bench.items(renderer, loaded.train, room)
    items = bench.items(renderer, bench.some(held_out, config.evaluate.count), room)
    sampler, check_sampler = ppo_sampler(bench, policy, renderer, lambda: f"step-{learner.steps}", [*prompts, *items])
    exact = bench.models.precision == torch.float32 and config.servers is None
    actors = Actors(
        sampler=sampler,
        # in the same batches as the reference: what bfloat16 rounds off is then the same, and no part of the KL
        policy=PolicyScorer(policy, temperature=temperature, token_budget=SCORING_TOKENS),
        reference=PolicyScorer(reference, temperature=temperature, token_budget=SCORING_TOKENS),
        scorer=bench.scorer(renderer),
        exact=exact,
    )
    judge = bench.judge(renderer)
    # Last, for it leaves each process its shard of the policy and of all that lives on the same base.
    learner = ppo_learner(config, policy, **bench.tells(renderer))
    tolerance = RATIO_TOLERANCE if exact else ROUGH_RATIO_TOLERANCE
    if config.servers is not None:  # whose gap has a limit of its own
        tolerance = max(tolerance, config.servers.max_logprob_gap)
    ahead = drawing_ahead(sampler, config.servers)
    engines = PPOEngines(
        actors=actors if ahead is None else replace(actors, sampler=ahead),
        learner=learner,
        explain_ratio=_explainer(policy, temperature, tolerance),
        export=bench.models.export_policy(policy, renderer, source),
        ratio_tolerance=tolerance,
        ahead=ahead,
    )
    _note_where_grpo_goes(bench, config)
    bench.say_models()

    def walk() -> dict[str, Any]:
        check_sampler()
        with saving_rollouts(bench.stage, learner, paired=config.update.loss == "dpo"):
            return train_ppo(
                config,
                engines,
                prompts,
                _held_out(bench, renderer, actors, items, judge, engines.explain_ratio),
                stage=bench.stage,
                mixture=loaded.mixture,
                draws=bench.draws,
                console=bench.console,
            )

    return bench.lead(walk, learner)


def _prompts(
    bench: Workbench, config: PPOConfig, renderer: Renderer, room: int
) -> tuple[Mixed[Prompt], Sequence[Labelled[Prompt]]]:
    """Those that are trained on, and those held out."""
    loaded = bench.prompts("ppo.prompts", renderer, room, config.long_prompts)
    held_out = loaded.validation
    if config.evaluate.prompts is not None:  # then none of ppo.prompts need be held out
        loaded = loaded.whole()
        held_out = bench.prompts("ppo.evaluate.prompts", renderer, room, config.long_prompts).whole().train
    if not held_out:
        raise UserError(str(none_held_out([(data, one.train) for data, one in loaded.sources])))
    return loaded, held_out


def _held_out(
    bench: Workbench,
    renderer: Renderer,
    actors: Actors,
    items: Sequence[PromptItem],
    judge: Scorer | None,
    explain: Callable[[Rollout], str],
) -> HeldOut:
    config, utility = bench.recipe.ppo, bench.function("utility")
    assert config is not None
    near = partial(require_near_servers, servers=config.servers, explain=explain)
    about = (actors, utility, items, config.sampling, config.kl.coef, bench.draws)
    return HeldOut(*about, judge=judge, check=near, spell=renderer.codec.spell)


def ppo_learner(config: PPOConfig, policy: Policy, **tells: Any) -> GradientLearner[PolicyBatch]:
    """What trains the policy and its critic on the loss that the configuration asks for."""
    return GradientLearner[PolicyBatch](
        "ppo",
        policy,
        ppo_loss(config),
        config.update,
        total_steps=config.iterations * config.update.epochs * config.update.minibatches,
        head=policy.critic.trained() if policy.critic is not None else (),
        head_lr_scale=config.update.critic_lr_scale,
        **tells,
    )


def _explainer(policy: Policy, temperature: float, tolerance: float) -> Callable[[Rollout], str]:
    def explain(rollout: Rollout) -> str:
        with gathered(policy):
            return explain_ratio(policy, rollout, temperature=temperature, tolerance=tolerance)

    return shared(explain)


def _note_where_grpo_goes(bench: Workbench, config: PPOConfig) -> None:
    if config.kl.place == "loss" and config.advantage.kind == "grpo":
        bench.console.say(
            "ppo: note: grpo divides the scores by their spread within a group, and the leash in the loss is not: "
            "the optimum is not that of the objective (docs/guides/algorithms.md)."
        )


def _critic_source(bench: Workbench, renderer: Renderer) -> str | None:
    """The reward model that a critic network starts from."""
    source = bench.inputs.models.get("critic")
    if source is not None:
        known = bench.renderer(source).codec.hf.get_vocab()
        if not renderer.codec.hf.get_vocab().items() <= known.items():
            raise UserError(
                f"ppo.critic: network reads the policy's tokens, and {source} has another vocabulary; give critic_init "
                "a reward model of the policy's family, or take critic: head"
            )
    return source
