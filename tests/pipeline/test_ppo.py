"""PPO as a whole: it finds the known optimum, and what it decides survives an interruption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from keel.engines.base import Scorer
from keel.engines.sampler import CachedSampler
from keel.errors import UserError
from keel.functional.closed_form import objective, optimal_policy
from keel.instruments.fits import held_out_fits
from keel.pipeline.ppo_state import PPOState, planned_coef
from keel.records import Samples, Scores
from keel.runs.files import write_json
from keel.runs.layout import FORKED, METRICS
from keel.runs.metrics import read_lines
from tests.checkpoints import weights_in
from tests.pipeline.support import (
    Heard,
    StopAt,
    TableScorer,
    all_responses,
    begin_stage,
    exact_distribution,
    samples_of,
    toy_policy,
)
from tests.pipeline.toy_ppo import Toy, toy, toy_config, toy_scores

LEARNING: dict[str, Any] = {
    "iterations": 60,
    "rollout_batch": 128,
    "update": {"schedule": "cosine"},
    "evaluate": {"every": 1000},
    "checkpoint_every": 1000,
}


def optimum_by_hand(reference: Tensor, scores: list[float], beta: float) -> tuple[list[float], float]:
    """pi* and J(pi*), a response at a time (math.md §2)."""
    weights = [p * math.exp(r / beta) for p, r in zip(reference.tolist(), scores, strict=True)]
    return [weight / sum(weights) for weight in weights], beta * math.log(sum(weights))


@pytest.mark.parametrize("longest", [1, 2])
def test_on_the_leash_ppo_finds_the_known_optimum(longest: int, tmp_path: Path) -> None:
    scores = list(toy_scores(longest).values())
    start = exact_distribution(toy_policy(), longest)
    assert float(start.sum()) == pytest.approx(1.0, abs=1e-5)
    best, value = optimum_by_hand(start, scores, beta=0.5)
    rewards = torch.tensor(scores, dtype=torch.float64)
    assert optimal_policy(start, rewards, 0.5).tolist() == pytest.approx(best)

    learned = toy(toy_config(sampling={"max_new_tokens": longest}, **LEARNING))
    learned.train(begin_stage(tmp_path, "ppo"))
    end = exact_distribution(learned.policy, longest)
    assert value - float(objective(start, start, rewards, 0.5)) > 0.15  # there was something to learn
    assert -1e-6 < value - float(objective(end, start, rewards, 0.5)) < 0.02
    assert 0.5 * float((end - torch.tensor(best)).abs().sum()) < 0.05  # total variation
    critic = learned.engines.actors.policy.values(samples_of([(4,)]).sequences)
    assert float(critic[0, 0]) == pytest.approx(value, abs=0.1)  # at the optimum V(s_1) is the soft value: J(pi*)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"advantage": {"kind": "monte_carlo"}, "update": {"value_clip": None}}, 0.02),
        ({"advantage": {"whiten": False}}, 0.02),
        ({"update": {"loss": "dpo"}}, 0.05),  # its labels are draws, whose noise does not end
    ],
)
def test_other_algorithms_reach_the_same_optimum(settings: dict[str, Any], bound: float, tmp_path: Path) -> None:
    rewards = torch.tensor(list(toy_scores(2).values()), dtype=torch.float64)
    update = {"schedule": "cosine", **settings.get("update", {})}
    config = toy_config(**{**LEARNING, **settings, "update": update})
    learned = toy(config)
    learned.train(begin_stage(tmp_path, "ppo"))
    start, end = exact_distribution(toy_policy(), 2), exact_distribution(learned.policy, 2)
    _, value = optimum_by_hand(start, rewards.tolist(), beta=0.5)
    assert value - float(objective(end, start, rewards, 0.5)) < bound


def test_without_a_leash_the_best_action_takes_all(tmp_path: Path) -> None:
    learned = toy(toy_config(kl={"coef": 0.0}, **LEARNING))
    learned.train(begin_stage(tmp_path, "ppo"))
    best = all_responses(2).index((4, 0))  # 1 for its first word, 1/2 for its end
    assert float(exact_distribution(toy_policy(), 2)[best]) < 0.1
    assert float(exact_distribution(learned.policy, 2)[best]) > 0.9


def test_at_the_optimum_of_the_temperature_nothing_is_left(tmp_path: Path) -> None:
    """The sampling temperature is that of policy and reference alike, so the optimum tilts the tempered reference."""
    learned = toy(toy_config(sampling={"temperature": 0.5}, **LEARNING))
    learned.train(begin_stage(tmp_path, "ppo"))
    rewards = torch.tensor(list(toy_scores(2).values()), dtype=torch.float64)
    start = exact_distribution(toy_policy(), 2, temperature=0.5)
    _, value = optimum_by_hand(start, rewards.tolist(), beta=0.5)
    end = exact_distribution(learned.policy, 2, temperature=0.5)
    assert value - float(objective(end, start, rewards, 0.5)) < 0.02


def test_before_any_update_ratio_is_one_and_kl_zero(tmp_path: Path) -> None:
    toy(toy_config()).train(begin_stage(tmp_path, "ppo"))
    zero, first, *later = read_lines(tmp_path / "ppo" / "metrics.jsonl")
    assert all(name.startswith("eval/") for name in set(zero) - {"iteration", "time/evaluation_seconds"})
    assert zero["eval/kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["ppo/policy/first_ratio_gap"] < 1e-5
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["objective/rewards"] == pytest.approx(first["objective/scores"], abs=1e-6)
    assert all(line["ppo/policy/first_ratio_gap"] < 1e-5 for line in later)


def test_a_sampler_that_ignores_the_temperature_is_found_out(tmp_path: Path) -> None:
    planted = toy(toy_config(sampling={"temperature": 0.5}))
    sampler = planted.engines.actors.sampler
    assert isinstance(sampler, CachedSampler)
    real = sampler.sample

    def at_one(prompts: Any, config: Any, key: Any) -> Any:
        return real(prompts, config.model_copy(update={"temperature": 1.0}), key)

    sampler.sample = at_one  # type: ignore[method-assign]  # the fault that the check must find
    before = {name: tensor.clone() for name, tensor in planted.policy.state_dict().items()}
    with pytest.raises(UserError, match=r"ratio pi/pi_old is off by .* Cause: temperature"):
        planted.train(begin_stage(tmp_path, "ppo"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in planted.policy.state_dict().items())


def test_a_policy_that_never_ends_is_stopped_before_it_learns(tmp_path: Path) -> None:
    run = toy(toy_config(max_truncated=0.1))
    with pytest.raises(UserError, match=r"never end within 2 tokens \(ppo.max_truncated is 0.1\)"):
        run.train(begin_stage(tmp_path, "ppo"))
    assert run.learner.steps == 0


# --- the state ---


def test_the_leash_adapts_by_hand() -> None:
    """math.md §8: beta 0.15, target 6, horizon 10000, KL 12, n 512."""
    config = toy_config(kl={"kind": "adaptive", "coef": 0.15, "target": 6.0, "horizon": 10_000}).kl
    state = PPOState(iteration=7, kl_coef=0.15)
    far = state.next(12.0, config, 512, streak=1)
    assert far.kl_coef == pytest.approx(0.15 * (1 + 0.2 * 0.0512), rel=1e-12)
    assert (far.iteration, far.negative_kl_streak) == (8, 1)
    near = state.next(5.4, config, 512, streak=0)  # 10 % below its target
    assert near.kl_coef == pytest.approx(0.15 * (1 - 0.1 * 0.0512), rel=1e-12)
    assert state.next(12.0, toy_config().kl, 512, streak=0).kl_coef == 0.5  # fixed: as the recipe has it


def test_the_price_of_a_constraint_and_an_annealed_one() -> None:
    constraint = toy_config(kl={"kind": "constraint", "coef": 0.2, "target": 2.0, "dual_lr": 0.5, "min_coef": 0.19}).kl
    state = PPOState(iteration=0, kl_coef=planned_coef(constraint, 0))
    assert state.next(3.0, constraint, 32, streak=0).kl_coef == pytest.approx(0.2 * math.exp(0.25))
    assert state.next(0.0, constraint, 32, streak=0).kl_coef == 0.19
    annealed = toy_config(kl={"coef": 0.01, "anneal_from": 1.0, "anneal_over": 2}).kl
    state = PPOState(iteration=0, kl_coef=planned_coef(annealed, 0))
    coefs = []
    for _ in range(4):
        coefs.append(state.kl_coef)
        state = state.next(3.0, annealed, 32, streak=0)
    assert coefs == pytest.approx([1.0, 0.1, 0.01, 0.01])
    cheaper = toy_config(kl={"coef": 0.04, "anneal_from": 1.0, "anneal_over": 2})
    forked = PPOState(iteration=1, kl_coef=0.1).under(cheaper, {"ppo.kl.coef"})
    assert forked.kl_coef == pytest.approx(0.2)  # half-way down the new way, not at its beginning


def test_the_running_scale_is_the_spread_of_all_scores_so_far() -> None:
    config = toy_config(shaping={"running_scale": True})
    state = PPOState(iteration=0, kl_coef=0.1)
    assert state.score_scale == 1.0
    state = state.seeing(torch.tensor([3.0, 3.0]), config)
    assert state.score_scale == 1.0  # nothing varies yet
    state = state.seeing(torch.tensor([1.0, 5.0]), config)
    assert state.score_scale == pytest.approx(math.sqrt(8 / 4))
    assert PPOState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert state.seeing(torch.tensor([9.0]), toy_config()) == state


ALGORITHMS: dict[str, dict[str, Any]] = {
    "a2c": {"update": {"loss": "policy_gradient", "epochs": 1}},
    "rloo, leash in the loss": {"advantage": {"kind": "rloo"}, "kl": {"place": "loss"}, "critic": "none"},
    "gspo": {"advantage": {"kind": "rloo"}, "update": {"ratio": "gspo"}, "critic": "none"},
    "grpo, running scale": {"advantage": {"kind": "grpo"}, "critic": "none", "shaping": {"running_scale": True}},
    "constraint": {"kl": {"kind": "constraint", "target": 0.2, "dual_lr": 0.5}},
    "online dpo": {"update": {"loss": "dpo", "minibatches": 2}},
    "best of n": {"advantage": {"kind": "best_of_n"}, "update": {"loss": "policy_gradient", "epochs": 1}},
    "n_step, sequence_sum": {"advantage": {"kind": "n_step", "n": 1}, "update": {"reduction": "sequence_sum"}},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_kind_of_algorithm_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    settings = ALGORITHMS[name]
    whole, cut = toy(toy_config(**settings)), toy(toy_config(**settings, iterations=2))
    whole.train(begin_stage(tmp_path / "whole", "ppo"))
    cut.train(begin_stage(tmp_path / "cut", "ppo"))
    again = toy(toy_config(**settings))
    again.train(begin_stage(tmp_path / "cut", "ppo"))
    for weight, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(weight, other)
    lines = [read_lines(tmp_path / run / "ppo" / "metrics.jsonl") for run in ("whole", "cut")]
    kept = [[{k: v for k, v in line.items() if not k.startswith("time/")} for line in one] for one in lines]
    assert kept[0] == kept[1]
    assert any(line["objective/scores"] != kept[0][1]["objective/scores"] for line in kept[0][2:])


def test_the_adapted_coefficient_is_the_next_iterations(tmp_path: Path) -> None:
    config = toy_config(kl={"kind": "adaptive", "coef": 0.1, "target": 1.0, "horizon": 64}, iterations=3)
    summary = toy(config).train(begin_stage(tmp_path, "ppo"))
    lines = read_lines(tmp_path / "ppo" / "metrics.jsonl")[1:]
    coef = 0.1
    for line in lines:
        assert line["objective/kl_coef"] == pytest.approx(coef, rel=1e-12)
        error = max(-0.2, min(0.2, line["objective/kl"] / 1.0 - 1))
        coef *= 1 + error * 32 / 64
    assert summary["kl_coef"] == pytest.approx(coef, rel=1e-12)


def test_the_best_evaluation_is_remembered_and_patience_ends_the_run() -> None:
    config = toy_config(evaluate={"patience": 2})
    state = PPOState(iteration=1, kl_coef=0.5)
    for iteration, value in enumerate((0.1, 0.3, 0.3), start=1):
        state = PPOState(**{**vars(state), "iteration": iteration}).judged(judged(value), config)
    assert (state.best_iteration, state.best_objective, state.evaluations_since_best) == (2, 0.3, 1)  # a tie is no gain
    assert state.stopped == ""
    state = PPOState(**{**vars(state), "iteration": 4}).judged(judged(0.2), config)
    assert state.stopped == "the held-out objective has not improved for 2 evaluations"


def judged(objective: float) -> dict[str, float]:
    return {"eval/objective": objective, "eval/kl": 0.0}


UTILITIES = [0.0, 0.4, 0.7, 0.7, 0.6, 0.9, 0.2]  # a tie is no gain, and nobody waits for the sixth


def test_the_run_ends_past_the_peak_of_the_held_out_score_and_hands_it_on(tmp_path: Path) -> None:
    config = toy_config(iterations=6, evaluate={"utility": "keel.demo:polite", "stop_at_peak": 2})
    objectives = [float(iteration) for iteration in range(7)]  # rises to the end, and decides nothing
    summary = toy(config, objectives=objectives, utilities=UTILITIES).train(begin_stage(tmp_path, "ppo"))
    assert summary["stopped"] == "the held-out score was highest at iteration 2, 2 evaluations ago"
    assert (summary["iterations"], summary["model_of_iteration"]) == (4, 2)
    assert (summary["best_iteration"], summary["best_objective"]) == (2, 0.7)
    published = weights(tmp_path / "ppo" / "model" / "model.safetensors")
    assert same(published, weights_in(tmp_path / "ppo" / "checkpoints" / "step-00000002"))
    assert not same(published, weights_in(tmp_path / "ppo" / "checkpoints" / "step-00000004"))


@pytest.mark.parametrize("updates", [3, 5, 7])
def test_the_peak_is_found_again_after_an_interruption(updates: int, tmp_path: Path) -> None:
    """Cut in the second iteration, in the third, where the peak is behind it, and in the fourth, the last."""
    config = toy_config(iterations=6, evaluate={"utility": "keel.demo:polite", "stop_at_peak": 2})

    def run() -> Toy:
        return toy(config, objectives=[0.0] * 7, utilities=UTILITIES)

    alone = run().train(begin_stage(tmp_path / "alone", "ppo"))
    cut = run()
    _interrupt_after(cut, updates)
    with pytest.raises(KeyboardInterrupt):
        cut.train(begin_stage(tmp_path / "cut", "ppo"))
    assert run().train(begin_stage(tmp_path / "cut", "ppo")) == alone
    one, other = (weights(tmp_path / name / "ppo" / "model" / "model.safetensors") for name in ("alone", "cut"))
    assert same(one, other)
    logs = [read_lines(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("alone", "cut")]
    assert timeless(logs[0]) == timeless(logs[1])


def test_an_alarm_is_said_once_also_by_a_run_that_was_interrupted(tmp_path: Path) -> None:
    config = toy_config(iterations=6, evaluate={"alarm_after": 2})

    def run() -> Toy:
        utilities = [0.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
        return toy(config, objectives=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], utilities=utilities)

    console = Heard()
    run().train(begin_stage(tmp_path / "alone", "ppo"), console)
    (said,) = [text for text in console.said if "alarm" in text]
    assert said.startswith(
        "ppo: alarm: over-optimisation: the true utility peaked at iteration 1 and fell from 0.90 to 0.40, while the "
        "score rose on from 0.10 to 0.30; "
    )
    cut, heard = run(), Heard()
    _interrupt_after(cut, updates=5)  # two an iteration: the second of the row is yet to come
    with pytest.raises(KeyboardInterrupt):
        cut.train(begin_stage(tmp_path / "cut", "ppo"), heard)
    run().train(begin_stage(tmp_path / "cut", "ppo"), heard)
    assert [text for text in heard.said if "alarm" in text] == [said]


def test_a_judge_that_fails_once_loses_nothing(tmp_path: Path) -> None:
    """The third evaluation is not finite; what had been measured against the peak goes on where it was."""
    config, truth = toy_config(), TableScorer("truth", {key: -value for key, value in toy_scores(2).items()})

    def run(judge: Scorer) -> Toy:
        made = toy(config)
        return replace(made, held_out=replace(made.held_out, utility=truth, judge=judge))

    class FailsOnce(TableScorer):
        calls = 0

        def score(self, samples: Samples) -> Scores:
            self.calls += 1
            found = super().score(samples)
            return replace(found, total=found.total * math.nan) if self.calls == 3 else found

    alone = run(truth).train(begin_stage(tmp_path / "alone", "ppo"))
    with pytest.raises(UserError, match=r"evaluate\.judge \(judge\) gave \d of 4 held-out responses"):
        run(FailsOnce("judge", truth.table)).train(begin_stage(tmp_path / "cut", "ppo"))
    assert [row["iteration"] for row in read_lines(tmp_path / "cut" / "ppo" / "metrics.jsonl")] == [0, 1]
    assert run(truth).train(begin_stage(tmp_path / "cut", "ppo")) == alone
    logs = [read_lines(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("alone", "cut")]
    assert timeless(logs[0]) == timeless(logs[1])
    one, other = (tmp_path / name / "ppo" / "checkpoints" / "step-00000004" / "state.json" for name in ("alone", "cut"))
    assert one.read_bytes() == other.read_bytes()
    peaks = json.loads(one.read_text(encoding="utf-8"))["state"]["stage"]["ppo"]["peaks"]
    assert {key: len(peak["values"]) for key, peak in peaks.items()} == {"eval/utility": 4, "eval/judge": 4}


def test_a_fork_whose_utility_changed_is_held_against_its_own_peak(tmp_path: Path) -> None:
    """Ten times as much before the fork at 2; after it the peak is at 3, and all later evaluations lie below it."""
    config = toy_config(iterations=6, evaluate={"alarm_after": 2})
    utilities, objectives = [0.0, 5.0, 9.0, 0.9, 0.8, 0.5, 0.4], [0.1 * iteration for iteration in range(7)]
    stage = begin_stage(tmp_path, "ppo")
    cut = toy(config, objectives=objectives, utilities=utilities, held_out_kl=1.0)
    _interrupt_after(cut, updates=5)
    with pytest.raises(KeyboardInterrupt):
        cut.train(stage)
    fork = {
        "step": 2,
        "changed": ["ppo.evaluate.utility: a → b"],
        "source": "old/ppo",
        "sha256": "",
        "measured_since": 2,
    }
    write_json(stage.path / FORKED, fork)
    console = Heard()
    summary = toy(config, objectives=objectives, utilities=utilities, held_out_kl=1.0).train(stage, console)
    lines = read_lines(stage.path / METRICS)
    assert [line["eval/utility/peak"] for line in lines] == [0, 1, 2, 3, 3, 3, 3]
    (said,) = [text for text in console.said if "alarm" in text]
    assert "the true utility peaked at iteration 3 and fell from 0.90 to 0.50" in said
    assert said.endswith(" (counted from the fork at iteration 2; before it was measured otherwise).")
    assert summary["fits"] == held_out_fits(lines[3:]) != held_out_fits(lines)


def test_the_kl_budget_ends_the_run(tmp_path: Path) -> None:
    config = toy_config(kl={"budget": 2.0}, iterations=6)
    stopped = toy(config, objectives=[0.0] * 7, held_out_kl=0.75)  # 0.75, 1.5, 2.25
    summary = stopped.train(begin_stage(tmp_path, "ppo"))
    assert summary["iterations"] == 3
    assert summary["stopped"] == "the held-out KL of 2.25 nats a response reached kl.budget 2"
    assert [line["iteration"] for line in read_lines(tmp_path / "ppo" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_stopped_run_that_was_killed_before_its_end_does_not_go_on(tmp_path: Path) -> None:
    config = toy_config(kl={"budget": 2.0}, iterations=6, checkpoint_every=100)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy(config, objectives=[0.0] * 7, held_out_kl=0.75, export=killed).train(begin_stage(tmp_path, "ppo"))
    assert (tmp_path / "ppo" / "checkpoints" / "step-00000003").exists()  # nothing of it is done again
    again = toy(config, objectives=[0.0] * 7, held_out_kl=0.75)
    summary = again.train(begin_stage(tmp_path, "ppo"))
    assert (summary["iterations"], again.learner.steps) == (3, 3 * config.update.epochs)
    assert summary["stopped"]
    assert [line["iteration"] for line in read_lines(tmp_path / "ppo" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert same(weights(tmp_path / "ppo" / "model" / "model.safetensors"), again.policy.state_dict())


def test_a_run_that_is_ended_before_it_began_hands_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^ppo: nothing was trained, because a callback asked for it at once; no model"
    ):
        toy(toy_config()).train(begin_stage(tmp_path, "ppo", callbacks=[StopAt(0)]))
    assert not (tmp_path / "ppo" / "model").exists()


OBJECTIVES = [0.0, 0.1, 0.9, 0.3, 0.2, 0.1, 0.0]  # the second iteration is the best


@pytest.mark.parametrize(("final", "taken"), [("best", 2), ("last", 6)])
def test_the_best_checkpoint_is_kept_and_handed_on_if_asked(final: str, taken: int, tmp_path: Path) -> None:
    run = toy(toy_config(iterations=6, final=final), objectives=OBJECTIVES)
    summary = run.train(begin_stage(tmp_path, "ppo"))
    checkpoints = tmp_path / "ppo" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]
    assert (summary["best_iteration"], summary["model_of_iteration"]) == (2, taken)
    published = weights(tmp_path / "ppo" / "model" / "model.safetensors")
    saved = {step: weights_in(checkpoints / f"step-{step:08d}") for step in (2, 6)}
    assert same(published, saved[taken])
    assert not same(saved[2], saved[6])


def test_an_interrupted_run_ends_as_one_left_alone(tmp_path: Path) -> None:
    config = toy_config(kl={"kind": "adaptive", "coef": 0.2, "target": 0.5, "horizon": 64})
    toy(config).train(begin_stage(tmp_path / "alone", "ppo"))
    cut = toy(config)
    _interrupt_after(cut, updates=5)  # two an iteration: in the middle of the third
    with pytest.raises(KeyboardInterrupt):
        cut.train(begin_stage(tmp_path / "cut", "ppo"))
    toy(config).train(begin_stage(tmp_path / "cut", "ppo"))
    one, other = (weights(tmp_path / name / "ppo" / "model" / "model.safetensors") for name in ("alone", "cut"))
    assert same(one, other)
    logs = [read_lines(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("alone", "cut")]
    assert timeless(logs[0]) == timeless(logs[1])


def timeless_without_evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = timeless(read_lines(folder / "ppo" / "metrics.jsonl"))
    return [{key: value for key, value in line.items() if not key.startswith("eval/")} for line in lines]


@pytest.mark.parametrize(("stopped_at_first", "last", "best"), [(3, 0.2, 6), (3, 0.05, 2), (4, 0.05, 2), (5, 0.05, 2)])
def test_more_iterations_go_on_as_if_there_had_always_been_as_many(
    stopped_at_first: int, last: float, best: int, tmp_path: Path
) -> None:
    """Evaluations come every second iteration; the third is evaluated only because the short run ends with it."""
    same_in_both: dict[str, Any] = {
        "final": "best",
        "evaluate": {"every": 2, "patience": 3},
        "kl": {"kind": "adaptive", "coef": 0.2, "target": 0.5, "horizon": 64},
    }
    objectives = [0.0, 0.0, 0.1, 0.9, 0.05, 0.9, last]  # what counts in the short run alone looks best
    short = toy(toy_config(iterations=stopped_at_first, **same_in_both), objectives=objectives)
    summary = short.train(begin_stage(tmp_path / "extended", "ppo"))
    assert summary["best_iteration"] == {3: 3, 4: 2, 5: 5}[stopped_at_first]
    (tmp_path / "extended" / "ppo" / "model").rename(tmp_path / "short")
    summaries = {
        name: toy(toy_config(iterations=6, **same_in_both), objectives=objectives).train(
            begin_stage(tmp_path / name, "ppo")
        )
        for name in ("extended", "alone")
    }
    assert summaries["extended"] == summaries["alone"]
    assert summaries["alone"]["model_of_iteration"] == best
    one, other = (weights(tmp_path / name / "ppo" / "model" / "model.safetensors") for name in summaries)
    assert same(one, other)
    assert same(one, weights(tmp_path / "short" / "model.safetensors")) == (stopped_at_first == 4)
    logs = [timeless_without_evaluations(tmp_path / name) for name in summaries]
    assert logs[0] == logs[1]


def test_a_run_that_was_ended_by_patience_is_not_extended(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"evaluate": {"every": 1, "patience": 2}}
    for iterations in (4, 6):
        run = toy(toy_config(iterations=iterations, **settings), objectives=[0.0] * 7)
        assert run.train(begin_stage(tmp_path, "ppo"))["iterations"] == 2


def test_a_callback_ends_the_run_for_good(tmp_path: Path) -> None:
    console = Heard()
    config = toy_config(checkpoint_every=100)
    stage = begin_stage(tmp_path, "ppo", callbacks=[StopAt(2)])
    summary = toy(config).train(stage, console)
    assert (summary["iterations"], summary["stopped"]) == (2, "a callback asked for it")
    assert "ppo: ended after 2 iterations: a callback asked for it." in console.said
    assert toy(config).train(begin_stage(tmp_path, "ppo")) == summary


def _interrupt_after(run: Toy, updates: int) -> None:
    real = run.learner.step

    def step(batches: Any, check: Any = None) -> Any:
        if run.learner.steps == updates:
            raise KeyboardInterrupt
        return real(batches, check)

    run.learner.step = step  # type: ignore[method-assign]  # the process dies here


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
