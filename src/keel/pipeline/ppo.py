"""Stage 4, PPO on the leash. Read `train_ppo` first: it is the algorithm, a line a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from keel.batching import cut_by_tokens, take, take_tokens
from keel.config.ppo import AdvantageConfig, KLConfig, PPOConfig, UpdateConfig
from keel.data.mix import Mixture
from keel.engines.base import DrawKey, Learner
from keel.errors import UserError
from keel.functional.advantages import gae, monte_carlo
from keel.functional.kl import adaptive_kl_coef, k1
from keel.functional.masked import whiten
from keel.functional.policy import importance_weights
from keel.functional.rewards import shape_rewards, transform_scores
from keel.pipeline.guards import RATIO_TOLERANCE, require_ends, require_unit_ratio, watch_kl_sign, watch_variation
from keel.pipeline.heldout import HeldOut
from keel.pipeline.measures import rollout_metrics
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import PolicyBatch, PromptItem, Rollout
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.tally import Tally


@dataclass(frozen=True)
class PPOEngines:
    """What does the work of this stage."""

    actors: Actors
    learner: Learner[PolicyBatch]
    explain_ratio: Callable[[Rollout], str]  # which known cause makes the first ratio differ from 1
    export: Callable[[Path], None]
    ratio_tolerance: float = RATIO_TOLERANCE


@dataclass(frozen=True)
class PPOState:
    """All that must survive an interruption besides weights and optimiser."""

    iteration: int
    kl_coef: float
    negative_kl_streak: int = 0
    best_iteration: int | None = None
    best_objective: float | None = None
    evaluations_since_best: int = 0
    stopped: str = ""  # why the run ended before its last iteration

    def next(self, metrics: dict[str, float], config: KLConfig, num_responses: int, streak: int) -> PPOState:
        """The state after one iteration: the leash adapts to the KL that was just measured (math.md §6)."""
        coef = self.kl_coef
        if config.target is not None:
            coef = adaptive_kl_coef(
                coef,
                metrics["objective/kl"],
                target=config.target,
                horizon=config.horizon,
                num_responses=num_responses,
            )
        return replace(self, iteration=self.iteration + 1, kl_coef=coef, negative_kl_streak=streak)

    def judged(self, objective: float, config: PPOConfig, kl: float) -> PPOState:
        """The state after an evaluation on held-out prompts: the best one so far, and whether the run should end."""
        if self.best_objective is None or objective > self.best_objective:
            state = replace(self, best_iteration=self.iteration, best_objective=objective, evaluations_since_best=0)
        else:
            state = replace(self, evaluations_since_best=self.evaluations_since_best + 1)
        budget, patience = config.kl.budget, config.evaluate.patience
        if budget is not None and kl >= budget:
            return replace(state, stopped=f"the held-out KL of {kl:.2f} nats a response reached kl.budget {budget:g}")
        if patience is not None and state.evaluations_since_best >= patience:
            return replace(state, stopped=f"the held-out objective has not improved for {patience} evaluations")
        return state

    def heeding(self, stage: StageRun) -> PPOState:
        """The state after a line was logged: a callback may have asked for the end."""
        return replace(self, stopped="a callback asked for it") if stage.stopping else self

    def under(self, config: PPOConfig, changed: set[str]) -> PPOState:
        """The state with which a fork begins: what was measured under other settings no longer counts."""
        if changed <= {"ppo.iterations"}:
            return self
        coef = config.kl.coef if changed & {"ppo.kl.coef", "ppo.kl.kind"} else self.kl_coef
        return PPOState(iteration=self.iteration, kl_coef=coef)


def train_ppo(
    config: PPOConfig,
    engines: PPOEngines,
    prompts: Sequence[PromptItem],
    held_out: HeldOut,
    *,
    mixture: Mixture,
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Maximise E[score] - kl_coef x KL to the reference; publish `model/`. Returns the stage's summary.

    `mixture` says how often each of the prompts is met.
    """
    state = _restore(config, stage, engines.learner) or _begin(config, held_out, engines, stage, console)
    while state.iteration < config.iterations and not state.stopped:
        started = time.perf_counter()
        batch, key = _next_prompts(prompts, mixture, config.rollout_batch, state.iteration, draws)
        rollout = collect_rollout(engines.actors, batch, config.sampling, key)
        sampled = time.perf_counter()
        require_ends(rollout.samples.ended, config.max_truncated, config.sampling.max_new_tokens)
        rewards = shape(rollout, state.kl_coef, config)
        advantages = estimate_advantages(rewards, rollout, config.advantage)
        returns = advantages + rollout.values
        if config.advantage.whiten:
            advantages = whiten(advantages, rollout.response_mask)
        tally = update(config.update, engines, rollout, advantages, returns, state.iteration, draws)

        metrics = rollout_metrics(rollout, rewards, returns) | tally.means() | {"objective/kl_coef": state.kl_coef}
        metrics |= _times(started, sampled, rollout)
        streak = watch_kl_sign(metrics, state.negative_kl_streak, console.say)
        watch_variation(rollout.scores.total, state.iteration, console.say)
        state = scheduled = state.next(metrics, config.kl, config.rollout_batch, streak)
        if state.iteration % config.evaluate.every == 0 or state.iteration == config.iterations:
            metrics |= _evaluate(held_out, state.iteration, stage, console)
            state = state.judged(metrics["eval/objective"], config, metrics["eval/kl"])
            scheduled = state if state.iteration % config.evaluate.every == 0 else scheduled
        stage.log(state.iteration, metrics)
        console.progress(stage.name, state.iteration, config.iterations, _shown(metrics))
        state, scheduled = state.heeding(stage), scheduled.heeding(stage)
        _checkpoint_if_due(config, stage, engines.learner, state, scheduled)
    if state.stopped:
        console.say(f"ppo: ended after {state.iteration} iterations: {state.stopped}.")
    return _publish(config, engines, state, stage)


def _next_prompts(
    prompts: Sequence[PromptItem], mixture: Mixture, size: int, iteration: int, draws: Draws
) -> tuple[list[PromptItem], DrawKey]:
    """The iteration's prompts, and the name of its random numbers: both functions of its number alone."""
    first = iteration * size
    rows = mixture.batch(draws, "prompts", batch=size, start=first)
    return [prompts[row] for row in rows], DrawKey(draws, "rollout", iteration, first_sample=first)


def shape(rollout: Rollout, kl_coef: float, config: PPOConfig) -> Tensor:
    """Rewards [B, T]: the transformed score on the last token, minus the leash's price on every token (math.md §4)."""
    return shape_rewards(
        transform_scores(rollout.scores.total, clip=config.score_clip, whiten=config.score_whiten),
        k1(rollout.logprobs, rollout.ref_logprobs),
        rollout.response_mask,
        rollout.samples.ended,
        kl_coef=kl_coef,
        eos_penalty=config.eos_penalty,
    )


def estimate_advantages(rewards: Tensor, rollout: Rollout, config: AdvantageConfig) -> Tensor:
    """Advantages [B, T] by the configured estimator (math.md §5)."""
    if config.kind == "monte_carlo":
        return monte_carlo(rewards, rollout.values, rollout.response_mask, gamma=config.gamma)
    return gae(rewards, rollout.values, rollout.response_mask, gamma=config.gamma, lam=config.lam)


def update(
    config: UpdateConfig,
    engines: PPOEngines,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    iteration: int,
    draws: Draws,
) -> Tally:
    """Epochs x minibatches x micro-batches of the clipped loss on one rollout; its statistics.

    Raises UserError before the first weight moves if the ratio to the policy that sampled is not 1.
    """
    tally = Tally()
    size = len(rollout.sequences) // config.minibatches
    for epoch in range(config.epochs):
        order = draws.permutation("minibatches", len(rollout.sequences), iteration=iteration * config.epochs + epoch)
        in_epoch = Tally()
        for start in range(0, len(order), size):
            batches = policy_batches(rollout, advantages, returns, order[start : start + size].tolist(), config)
            first = epoch == 0 and start == 0
            check = (
                (lambda seen: require_unit_ratio(seen, rollout, engines.explain_ratio, engines.ratio_tolerance))
                if first
                else None
            )
            in_epoch.merge(engines.learner.step(batches, check))
            if first:
                tally.add("ppo/policy/first_ratio_gap", in_epoch.extremes["ppo/policy/ratio_gap"])
        tally.merge(in_epoch)
        if config.stop_at_kl is not None and in_epoch.means()["ppo/policy/approxkl"] > config.stop_at_kl:
            break
    tally.add("ppo/epochs", epoch + 1)
    return tally


def policy_batches(
    rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Sequence[int], config: UpdateConfig
) -> list[PolicyBatch]:
    """The minibatch of the given rows, cut into micro-batches of like length."""
    sequences = rollout.sequences
    lengths = sequences.lengths.tolist()
    groups = cut_by_tokens([lengths[row] for row in rows], config.token_budget)
    batches = []
    for group in groups:
        part = [rows[index] for index in group]
        logprobs, values, advantage, target = (
            take_tokens(field, sequences, part) for field in (rollout.logprobs, rollout.values, advantages, returns)
        )
        importance = None
        if rollout.sampler_logprobs is not None:
            sampled = take_tokens(rollout.sampler_logprobs, sequences, part)
            mask = take_tokens(rollout.response_mask, sequences, part)
            importance = importance_weights(logprobs, sampled, mask, cap=config.importance_cap)
        batches.append(PolicyBatch(take(sequences, part), logprobs, values, advantage, target, importance))
    return batches


def _begin(config: PPOConfig, held_out: HeldOut, engines: PPOEngines, stage: StageRun, console: Console) -> PPOState:
    """The state before the first iteration; the start's evaluation is line 0 of the metrics, and may stay the best."""
    metrics = _evaluate(held_out, 0, stage, console)
    stage.log(0, metrics)
    state = PPOState(iteration=0, kl_coef=config.kl.coef).judged(metrics["eval/objective"], config, metrics["eval/kl"])
    state = state.heeding(stage)
    _checkpoint_if_due(config, stage, engines.learner, state, state)
    return state


def _evaluate(held_out: HeldOut, iteration: int, stage: StageRun, console: Console) -> dict[str, float]:
    started = time.perf_counter()
    metrics = held_out.evaluate(iteration, stage, console)
    return metrics | {"time/evaluation_seconds": time.perf_counter() - started}


def _restore(config: PPOConfig, stage: StageRun, learner: Learner[PolicyBatch]) -> PPOState | None:
    """The state of the last checkpoint; where the run goes on beyond it, as a run that long from the start had it."""
    snapshot = stage.restore()
    if snapshot is None:
        return None
    if snapshot.step > config.iterations:
        raise UserError(
            f"ppo: step {snapshot.step} is past ppo.iterations {config.iterations}; raise it, or fork earlier"
        )
    learner.load(snapshot.tensors, snapshot.state["optimiser_steps"])
    state = PPOState(**snapshot.state["ppo" if snapshot.step == config.iterations else "scheduled"])
    if stage.fork is not None and stage.fork.step == snapshot.step:
        state = state.under(config, stage.fork.changed_keys)
    if state.best_iteration is not None and not stage.keeps(state.best_iteration):  # it was not there to be forked
        state = replace(state, best_iteration=None, best_objective=None)
    return state


def _checkpoint_if_due(
    config: PPOConfig, stage: StageRun, learner: Learner[PolicyBatch], state: PPOState, scheduled: PPOState
) -> None:
    """`scheduled` is the state without an evaluation that only the end of the run asked for."""
    ends = state.iteration == config.iterations or bool(state.stopped)
    if ends or state.best_iteration == state.iteration or state.iteration % config.checkpoint_every == 0:
        content = {"ppo": asdict(state), "scheduled": asdict(scheduled), "optimiser_steps": learner.steps}
        stage.checkpoint(state.iteration, learner.tensors(), content, best=scheduled.best_iteration)


def _publish(config: PPOConfig, engines: PPOEngines, state: PPOState, stage: StageRun) -> dict[str, Any]:
    taken = state.iteration
    if config.final == "best" and state.best_iteration is not None:
        taken = state.best_iteration
        best = stage.snapshot(taken)
        engines.learner.load(best.tensors, best.state["optimiser_steps"])
    engines.export(stage.work("model"))
    stage.publish("model")
    return {
        "iterations": state.iteration,
        "stopped": state.stopped or None,
        "kl_coef": state.kl_coef,
        "best_iteration": state.best_iteration,
        "best_objective": state.best_objective,
        "model_of_iteration": taken,
    }


def _times(started: float, sampled: float, rollout: Rollout) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "time/rollout_seconds": sampled - started,
        "time/update_seconds": now - sampled,
        "time/tokens_per_second": rollout.sequences.weight / (now - started),
    }


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    return {
        "score": metrics["objective/scores"],
        "KL": metrics["objective/kl"],
        "length": metrics["objective/length"],
        "tokens/s": metrics["time/tokens_per_second"],
    }
