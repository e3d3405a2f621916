"""PPO on the toy language with its real engines: what the tests of the stage start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from keel.config.ppo import PPOConfig
from keel.data.mix import Mixture
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import PolicyScorer, explain_ratio
from keel.instruments.peaks import Peak
from keel.models.policy import Policy
from keel.pipeline.guards import RATIO_TOLERANCE
from keel.pipeline.heldout import HeldOut
from keel.pipeline.ppo import PPOEngines, train_ppo
from keel.pipeline.rollouts import Actors
from keel.records import PolicyBatch
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from tests.pipeline.support import PROMPT, Heard, Response, TableScorer, all_responses, toy_policy, toy_renderer

DRAWS = Draws(0, "ppo")


def toy_config(**changes: Any) -> PPOConfig:
    """One prompt, responses of at most two tokens; nested keys are merged a level deep."""
    tree: dict[str, Any] = {
        "prompts": "toy.jsonl",
        "iterations": 4,
        "rollout_batch": 32,
        "sampling": {"max_new_tokens": 2},
        "kl": {"coef": 0.5},
        "update": {"lr": 1e-2, "epochs": 2, "minibatches": 1, "warmup": 0.0},
        "evaluate": {"every": 1},
        "max_truncated": 1.0,
        "checkpoint_every": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
    return PPOConfig.model_validate(tree)


def toy_scores(longest: int) -> dict[Response, float]:
    """1 for a response that begins with word 4, 1/2 for one that ends, 0.7 more for `5 EOS`."""
    return {
        response: 1.0 * (response[0] == 4) + 0.5 * (response[-1] == 0) + 0.7 * (response == (5, 0))
        for response in all_responses(longest)
    }


@dataclass
class Toy:
    """A policy, its frozen twin, and all that trains it."""

    config: PPOConfig
    policy: Policy
    reference: Policy
    engines: PPOEngines
    held_out: HeldOut

    @property
    def learner(self) -> GradientLearner[PolicyBatch]:
        assert isinstance(self.engines.learner, GradientLearner)
        return self.engines.learner

    def train(self, stage: StageRun, console: Console | None = None) -> dict[str, Any]:
        return train_ppo(
            self.config,
            self.engines,
            [PROMPT],
            self.held_out,
            mixture=Mixture.whole(1),
            stage=stage,
            draws=DRAWS,
            console=console or Heard(),
        )


def toy(
    config: PPOConfig,
    scores: Mapping[Response, float] | None = None,
    *,
    objectives: list[float] | None = None,
    utilities: list[float] | None = None,
    held_out_kl: float = 0.0,
    export: Callable[[Path], None] | None = None,
) -> Toy:
    """`objectives` replaces the held-out evaluations, with `utilities` beside it: line 0's, then one an evaluation."""
    renderer, policy, reference = toy_renderer(), toy_policy(critic=config.critic != "none"), toy_policy()
    temperature, update = config.sampling.temperature, config.update
    actors = Actors(
        sampler=CachedSampler(policy, renderer),
        policy=PolicyScorer(policy, temperature=temperature, token_budget=10_000),
        reference=PolicyScorer(reference, temperature=temperature, token_budget=10_000),
        scorer=TableScorer("table", scores or toy_scores(config.sampling.max_new_tokens)),
    )
    learner = GradientLearner[PolicyBatch](
        "ppo",
        policy,
        ppo_loss(config),
        update,
        total_steps=config.iterations * update.epochs * update.minibatches,
        head=policy.critic.trained() if policy.critic else (),
        head_lr_scale=update.critic_lr_scale,
    )

    def save(folder: Path) -> None:
        save_file({name: tensor.clone() for name, tensor in policy.state_dict().items()}, folder / "model.safetensors")

    def explain(rollout: Any) -> str:
        return explain_ratio(policy, rollout, temperature=temperature, tolerance=RATIO_TOLERANCE)

    engines = PPOEngines(actors=actors, learner=learner, explain_ratio=explain, export=export or save)
    arguments = (actors, None, [PROMPT] * 4, config.sampling, config.kl.coef, DRAWS)
    held_out = (
        HeldOut(*arguments)
        if objectives is None
        else Scripted(*arguments, objectives=tuple(objectives), utilities=tuple(utilities or ()), kl=held_out_kl)
    )
    return Toy(config, policy, reference, engines, held_out)


@dataclass(frozen=True)
class Scripted(HeldOut):
    """Held-out evaluations whose results are known beforehand."""

    objectives: tuple[float, ...] = ()
    utilities: tuple[float, ...] = ()
    kl: float = 0.0

    def evaluate(
        self, iteration: int, stage: StageRun, console: Console, peaks: Mapping[str, Peak]
    ) -> tuple[dict[str, float], dict[str, Peak]]:
        objective, kl = self.objectives[iteration], self.kl * iteration
        metrics = {"eval/objective": objective, "eval/scores": objective, "eval/kl": kl}
        if not self.utilities:
            return metrics, {}
        values = [self.utilities[iteration]] * 16
        peak = peaks.get("eval/utility", Peak(iteration, tuple(values))).or_higher(iteration, values)
        measured = {"": values[0], "/peak": peak.iteration, "/fall_error": peak.fall_error(values)}
        return metrics | {f"eval/utility{name}": value for name, value in measured.items()}, {"eval/utility": peak}
