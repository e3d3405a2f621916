"""Policy optimisation on the leash: PPO, and the methods that differ from it in an estimator, a loss or a leash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from keel.config.base import Config, Function, given_keys, without_effect
from keel.config.data import LongPrompts, Sources, idle_weights
from keel.config.estimators import ESTIMATORS, Estimator
from keel.config.kl import KLConfig
from keel.config.rewards import Rewards, RewardSource
from keel.config.sampling import RLSamplingConfig
from keel.config.servers import ServersConfig
from keel.config.shaping import ShapingConfig
from keel.config.training import OptimConfig
from keel.instruments.alarms import AFTER

GROUP = 4  # responses a prompt where an estimator compares them and no number is given


def _known(kind: str) -> str:
    if kind not in ESTIMATORS:
        raise ValueError(f"no estimator is called {kind!r}; there are {', '.join(ESTIMATORS)}")
    return kind


EstimatorName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(ESTIMATORS)})]


class AdvantageConfig(Config):
    """How advantages are estimated, and whether they are whitened over the rollout."""

    kind: EstimatorName = "gae"
    gamma: float = Field(1.0, gt=0, le=1, description="below 1 the optimum is no longer that of the objective")
    lam: float = Field(0.95, ge=0, le=1, description="gae only")
    n: int = Field(4, gt=0, description="n_step only: rewards before the critic takes over")
    whiten: bool | None = Field(
        None, description="true unless the estimator has its own way (rloo, grpo, dr_grpo, best_of_n: never)"
    )

    @property
    def estimator(self) -> Estimator:
        return ESTIMATORS[self.kind]

    @property
    def whitens(self) -> bool:
        """Whether the advantages are whitened: as it was said, else as the estimator has it, else yes."""
        choices = (self.whiten, self.estimator.whiten, True)
        return next(choice for choice in choices if choice is not None)

    def contradictions(self) -> Iterator[str]:
        unread = [key for key in ("gamma", "lam", "n") if key not in self.estimator.reads]
        yield from without_effect(self, *unread, because=f"with kind: {self.kind}")
        fixed = self.estimator.whiten
        if self.whiten is not None and fixed is not None and self.whiten != fixed:
            why = "whitening is its baseline" if fixed else "it has a baseline of its own"
            yield f"whiten: {str(self.whiten).lower()} does not go with kind: {self.kind}; {why}"


class UpdateConfig(OptimConfig):
    """The update by one rollout."""

    loss: Literal["clip", "policy_gradient", "dpo"] = Field(
        "clip",
        description="PPO's clipped ratio; the plain gradient (A2C, REINFORCE), which is good for one epoch; or DPO on "
        "pairs of fresh responses, labelled by draws from their scores (online DPO)",
    )
    ratio: Literal["token", "sequence", "gspo"] = Field(
        "token", description="what is clipped: each token's ratio, the response's product, or its geometric mean"
    )
    reduction: Literal["token_mean", "sequence_sum", "sequence_mean", "sequence_sum_by_max_length"] = Field(
        "token_mean", description="ratio: token only; sequence_sum is exactly the gradient of the objective"
    )

    lr: float = Field(1e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    critic_lr_scale: float = Field(10.0, gt=0, description="the critic's learning rate over the policy's")
    epochs: int = Field(4, gt=0, description="1 with loss: policy_gradient")
    minibatches: int = Field(4, gt=0, description="1 with loss: policy_gradient")
    token_budget: int = Field(2048, gt=0, description="padded tokens a micro-batch; changes memory, not the result")
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    value_clip: float | None = Field(0.2, gt=0)
    value_coef: float = Field(0.5, ge=0)
    entropy_coef: float = Field(0.0, ge=0)
    importance_cap: float = Field(
        2.0,
        ge=1,
        description="largest weight of a token that the sampler drew in another precision than the learner's, or that "
        "a server drew, perhaps an update before",
    )
    stop_at_kl: float | None = Field(
        None, gt=0, description="no further epoch once the approximate KL to the old policy passes it"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_pass(cls, tree: Any) -> Any:
        given = given_keys(tree)
        if given is None or given.get("loss") != "policy_gradient":
            return tree
        return {"epochs": 1, "minibatches": 1} | given

    def contradictions(self) -> Iterator[str]:
        if self.loss == "dpo":
            unread = ("clip_low", "clip_high", "ratio", "reduction", "entropy_coef", "importance_cap")
            yield from without_effect(self, *unread, because="with loss: dpo, which compares whole responses")
        if self.loss == "policy_gradient":
            because = "with loss: policy_gradient, which has no ratio"
            yield from without_effect(self, "clip_low", "clip_high", "ratio", "stop_at_kl", because=because)
            if (self.epochs, self.minibatches) != (1, 1):
                yield (
                    "loss: policy_gradient is the gradient at the policy that sampled, good for one step a rollout: "
                    "give epochs 1 and minibatches 1"
                )
        if self.ratio != "token":
            yield from without_effect(
                self, "reduction", because=f"with ratio: {self.ratio}, where each response counts once"
            )
        if self.value_coef == 0:
            yield from without_effect(self, "value_clip", "critic_lr_scale", because="with value_coef 0")


class HeldOutConfig(Config):
    """Evaluation on fixed held-out prompts while the policy trains; the best checkpoint is kept by it."""

    prompts: Sources | None = Field(None, description="unless given: the share of ppo.prompts held out")
    every: int = Field(10, gt=0, description="iterations between two evaluations")
    count: int = Field(64, gt=0, description="prompts")
    utility: Function | None = Field(None, description="module:function of the true utility, where it is known")
    judge: RewardSource | None = Field(
        None, description="a reward that is not trained on, whose opinion of the held-out responses is measured"
    )
    patience: int | None = Field(
        None, gt=0, description="end the run after so many evaluations without a better objective"
    )
    stop_at_peak: int | None = Field(
        None,
        gt=0,
        description="end the run after so many evaluations without a higher held-out score (the judge's, else the "
        "utility), and hand on the policy of its peak",
    )
    alarm_after: int = Field(
        AFTER, gt=0, description="evaluations in a row at which an instrument is out of its range until it is said"
    )

    @property
    def picked_by(self) -> str:
        """The metric whose highest value makes the best checkpoint."""
        if self.stop_at_peak is None:
            return "eval/objective"
        return "eval/utility" if self.judge is None else "eval/judge"

    def contradictions(self) -> Iterator[str]:
        yield from idle_weights(self.prompts)
        if self.judge is not None:
            yield from without_effect(self.judge, "weight", because="on evaluate.judge, which stands alone")
        if self.stop_at_peak is None:
            return
        if self.judge is None and self.utility is None:
            yield (
                "stop_at_peak goes by a score that is not trained on: give evaluate.judge another reward, or "
                "evaluate.utility the true one"
            )
        if self.patience is not None:
            yield "patience ends the run by the objective, stop_at_peak by the held-out score: give one"


class PPOConfig(Config):
    """Proximal policy optimisation against a reference."""

    prompts: Sources
    iterations: int = Field(100, gt=0)
    rollout_batch: int = Field(64, gt=0, description="responses an iteration")
    per_prompt: int = Field(
        1, gt=0, description=f"responses a prompt; {GROUP} unless given where the estimator compares them"
    )
    max_prompt_tokens: int = Field(512, gt=0)
    long_prompts: LongPrompts = Field("drop", description="a longer prompt is left out, or its oldest tokens are")
    policy: str | None = Field(None, description="where the policy starts; the supervised stage's model unless given")
    reference: str | None = Field(None, description="the leash's anchor; the policy's start unless given")
    sampling: RLSamplingConfig = RLSamplingConfig()
    servers: ServersConfig | None = Field(
        None, description="inference servers that sample; the trainer does unless given"
    )
    reward: Rewards = (RewardSource(model="reward"),)
    shaping: ShapingConfig = ShapingConfig()
    critic: Literal["head", "network", "none"] = Field(
        "head",
        description="a head on the policy's backbone; a network of its own, from a reward model; or none, "
        "as it is unless given where the estimator reads no values",
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
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest stay on the disk, beside the best")

    @model_validator(mode="before")
    @classmethod
    def _as_the_estimator_needs(cls, tree: Any) -> Any:
        given = given_keys(tree)
        advantage = given_keys((given or {}).get("advantage", {}))
        if given is None or advantage is None:
            return tree
        if (given_keys(given.get("update", {})) or {}).get("loss") == "dpo":
            return {"critic": "none", "per_prompt": 2} | given
        estimator = ESTIMATORS.get(str(advantage.get("kind", "gae")))
        needs: dict[str, Any] = {}
        if estimator is not None and not estimator.critic:
            needs["critic"] = "none"
        if estimator is not None and estimator.groups:
            needs["per_prompt"] = GROUP
        return needs | given

    def contradictions(self) -> Iterator[str]:
        if self.rollout_batch % self.per_prompt:
            yield (
                f"rollout_batch ({self.rollout_batch}) counts responses and must be a multiple of per_prompt "
                f"({self.per_prompt})"
            )
        if self.rollout_batch % self.update.minibatches:
            yield (
                f"rollout_batch ({self.rollout_batch}) must be a multiple of update.minibatches "
                f"({self.update.minibatches})"
            )
        if self.kl.kind == "adaptive" and self.kl.horizon < self.rollout_batch:
            yield (
                f"kl.horizon ({self.kl.horizon}) counts responses; give at least rollout_batch ({self.rollout_batch}): "
                "the coefficient could fall below 0"
            )
        yield from self._lengths_and_limits_fit()
        yield from self._held_out_fits()
        if self.servers is not None:
            yield from without_effect(self.sampling, "batch", because="with ppo.servers, which batch by themselves")
        if self.update.loss == "dpo":
            yield from self._pairs_fit()
        else:
            yield from self._estimator_fits()
        yield from self._critic_fits()

    def _lengths_and_limits_fit(self) -> Iterator[str]:
        if self.shaping.overlong_buffer > self.sampling.max_new_tokens:
            yield (
                f"shaping.overlong_buffer ({self.shaping.overlong_buffer}) counts the last of the "
                f"sampling.max_new_tokens ({self.sampling.max_new_tokens}); give at most so many"
            )
        if self.kl.place == "loss" and self.rollout_batch < 2:
            yield "kl.place: loss measures a response against its neighbours: give rollout_batch 2 or more"
        if self.kl.kind == "constraint" and (self.final == "best" or self.evaluate.patience is not None):
            yield (
                "final: best and evaluate.patience go by score - kl.coef x KL, and with kl.kind: constraint no "
                "coefficient is known beforehand: leave them out"
            )

    @property
    def hands_on_best(self) -> bool:
        """Whether the best checkpoint is handed on, and not the last."""
        return self.final == "best" or self.evaluate.stop_at_peak is not None

    def _held_out_fits(self) -> Iterator[str]:
        judge = self.evaluate.judge
        if judge is not None and judge.scores_as in {source.scores_as for source in self.reward}:
            yield (
                f"evaluate.judge is {judge.logged_as}, which ppo.reward trains on: it sees nothing that the score does "
                "not; name another reward"
            )
        utility = self.evaluate.utility
        trained_on = utility is not None and utility in {source.function for source in self.reward}
        if self.evaluate.stop_at_peak is not None and judge is None and trained_on:
            yield (
                f"evaluate.stop_at_peak goes by evaluate.utility, {utility}, which ppo.reward trains on: name another "
                "one, or an evaluate.judge"
            )
        if self.evaluate.stop_at_peak is not None and self.final == "best":
            yield (
                "final: best hands on the policy of the best objective, evaluate.stop_at_peak that of the highest "
                "held-out score: give one"
            )

    def _pairs_fit(self) -> Iterator[str]:
        """Online DPO: scores label pairs, so nothing estimates an advantage, and kl.coef is its beta."""
        because = "with update.loss: dpo"
        yield from without_effect(self, "advantage", because=because)
        yield from without_effect(self.kl, "place", "estimator", because=f"{because}, whose beta kl.coef is")
        if self.kl.coef == 0:
            yield "kl.coef is the beta of update.loss: dpo, which must be above 0"
        if self.per_prompt % 2 or self.rollout_batch % (2 * self.update.minibatches):
            yield (
                f"update.loss: dpo pairs responses to a prompt: give an even per_prompt (not {self.per_prompt}) and "
                f"a rollout_batch ({self.rollout_batch}) that is a multiple of twice update.minibatches"
            )

    def _estimator_fits(self) -> Iterator[str]:
        kind, estimator = self.advantage.kind, self.advantage.estimator
        if estimator.groups and self.per_prompt < 2:
            yield f"advantage.kind {kind} compares the responses to a prompt: give per_prompt 2 or more"
        if self.update.ratio != "token" and not estimator.per_sequence:
            whole = ", ".join(name for name, one in ESTIMATORS.items() if one.per_sequence)
            yield (
                f"update.ratio: {self.update.ratio} clips whole responses and needs one advantage a response, and "
                f"{kind} gives one a token; take {whole}, or ratio: token"
            )
        if self.kl.place == "loss" and self.advantage.whiten is None and self.advantage.whitens:
            yield (
                "kl.place: loss beside whitened advantages acts as kl.coef times the advantages' spread: say "
                "advantage.whiten: false, or true if that is meant"
                if estimator.whiten is None
                else f"kl.place: loss does not go with advantage.kind {kind}, whose whitening would multiply the leash "
                "by the advantages' spread; take place: reward"
            )

    def _critic_fits(self) -> Iterator[str]:
        pairs = self.update.loss == "dpo"
        reader = "update.loss: dpo" if pairs else f"advantage.kind {self.advantage.kind}"
        reads_values = self.advantage.estimator.critic and not pairs
        if self.critic != "network" and self.critic_init is not None:
            yield f"critic_init has no effect with critic: {self.critic}; leave it out"
        if self.critic == "network" and self.critic_init is None and not any(source.model for source in self.reward):
            yield "critic: network starts from a reward model, and ppo.reward names none: give critic_init"
        if self.critic == "none" and reads_values:
            yield (
                f"critic: none leaves {reader} without the values it reads; take reward_to_go, rloo or "
                "another that needs none"
            )
        if self.critic == "none":
            because = "with critic: none"
            yield from without_effect(self.update, "value_clip", "value_coef", "critic_lr_scale", because=because)
        elif not reads_values:
            yield f"critic: {self.critic} would be trained and never read with {reader}; leave it out"
