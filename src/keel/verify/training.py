"""Training in a world by the stage that users run: `keel.pipeline.ppo.train_ppo`, with engines that know a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from keel.config.ppo import PPOConfig
from keel.data.mix import Mixture
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.pipeline.heldout import HeldOut
from keel.pipeline.ppo import PPOEngines, train_ppo
from keel.pipeline.rollouts import Actors
from keel.records import PolicyBatch
from keel.runs.callbacks import Callback, StageInfo
from keel.runs.console import SilentConsole
from keel.runs.identity import Identity
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.verify import exact
from keel.verify.tabular import RewardTable, TableSampler, TableScorer, TabularPolicy, prompt_items
from keel.verify.worlds import World

RESPONSES = 1024  # an iteration
_POINTS = 20  # of a curve


@dataclass(frozen=True)
class Course:
    """How far a policy was from the optimum while it trained, and where it ended."""

    logits: Tensor  # [P, S, V] of the trained policy
    iterations: list[int]
    mean_gap: list[float]  # of J, over prompts, at those iterations
    worst_gap: list[float]


class _Watch(Callback):
    """Notes a run's exact distance from the optimum as it goes."""

    def __init__(self, world: World, beta: float, every: int, logits: Callable[[], Tensor]) -> None:
        self.iterations: list[int] = []
        self.mean_gap: list[float] = []
        self.worst_gap: list[float] = []
        self._world = world
        self._beta = beta
        self._every = every
        self._logits = logits

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> None:
        if step % self._every == 0:
            gap = exact.gap(self._world, self._logits(), self._beta)
            self.iterations.append(step)
            self.mean_gap.append(float(gap.mean()))
            self.worst_gap.append(float(gap.max()))


def world_config(world: World, *, beta: float, iterations: int, lr: float, **changes: Any) -> PPOConfig:
    """Settings for a run in the world: one step an iteration on all its responses, the step annealed to 0.

    `changes` are keys of the recipe's `ppo`, merged into these a level deep.
    """
    tree: dict[str, Any] = {
        "prompts": "the world's",
        "iterations": iterations,
        "rollout_batch": RESPONSES,
        "per_prompt": RESPONSES // world.num_prompts,
        "sampling": {"max_new_tokens": world.tree.longest},
        "kl": {"coef": beta},
        "update": {
            "lr": lr,
            "schedule": "cosine",
            "warmup": 0.0,
            "epochs": 1,
            "minibatches": 1,
            "max_grad_norm": 1e9,
            "token_budget": RESPONSES * 64,
        },
        "evaluate": {"every": iterations},
        "max_truncated": 1.0,
        "checkpoint_every": iterations,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), Mapping) else value
    return PPOConfig.model_validate(tree)


def train_table(world: World, config: PPOConfig, *, seed: int, start: Tensor | None = None) -> Course:
    """A tabular policy trained from the reference, or from the logits `start`."""
    policy = TabularPolicy(world, start, critic=config.critic != "none")
    temperature, update = config.sampling.temperature, config.update
    actors = Actors(
        sampler=TableSampler(policy),
        policy=TableScorer(policy, temperature=temperature),
        reference=TableScorer(TabularPolicy(world), temperature=temperature),
        scorer=RewardTable(world),
    )
    learner = GradientLearner[PolicyBatch](
        "ppo",
        policy,
        ppo_loss(config),
        update,
        total_steps=config.iterations * update.epochs * update.minibatches,
        head=() if policy.critic is None else (policy.critic,),
        head_lr_scale=update.critic_lr_scale,
    )
    return train(world, config, actors, learner, lambda: policy.logits.detach().clone(), seed=seed)


def train(
    world: World,
    config: PPOConfig,
    actors: Actors,
    learner: GradientLearner[PolicyBatch],
    logits: Callable[[], Tensor],
    *,
    seed: int,
) -> Course:
    """Run the stage on the world's prompts with these engines; `logits` is the policy's table [P, S, V] as it is."""
    draws = Draws(seed, "ppo")
    items = prompt_items(world)
    engines = PPOEngines(
        actors=actors,
        learner=learner,
        explain_ratio=lambda rollout: "Sampler and learner read one table.",
        export=lambda folder: None,
    )
    held_out = HeldOut(actors, None, items, config.sampling, config.kl.coef, draws)
    watch = _Watch(world, config.kl.coef, max(1, config.iterations // _POINTS), logits)
    with TemporaryDirectory(prefix="keel-verify-") as folder:
        stage = StageRun(Path(folder) / "ppo", Identity({}, {}), lambda sentence: None, callbacks=[watch])
        stage.begin()
        train_ppo(
            config,
            engines,
            items,
            held_out,
            mixture=Mixture.whole(len(items)),
            stage=stage,
            draws=draws,
            console=SilentConsole(),
        )
    return Course(logits(), watch.iterations, watch.mean_gap, watch.worst_gap)
