"""Stage 4, PPO on the leash. Read `train_ppo` first: it is the algorithm, a line a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from keel.batching import cut_to_train, take, take_tokens
from keel.config.ppo import PPOConfig, UpdateConfig
from keel.config.sampling import SamplingConfig
from keel.data.mix import Mixture
from keel.engines.base import Ahead, DrawKey, Learner
from keel.errors import UserError
from keel.functional.masked import whiten
from keel.functional.policy import importance_weights
from keel.instruments.alarms import comparable
from keel.instruments.fits import held_out_fits
from keel.microbatches import tokens_of
from keel.pipeline.credit import baseline, estimate_advantages, label_pairs, leash_in_loss, shape
from keel.pipeline.faults import Guard
from keel.pipeline.guards import (
    RATIO_TOLERANCE,
    require_ends,
    require_near_servers,
    require_unit_ratio,
    watch_instruments,
    watch_kl_sign,
    watch_variation,
)
from keel.pipeline.heldout import HeldOut
from keel.pipeline.measures import rollout_metrics
from keel.pipeline.ppo_state import PPOState, planned_coef
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import Credit, Leash, PolicyBatch, PromptItem, Rollout
from keel.runs.console import Console
from keel.runs.fork import measured_since
from keel.runs.layout import METRICS
from keel.runs.metrics import read_lines
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
    ahead: Ahead | None = None  # the actors' sampler, where it draws the next batch while this one trains


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
    planned = partial(_planned, prompts, mixture, config, draws=draws)
    state = _restore(config, stage, engines) or _begin(config, held_out, engines, stage, console)
    guard = Guard(engines.learner, stage, console, limit=config.update.skip_faults, skipped=state.skipped)
    while state.iteration < config.iterations and not state.stopped:
        started = time.perf_counter()
        rollout = collect_rollout(engines.actors, *planned(state.iteration), per_prompt=config.per_prompt)
        sampled = time.perf_counter()
        require_near_servers(rollout, config.servers, engines.explain_ratio)
        require_ends(rollout.samples.ended, config.max_truncated, config.sampling.max_new_tokens)
        if engines.ahead is not None and state.iteration + 1 < config.iterations:
            engines.ahead.begin(*planned(state.iteration + 1), version=state.iteration)
        state = state.seeing(rollout.scores.total, config)
        rewards = shape(rollout, state.kl_coef, state.score_scale, config)
        if config.update.loss == "dpo":
            credit = label_pairs(rewards, rollout, state.kl_coef, state.iteration, draws)
        else:
            advantages = estimate_advantages(rewards, rollout, config.advantage)
            returns = advantages + baseline(rollout, config.advantage)
            if config.advantage.whitens:
                advantages = whiten(advantages, rollout.response_mask)
            credit = Credit(advantages, returns, leash_in_loss(rollout, state.kl_coef, config.kl))
        tally = update(config.update, engines, rollout, credit, state.iteration, draws, guard)
        state = replace(state, skipped=guard.skipped)

        metrics = rollout_metrics(rollout, rewards, None if config.critic == "none" else credit.returns) | tally.means()
        metrics |= {"objective/kl_coef": state.kl_coef} | _times(started, sampled, rollout)
        streak = watch_kl_sign(metrics, state.negative_kl_streak, console.say)
        watch_variation(rollout.scores.total, state.iteration, console.say)
        state = scheduled = state.next(metrics["objective/kl"], config.kl, config.rollout_batch, streak)
        if state.iteration % config.evaluate.every == 0 or state.iteration == config.iterations:
            evaluated, state = _evaluate(held_out, state, config, stage, console)
            metrics |= evaluated
            scheduled = state if state.iteration % config.evaluate.every == 0 else scheduled
        stage.log(state.iteration, metrics)
        if "eval/scores" in metrics:
            watch_instruments(stage, config.evaluate.alarm_after, console.say)
        console.progress(stage.name, state.iteration, config.iterations, _shown(metrics))
        state, scheduled = state.heeding(stage), scheduled.heeding(stage)
        _checkpoint_if_due(config, stage, engines, state, scheduled)
    if state.iteration == 0:
        raise UserError(f"ppo: nothing was trained, because {state.stopped} at once; no model is handed on")
    if state.stopped:
        console.say(f"ppo: ended after {state.iteration} iterations: {state.stopped}.")
    return _publish(config, engines, state, stage)


def _planned(
    prompts: Sequence[PromptItem], mixture: Mixture, config: PPOConfig, iteration: int, draws: Draws
) -> tuple[list[PromptItem], SamplingConfig, DrawKey]:
    """The iteration's prompts, each as often as it is answered, how it is, and the name of its random numbers.

    All are functions of the iteration's number alone.
    """
    size = config.rollout_batch // config.per_prompt
    rows = mixture.batch(draws, "prompts", batch=size, start=iteration * size)
    key = DrawKey(draws, "rollout", iteration, first_sample=iteration * config.rollout_batch)
    return [prompts[row] for row in rows for _ in range(config.per_prompt)], config.sampling, key


def update(
    config: UpdateConfig,
    engines: PPOEngines,
    rollout: Rollout,
    credit: Credit,
    iteration: int,
    draws: Draws,
    guard: Guard[PolicyBatch] | None = None,
) -> Tally:
    """Epochs x minibatches x micro-batches of the loss on one rollout; its statistics.

    With a `guard` a minibatch may be left out.

    Raises UserError before the first weight moves if the ratio to the policy that sampled is not 1.
    """
    tally = Tally()
    step = engines.learner.step if guard is None else partial(guard.step, known=partial(_known, rollout))
    units = _units(rollout, credit)
    moved = False
    size = len(units) // config.minibatches
    for epoch in range(config.epochs):
        order = draws.permutation("minibatches", len(units), iteration=iteration * config.epochs + epoch)
        in_epoch = Tally()
        for start in range(0, len(order), size):
            chosen = [units[number] for number in order[start : start + size].tolist()]
            batches = policy_batches(rollout, credit, chosen, config)
            check = (
                None
                if moved
                else (lambda seen: require_unit_ratio(seen, rollout, engines.explain_ratio, engines.ratio_tolerance))
            )
            in_epoch.merge(step(batches, check=check))
            gap = in_epoch.extremes.get("ppo/policy/ratio_gap")
            if not moved and gap is not None:  # else what came first was left out
                tally.add("ppo/policy/first_ratio_gap", gap)
                moved = True
        tally.merge(in_epoch)
        if config.stop_at_kl is not None and in_epoch.means().get("ppo/policy/approxkl", 0.0) > config.stop_at_kl:
            break
    tally.add("ppo/epochs", epoch + 1)
    return tally


def _known(rollout: Rollout, ids: tuple[int, ...]) -> str:
    """Which responses of the rollout have these ids, prompt included: more than one where they are alike."""
    rows = [row for row in range(len(rollout.sequences)) if tokens_of(rollout.sequences, row) == ids]
    which = f"row {rows[0]}" if len(rows) == 1 else f"one of rows {', '.join(map(str, rows))}"
    return f"{which} of the rollout, score {float(rollout.scores.total[rows[0]]):.4g}" if rows else ""


def _units(rollout: Rollout, credit: Credit) -> list[list[int]]:
    """The rows that stay together: each alone, or in pairs, the preferred one first."""
    if credit.pairs is not None:
        rows: list[list[int]] = credit.pairs.tolist()
        return rows
    return [[row] for row in range(len(rollout.sequences))]


def policy_batches(
    rollout: Rollout, credit: Credit, units: Sequence[Sequence[int]], config: UpdateConfig
) -> list[PolicyBatch]:
    """The minibatch of the given rows, cut into micro-batches of like length; the rows of a unit stay together."""
    sequences = rollout.sequences
    lengths = sequences.lengths.tolist()
    longest = [max(lengths[row] for row in unit) for unit in units]
    batches = []
    for group in cut_to_train(longest, config.token_budget, [len(unit) for unit in units]):
        part = [row for index in group for row in units[index]]
        logprobs, values, advantages, returns = (
            take_tokens(field, sequences, part)
            for field in (rollout.logprobs, rollout.values, credit.advantages, credit.returns)
        )
        leash = credit.leash
        if leash is not None:
            ref_logprobs = take_tokens(leash.ref_logprobs, sequences, part)
            leash = Leash(leash.coef, ref_logprobs, leash.baseline[torch.tensor(part)])
        importance = None
        if rollout.sampler_logprobs is not None:
            sampled = take_tokens(rollout.sampler_logprobs, sequences, part)
            mask = take_tokens(rollout.response_mask, sequences, part)
            importance = importance_weights(logprobs, sampled, mask, cap=config.importance_cap, ratio=config.ratio)
        taught = (take(sequences, part), logprobs, values, advantages, returns, importance, leash)
        batches.append(PolicyBatch(*taught, paired=credit.pairs is not None))
    return batches


def _begin(config: PPOConfig, held_out: HeldOut, engines: PPOEngines, stage: StageRun, console: Console) -> PPOState:
    """The state before the first iteration; the start's evaluation is line 0 of the metrics, and may stay the best."""
    state = PPOState(iteration=0, kl_coef=planned_coef(config.kl, 0))
    metrics, state = _evaluate(held_out, state, config, stage, console)
    stage.log(0, metrics)
    state = state.heeding(stage)
    _checkpoint_if_due(config, stage, engines, state, state)
    return state


def _evaluate(
    held_out: HeldOut, state: PPOState, config: PPOConfig, stage: StageRun, console: Console
) -> tuple[dict[str, float], PPOState]:
    started = time.perf_counter()
    metrics, peaks = held_out.evaluate(state.iteration, stage, console, state.peaks)
    metrics["time/evaluation_seconds"] = time.perf_counter() - started
    return metrics, replace(state, peaks=peaks).judged(metrics, config)


def _restore(config: PPOConfig, stage: StageRun, engines: PPOEngines) -> PPOState | None:
    """The state of the last checkpoint; where the run goes on beyond it, as a run that long from the start had it."""
    snapshot = stage.restore()
    if snapshot is None:
        return None
    if snapshot.step > config.iterations:
        raise UserError(
            f"ppo: step {snapshot.step} is past ppo.iterations {config.iterations}; raise it, or fork earlier"
        )
    engines.learner.read(snapshot.path, snapshot.state["optimiser_steps"])
    kept = snapshot.state.get("ahead")
    if engines.ahead is not None and kept is not None:
        engines.ahead.restore(kept)
    state = PPOState.from_dict(snapshot.state["ppo" if snapshot.step == config.iterations else "scheduled"])
    if stage.fork is not None and stage.fork.step == snapshot.step:
        state = state.under(config, stage.fork.changed_keys)
    if state.best_iteration is not None and not stage.keeps(state.best_iteration):  # it was not there to be forked
        state = replace(state, best_iteration=None, best_objective=None)
    return state


def _checkpoint_if_due(
    config: PPOConfig, stage: StageRun, engines: PPOEngines, state: PPOState, scheduled: PPOState
) -> None:
    """`scheduled` is the state without an evaluation that only the end of the run asked for.

    The run is left here if the process was told to end.
    """
    leaving = stage.leaving
    ends = state.iteration == config.iterations or bool(state.stopped) or leaving
    if ends or state.best_iteration == state.iteration or state.iteration % config.checkpoint_every == 0:
        learner = engines.learner
        content = {"ppo": state.to_dict(), "scheduled": scheduled.to_dict(), "optimiser_steps": learner.steps}
        if engines.ahead is not None:
            content["ahead"] = engines.ahead.kept()
        stage.checkpoint(state.iteration, content, learner.write, best=scheduled.best_iteration)
    if leaving:
        stage.leave(state.iteration)


def _publish(config: PPOConfig, engines: PPOEngines, state: PPOState, stage: StageRun) -> dict[str, Any]:
    taken = state.iteration
    if config.hands_on_best and state.best_iteration is not None:
        taken = state.best_iteration
        best = stage.snapshot(taken)
        engines.learner.read(best.path, best.state["optimiser_steps"])
    engines.export(stage.work("model"))
    stage.publish("model")
    evaluated = [
        row
        for row in read_lines(stage.path / METRICS)
        if row["iteration"] % config.evaluate.every == 0 or row["iteration"] == state.iteration
    ]
    return {
        "iterations": state.iteration,
        "stopped": state.stopped or None,
        "kl_coef": state.kl_coef,
        "best_iteration": state.best_iteration,
        "best_objective": state.best_objective,
        "model_of_iteration": taken,
        "fits": held_out_fits(comparable(evaluated, measured_since(stage.path))),
    }


def _times(started: float, sampled: float, rollout: Rollout) -> dict[str, float]:
    now = time.perf_counter()
    return {
        **rollout.seconds,
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
