"""What of PPO must survive an interruption besides weights and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from keel.config.kl import KLConfig
from keel.config.ppo import PPOConfig
from keel.functional.kl import adaptive_kl_coef, annealed_kl_coef, dual_kl_coef
from keel.functional.masked import Moments
from keel.instruments.peaks import Peak
from keel.runs.fork import measured_otherwise, scored_otherwise
from keel.runs.run import StageRun


def planned_coef(config: KLConfig, iteration: int) -> float:
    """The price of a nat in that iteration as far as it is known beforehand: fixed, or on its way down."""
    if config.anneal_from is None or config.anneal_over is None:
        return config.coef
    return annealed_kl_coef(config.anneal_from, config.coef, iteration / config.anneal_over)


@dataclass(frozen=True)
class PPOState:
    """All that must survive an interruption besides weights and optimiser."""

    iteration: int
    kl_coef: float
    score_moments: Moments = field(default_factory=Moments.empty)  # of all scores so far, for running_scale
    negative_kl_streak: int = 0
    best_iteration: int | None = None
    best_objective: float | None = None  # with stop_at_peak the held-out score
    evaluations_since_best: int = 0
    skipped: int = 0  # minibatches left out, because their loss or gradient was not finite
    peaks: Mapping[str, Peak] = field(default_factory=dict)  # of the held-out scores, by metric
    stopped: str = ""  # why the run ended before its last iteration

    @property
    def score_scale(self) -> float:
        """What divides the scores; 1 until they differ."""
        return (self.score_moments.std or 1.0) if self.score_moments.count else 1.0

    def to_dict(self) -> dict[str, Any]:
        peaks = {key: {"iteration": one.iteration, "values": list(one.values)} for key, one in self.peaks.items()}
        return asdict(self) | {"peaks": peaks}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PPOState:
        kept = content.get("peaks", {})  # older checkpoints have none
        peaks = {key: Peak(one["iteration"], tuple(one["values"])) for key, one in kept.items()}
        return cls(**{**content, "score_moments": Moments(**content["score_moments"]), "peaks": peaks})

    def seeing(self, scores: Tensor, config: PPOConfig) -> PPOState:
        """The state with the running moments of the scores [B] just drawn, where they are used."""
        if not config.shaping.running_scale:
            return self
        return replace(self, score_moments=self.score_moments.merge(Moments.of(scores)))

    def next(self, kl: float, config: KLConfig, num_responses: int, streak: int) -> PPOState:
        """The state after one iteration: the leash answers the KL (nats a response) just measured (math.md §6)."""
        coef, done = self.kl_coef, self.iteration + 1
        if config.kind == "adaptive":
            assert config.target is not None
            coef = adaptive_kl_coef(coef, kl, target=config.target, horizon=config.horizon, num_responses=num_responses)
        elif config.kind == "constraint":
            assert config.target is not None
            coef = dual_kl_coef(coef, kl, limit=config.target, lr=config.dual_lr, minimum=config.min_coef)
        else:
            coef = planned_coef(config, done)
        return replace(self, iteration=done, kl_coef=coef, negative_kl_streak=streak)

    def judged(self, metrics: Mapping[str, float], config: PPOConfig) -> PPOState:
        """The state after an evaluation on held-out prompts: the best one so far, and whether the run should end."""
        value, kl = metrics[config.evaluate.picked_by], metrics["eval/kl"]
        if self.best_objective is None or value > self.best_objective:
            state = replace(self, best_iteration=self.iteration, best_objective=value, evaluations_since_best=0)
        else:
            state = replace(self, evaluations_since_best=self.evaluations_since_best + 1)
        budget, patience, past_peak = config.kl.budget, config.evaluate.patience, config.evaluate.stop_at_peak
        if budget is not None and kl >= budget:
            return replace(state, stopped=f"the held-out KL of {kl:.2f} nats a response reached kl.budget {budget:g}")
        if patience is not None and state.evaluations_since_best >= patience:
            return replace(state, stopped=f"the held-out objective has not improved for {patience} evaluations")
        if past_peak is not None and state.evaluations_since_best >= past_peak:
            peak = f"the held-out score was highest at iteration {state.best_iteration}"
            return replace(state, stopped=f"{peak}, {past_peak} evaluations ago")
        return state

    def heeding(self, stage: StageRun) -> PPOState:
        """The state after a line was logged: a callback may have asked for the end."""
        return replace(self, stopped="a callback asked for it") if stage.stopping else self

    def under(self, config: PPOConfig, changed: set[str]) -> PPOState:
        """The state with which a fork begins: what was measured under other settings no longer counts."""
        if changed <= {"ppo.iterations"}:
            return self
        starts = {"ppo.kl.coef", "ppo.kl.kind", "ppo.kl.anneal_from", "ppo.kl.anneal_over"}
        coef = planned_coef(config.kl, self.iteration) if changed & starts else self.kl_coef
        moments = Moments.empty() if scored_otherwise(changed) else self.score_moments
        peaks = {} if measured_otherwise(changed) else self.peaks
        return PPOState(iteration=self.iteration, kl_coef=coef, score_moments=moments, peaks=peaks)
