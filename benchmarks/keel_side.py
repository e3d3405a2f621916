"""Keel's side of the comparisons: its own engines, built as its stages build them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Round, Side, Stopwatch, rounds_of
from keel.build.ppo import ppo_learner
from keel.build.rewards import model_scorer
from keel.build.shelf import Shelf
from keel.build.workbench import SCORING_TOKENS, load_renderer
from keel.config.model import ModelConfig
from keel.config.ppo import PPOConfig
from keel.config.rewards import RewardSource
from keel.engines.base import DrawKey, Scorer
from keel.engines.learner import GradientLearner
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import FunctionScorer, PolicyScorer, explain_ratio
from keel.functional.masked import whiten
from keel.models.policy import Policy
from keel.pipeline.credit import baseline, estimate_advantages, leash_in_loss, shape
from keel.pipeline.guards import RATIO_TOLERANCE, ROUGH_RATIO_TOLERANCE
from keel.pipeline.measures import rollout_metrics
from keel.pipeline.ppo import PPOEngines, update
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import Credit, PromptItem, Rollout, Samples
from keel.runs.identity import Identity
from keel.runs.run import StageRun
from keel.schema import Prompt
from keel.seeds import Draws
from keel.text.render import Renderer


def make_shelf(spec: Mapping[str, Any]) -> Shelf:
    """The models of a stage that leaves nothing behind."""
    config = ModelConfig(
        base=spec["models"]["policy"],
        tune=spec.get("tune", "full"),
        precision="bfloat16" if spec.get("bf16") else "float32",
    )
    folder = Path(spec["scratch"]) / "stage"
    return Shelf(
        config, spec.get("device", "cpu"), StageRun(folder, Identity({}, {}), print), Draws(spec["seed"], "benchmark")
    )


def versions() -> dict[str, str]:
    """Of what does the work on this side."""
    return {name: version(name) for name in ("torch", "transformers")}


class Given:
    """A sampler that has drawn already."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def sample(self, prompts: Sequence[PromptItem], config: Any, key: DrawKey) -> Samples:
        """What was drawn, whatever is asked."""
        return self._samples


class Counted:
    """A learner that counts its steps, and the real tokens of its micro-batches."""

    def __init__(self, learner: GradientLearner[Any], tokens: Callable[[Any], int]) -> None:
        self._learner = learner
        self._tokens = tokens
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def step(self, batches: Sequence[Any], check: Any = None) -> Any:
        """As the learner itself."""
        self.tokens += sum(self._tokens(batch) for batch in batches)
        return self._learner.step(batches, check)


class Rollouts:
    """Rounds of what `train_ppo` does in an iteration, evaluation and checkpoints left out."""

    def __init__(self, spec: Mapping[str, Any], config: PPOConfig, unit: str) -> None:
        """`unit` is what a response is called."""
        self.config = config
        self.unit = unit
        self.draws = Draws(spec["seed"], "ppo")
        self.renderer = load_renderer(spec["models"]["policy"])
        self.items = [self.renderer.item(Prompt(text)) for text in spec["prompts"]]
        shelf = make_shelf(spec)
        critic_source = spec.get("on_base") or spec["models"]["value"]
        policy = shelf.trained_policy(spec["models"]["policy"], critic=config.critic, critic_source=critic_source)
        learner = ppo_learner(config, policy)
        exact = shelf.precision == torch.float32
        reference = shelf.frozen_policy(spec["models"]["policy"], "reference")
        self.actors = Actors(
            sampler=CachedSampler(policy, self.renderer),
            policy=self._scorer(policy),
            reference=self._scorer(reference),
            scorer=_rewards(config.reward[0], shelf, self.renderer),
            exact=exact,
        )
        self.learner = Counted(learner, lambda batch: int(batch.sequences.lengths.sum()))
        tolerance = RATIO_TOLERANCE if exact else ROUGH_RATIO_TOLERANCE
        self.engines = PPOEngines(
            actors=self.actors,
            learner=self.learner,
            explain_ratio=lambda rollout: explain_ratio(
                policy, rollout, temperature=config.sampling.temperature, tolerance=tolerance
            ),
            export=lambda folder: None,
            ratio_tolerance=tolerance,
        )

    def measure(self, rounds: int) -> Side:
        """All rounds."""
        return Side("keel", rounds_of(self._round, rounds), peak_memory=0, versions=versions())

    def _scorer(self, policy: Policy) -> PolicyScorer:
        return PolicyScorer(policy, temperature=self.config.sampling.temperature, token_budget=SCORING_TOKENS)

    def sample(self, number: int) -> Samples:
        """The first part of a round."""
        return self.actors.sampler.sample(self._prompts(number), self.config.sampling, self._key(number))

    def score(self, number: int, samples: Samples) -> tuple[Rollout, Credit]:
        """The second: reference, critic and rewards on what was drawn, and what follows from them."""
        config, actors = self.config, replace(self.actors, sampler=Given(samples))
        prompts = self._prompts(number)
        rollout = collect_rollout(actors, prompts, config.sampling, self._key(number), per_prompt=config.per_prompt)
        rewards = shape(rollout, config.kl.coef, 1.0, config)
        advantages = estimate_advantages(rewards, rollout, config.advantage)
        returns = advantages + baseline(rollout, config.advantage)
        rollout_metrics(rollout, rewards, None if config.critic == "none" else returns)
        if config.advantage.whitens:
            advantages = whiten(advantages, rollout.response_mask)
        return rollout, Credit(advantages, returns, leash_in_loss(rollout, config.kl.coef, config.kl))

    def update(self, number: int, rollout: Rollout, credit: Credit) -> None:
        """The third."""
        update(self.config.update, self.engines, rollout, credit, number, self.draws).means()

    def _round(self, number: int) -> Round:
        watch = Stopwatch()
        steps, tokens = self.learner.steps, self.learner.tokens
        samples = self.sample(number)
        sampling = watch.lap()
        rollout, credit = self.score(number, samples)
        scoring = watch.lap()
        self.update(number, rollout, credit)
        updating = watch.lap()
        return Round(
            seconds=sampling + scoring + updating,
            counts={
                self.unit: len(samples.sequences),
                "tokens sampled": int(samples.sequences.weight),
                "tokens trained": self.learner.tokens - tokens,
                "optimiser steps": self.learner.steps - steps,
            },
            parts={"sampling": sampling, "scoring": scoring, "updating": updating},
        )

    def _prompts(self, number: int) -> list[PromptItem]:
        size = self.config.rollout_batch // self.config.per_prompt
        items = self.items[number * size : (number + 1) * size]
        return [item for item in items for _ in range(self.config.per_prompt)]

    def _key(self, number: int) -> DrawKey:
        return DrawKey(self.draws, "rollout", number, first_sample=number * self.config.rollout_batch)


def _rewards(source: RewardSource, shelf: Shelf, renderer: Renderer) -> Scorer:
    if source.model is None:
        return FunctionScorer("distinct", distinct_words)
    models = shelf.reward_models(source.model, "reward model")
    return model_scorer(source, models, renderer, token_budget=SCORING_TOKENS, trust_remote_code=False, say=print)


def distinct_words(
    prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """A reward that costs nothing: how many different words a response has."""
    return [float(len(set(response.split()))) for response in responses]
