"""PPO on the leash."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from keel.config.base import Config, Function, refuse_without_effect
from keel.config.data import LongPrompts, Sources, refuse_weights
from keel.config.rewards import Rewards, RewardSource
from keel.config.sampling import RLSamplingConfig
from keel.config.training import OptimConfig


class AdvantageConfig(Config):
    """How advantages are estimated, and whether they are whitened over the rollout."""

    kind: Literal["gae", "monte_carlo"] = "gae"
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    whiten: bool = True

    @model_validator(mode="after")
    def _lam_is_read(self) -> AdvantageConfig:
        if self.kind == "monte_carlo":
            refuse_without_effect(self, "lam", because="with kind: monte_carlo, which is gae at lam 1")
        return self


class KLConfig(Config):
    """The leash: a fixed coefficient, or one steered so that the KL meets a target."""

    kind: Literal["fixed", "adaptive"] = "fixed"
    coef: float = Field(0.05, ge=0)
    target: float | None = Field(None, gt=0, description="nats a response; adaptive only")
    horizon: int = Field(10_000, gt=0, description="responses over which the coefficient adapts")
    budget: float | None = Field(
        None, gt=0, description="end the run when the held-out KL (nats a response) reaches it"
    )

    @model_validator(mode="after")
    def _target_fits(self) -> KLConfig:
        if (self.kind == "adaptive") != (self.target is not None):
            raise ValueError("kl.target belongs to `kind: adaptive`, which needs it; `kind: fixed` has none")
        if self.kind == "adaptive" and self.coef == 0:
            raise ValueError("kl.coef 0 cannot adapt (it is multiplied); start above 0")
        if self.kind == "fixed":
            refuse_without_effect(self, "horizon", because="with kind: fixed")
        return self


class UpdateConfig(OptimConfig):
    """The clipped update of one rollout."""

    lr: float = Field(1e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    critic_lr_scale: float = Field(10.0, gt=0, description="the critic's learning rate over the policy's")
    epochs: int = Field(4, gt=0)
    minibatches: int = Field(4, gt=0)
    token_budget: int = Field(8192, gt=0, description="padded tokens a micro-batch; changes memory, not the result")
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    value_clip: float | None = Field(0.2, gt=0)
    value_coef: float = Field(0.5, ge=0)
    entropy_coef: float = Field(0.0, ge=0)
    importance_cap: float = Field(
        2.0, ge=1, description="largest weight of a token that the sampler drew in another precision than the learner's"
    )
    stop_at_kl: float | None = Field(
        None, gt=0, description="no further epoch once the approximate KL to the old policy passes it"
    )

    @model_validator(mode="after")
    def _critic_is_trained(self) -> UpdateConfig:
        if self.value_coef == 0:
            refuse_without_effect(self, "value_clip", "critic_lr_scale", because="with value_coef 0")
        return self


class HeldOutConfig(Config):
    """Evaluation on fixed held-out prompts while the policy trains; the best checkpoint is kept by it."""

    prompts: Sources | None = Field(None, description="unless given: the share of ppo.prompts held out")
    every: int = Field(10, gt=0, description="iterations between two evaluations")
    count: int = Field(64, gt=0, description="prompts")
    utility: Function | None = Field(None, description="module:function of the true utility, where it is known")
    patience: int | None = Field(
        None, gt=0, description="end the run after so many evaluations without a better objective"
    )

    @model_validator(mode="after")
    def _judged_once(self) -> HeldOutConfig:
        refuse_weights(self.prompts)
        return self


class PPOConfig(Config):
    """Proximal policy optimisation against a reference."""

    prompts: Sources
    iterations: int = Field(100, gt=0)
    rollout_batch: int = Field(64, gt=0, description="prompts, so responses, an iteration")
    max_prompt_tokens: int = Field(512, gt=0)
    long_prompts: LongPrompts = Field("drop", description="a longer prompt is left out, or its oldest tokens are")
    policy: str | None = Field(None, description="where the policy starts; the supervised stage's model unless given")
    reference: str | None = Field(None, description="the leash's anchor; the policy's start unless given")
    sampling: RLSamplingConfig = RLSamplingConfig()
    reward: Rewards = (RewardSource(model="reward"),)
    score_clip: float | None = Field(None, gt=0)
    score_whiten: bool = Field(False, description="whiten the batch's scores: acts as kl.coef times their spread")
    eos_penalty: float = Field(0.0, ge=0, description="taken off the score of a response that never ends")
    critic: Literal["head", "network", "none"] = Field(
        "head", description="a head on the policy's backbone; a network of its own, from a reward model; or none"
    )
    critic_init: str | None = Field(
        None, description="network only: the reward model it starts from; the first of `reward` unless given"
    )
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KLConfig = KLConfig()
    update: UpdateConfig = UpdateConfig()
    evaluate: HeldOutConfig = HeldOutConfig()
    final: Literal["last", "best"] = Field("last", description="which policy the stage hands on")
    max_truncated: float = Field(0.9, gt=0, le=1, description="stop when more of a rollout never ends")
    checkpoint_every: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _minibatches_divide(self) -> PPOConfig:
        if self.rollout_batch % self.update.minibatches:
            raise ValueError(
                f"rollout_batch ({self.rollout_batch}) must be a multiple of update.minibatches "
                f"({self.update.minibatches})"
            )
        if self.kl.kind == "adaptive" and self.kl.horizon < self.rollout_batch:
            raise ValueError(
                f"kl.horizon ({self.kl.horizon}) counts responses; give at least rollout_batch ({self.rollout_batch}): "
                "the coefficient could fall below 0"
            )
        self._critic_fits()
        return self

    def _critic_fits(self) -> None:
        if self.critic != "network" and self.critic_init is not None:
            raise ValueError(f"critic_init has no effect with critic: {self.critic}; leave it out")
        if self.critic == "network" and self.critic_init is None and not any(source.model for source in self.reward):
            raise ValueError("critic: network starts from a reward model, and ppo.reward names none: give critic_init")
        if self.critic == "none" and self.advantage.kind != "monte_carlo":
            raise ValueError(
                "critic: none leaves advantage.kind gae without values to bootstrap from; use kind: monte_carlo, "
                "whose whitened returns need none"
            )
        if self.critic == "none":
            because = "with critic: none"
            refuse_without_effect(self.update, "value_clip", "value_coef", "critic_lr_scale", because=because)
