"""The update of one rollout: every row once an epoch, and nothing moves before the ratio was checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.config.ppo import UpdateConfig
from keel.data.mix import Mixture
from keel.engines.base import DrawKey
from keel.errors import UserError
from keel.functional.masked import whiten
from keel.pipeline.credit import baseline, estimate_advantages, label_pairs, leash_in_loss, shape
from keel.pipeline.measures import rollout_metrics, share_alike
from keel.pipeline.ppo import PPOEngines, _planned, policy_batches, update
from keel.pipeline.rollouts import Actors, collect_rollout
from keel.records import Credit, Leash, PolicyBatch, Rollout
from keel.tally import Tally
from tests.pipeline.support import EOS, PROMPT
from tests.pipeline.toy_ppo import DRAWS, Toy, toy, toy_config, toy_scores


@dataclass
class CountingLearner:
    """Notes what it is given; `approxkl` is what each step reports."""

    approxkl: float = 0.0
    ratio_gap: float = 0.0
    minibatches: list[list[PolicyBatch]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.minibatches)

    def step(self, batches: Sequence[PolicyBatch], check: Callable[[Tally], None] | None = None) -> Tally:
        tally = Tally()
        tokens = sum(batch.weight for batch in batches)
        tally.add("ppo/policy/approxkl", self.approxkl * tokens, tokens)
        tally.extreme("ppo/policy/ratio_gap", self.ratio_gap if not self.minibatches else 0.7)
        if check is not None:
            check(tally)
        self.minibatches.append(list(batches))
        return tally

    def measure(self, batches: Sequence[PolicyBatch]) -> Tally:
        raise NotImplementedError

    def skip(self) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        raise NotImplementedError

    def read(self, folder: Path, steps: int) -> None:
        raise NotImplementedError


def rollout_of(run: Toy) -> Rollout:
    key = DrawKey(DRAWS, "rollout", iteration=0)
    return collect_rollout(run.engines.actors, [PROMPT] * run.config.rollout_batch, run.config.sampling, key)


def counted(learner: CountingLearner, **config: Any) -> tuple[Rollout, Tally]:
    run = toy(toy_config(**config))
    rollout = rollout_of(run)
    numbered = torch.arange(len(rollout.sequences)).float()[:, None].expand_as(rollout.values)  # names each row
    engines = PPOEngines(run.engines.actors, learner, run.engines.explain_ratio, run.engines.export)
    tally = update(run.config.update, engines, rollout, Credit(numbered, numbered + 0.5), 0, DRAWS)
    return rollout, tally


def test_every_row_is_used_once_an_epoch() -> None:
    learner = CountingLearner()
    rollout, tally = counted(learner, rollout_batch=12, update={"epochs": 3, "minibatches": 4, "token_budget": 9})
    assert learner.steps == 3 * 4
    assert tally.means()["ppo/epochs"] == 3
    rows = [[int(row) for batch in part for row in batch.advantages[:, 0]] for part in learner.minibatches]
    assert [len(part) for part in rows] == [3] * 12
    epochs = [[row for part in rows[start : start + 4] for row in part] for start in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert epochs[0] != epochs[1]  # in an order of its own
    batches = [batch for part in learner.minibatches for batch in part]
    assert max(batch.sequences.tokens.numel() for batch in batches) <= 9
    assert len(batches) > 12  # three rows of up to four tokens do not fit into nine
    for batch in batches:
        for index, row in enumerate(batch.advantages[:, 0].long().tolist()):
            length = int(rollout.sequences.response_lengths[row])
            assert int(batch.sequences.response_lengths[index]) == length
            assert torch.equal(batch.old_logprobs[index, :length], rollout.logprobs[row, :length])
            assert float(batch.returns[index, 0]) == row + 0.5


def test_the_order_is_a_function_of_iteration_and_epoch() -> None:
    run = toy(toy_config(update={"minibatches": 4}))
    rollout = rollout_of(run)
    zeros = torch.zeros_like(rollout.values)
    orders = []
    for iteration in (0, 0, 1):
        learner = CountingLearner()
        engines = PPOEngines(run.engines.actors, learner, run.engines.explain_ratio, run.engines.export)
        update(run.config.update, engines, rollout, Credit(zeros, zeros), iteration, DRAWS)
        orders.append([batch.sequences.tokens.tolist() for part in learner.minibatches for batch in part])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_epochs_end_where_the_policy_has_moved_too_far() -> None:
    far, near = CountingLearner(approxkl=0.02), CountingLearner(approxkl=0.02)
    _, tally = counted(far, update={"epochs": 4, "minibatches": 2, "stop_at_kl": 0.01})
    assert (far.steps, tally.means()["ppo/epochs"]) == (2, 1)  # the epoch that is under way is finished
    _, tally = counted(near, update={"epochs": 4, "minibatches": 2, "stop_at_kl": 0.03})
    assert (near.steps, tally.means()["ppo/epochs"]) == (8, 4)


def test_the_ratio_is_checked_on_the_first_minibatch_alone() -> None:
    _, tally = counted(CountingLearner(ratio_gap=1e-4), update={"epochs": 2, "minibatches": 2})
    assert tally.means()["ppo/policy/first_ratio_gap"] == 1e-4
    assert tally.means()["ppo/policy/ratio_gap"] == 0.7  # later ones may differ: that is learning
    learner = CountingLearner(ratio_gap=1.1e-3)
    with pytest.raises(UserError, match=r"off by 0.0011"):
        counted(learner)
    assert learner.steps == 0


def test_a_wrong_logprob_stops_before_the_first_weight_moves() -> None:
    run = toy(toy_config(update={"minibatches": 1}))
    rollout = rollout_of(run)
    wrong = rollout.logprobs.clone()
    wrong[5, 0] -= 0.1
    taught = Credit(torch.ones_like(wrong), torch.zeros_like(wrong))
    before = {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}
    with pytest.raises(UserError) as raised:
        update(run.config.update, run.engines, replace(rollout, logprobs=wrong), taught, 0, DRAWS)
    assert "before any update the ratio pi/pi_old is off by 0.105" in str(raised.value)  # e^0.1 - 1
    assert "other weights" in str(raised.value)
    assert run.learner.steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.policy.state_dict().items())
    assert all(parameter.grad is None for parameter in run.policy.parameters())
    update(run.config.update, run.engines, rollout, taught, 0, DRAWS)  # the right ones pass
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.policy.state_dict().items())


def test_the_cut_into_microbatches_changes_nothing() -> None:
    ends = []
    for budget in (6, 100_000):
        run = toy(toy_config(update={"epochs": 2, "minibatches": 2, "token_budget": budget}))
        rollout = rollout_of(run)
        rewards = shape(rollout, 0.5, 1.0, run.config)
        advantages = estimate_advantages(rewards, rollout, run.config.advantage)
        tally = update(run.config.update, run.engines, rollout, Credit(advantages, advantages), 0, DRAWS)
        ends.append((torch.cat([tensor.flatten() for tensor in run.policy.state_dict().values()]), tally.means()))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=2e-5)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)


def test_microbatches_keep_rows_and_fields_together() -> None:
    run = toy(toy_config())
    rollout = rollout_of(run)
    rows = [7, 0, 31, 12]
    credit = Credit(rollout.values + 1, rollout.values + 2)
    (batch,) = policy_batches(rollout, credit, [[row] for row in rows], run.config.update)
    lengths = rollout.sequences.lengths.tolist()
    order = sorted(rows, key=lambda row: (-lengths[row], rows.index(row)))
    assert batch.sequences.prompt_lengths.tolist() == [2] * 4
    expected = [rollout.sequences.response_lengths[row] for row in order]
    assert batch.sequences.response_lengths.tolist() == expected
    for index, row in enumerate(order):
        assert torch.equal(batch.old_logprobs[index], rollout.logprobs[row, : batch.old_logprobs.shape[1]])
    assert batch.weight == float(sum(expected))


def test_the_score_lands_on_the_last_token_and_the_leash_on_each() -> None:
    """R_t = 1[t = T] score - beta k1_t, by naive loops over a real rollout."""
    run = toy(toy_config(shaping={"eos_penalty": 0.25, "clip": 0.8}))
    rollout = rollout_of(run)
    rollout = replace(rollout, ref_logprobs=rollout.logprobs - 0.125)
    rewards = shape(rollout, 0.4, 1.0, run.config)
    for row in range(len(rollout.sequences)):
        length = int(rollout.sequences.response_lengths[row])
        ended = int(rollout.sequences.response_tokens()[row, length - 1]) == EOS
        expected = [-0.4 * 0.125] * length
        expected[-1] += min(0.8, float(rollout.scores.total[row])) - (0.0 if ended else 0.25)
        assert rewards[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert rewards[row, length:].eq(0).all()


@pytest.mark.parametrize(("buffer", "scale"), [(0, 1.0), (2, 2.0)])
def test_the_score_is_scaled_and_its_length_paid_for(buffer: int, scale: float) -> None:
    run = toy(toy_config(shaping={"length_penalty": 0.1, "overlong_buffer": buffer}, kl={"place": "loss"}, **FREE))
    rollout = rollout_of(run)
    rewards = shape(rollout, 0.4, scale, run.config)  # the leash is a term of the loss, so no part of the reward
    for row in range(len(rollout.sequences)):
        length = int(rollout.sequences.response_lengths[row])
        overlong = {0: 0.0, 2: length / 2}[buffer]  # of at most two tokens the last two cost up to 1
        expected = [0.0] * (length - 1) + [float(rollout.scores.total[row]) / scale - 0.1 * length - overlong]
        assert rewards[row, :length].tolist() == pytest.approx(expected, abs=1e-6)


FREE: dict[str, Any] = {"advantage": {"whiten": False}}


def test_responses_to_one_prompt_are_a_group_and_are_drawn_apart() -> None:
    run = toy(toy_config(per_prompt=4))
    batch, _, key = _planned([PROMPT], Mixture.whole(1), run.config, 3, DRAWS)
    rollout = collect_rollout(run.engines.actors, batch, run.config.sampling, key, per_prompt=4)
    assert (len(batch), key.first_sample) == (32, 96)
    assert rollout.group.tolist() == [row // 4 for row in range(32)]
    assert len(set(rollout.samples.texts[:4])) > 1


def test_each_role_of_a_rollout_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that the roles alone move, each by a time of its own."""
    clock = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: clock)

    class Slow:
        def __init__(self, role: Any, seconds: float) -> None:
            self._role, self._seconds = role, seconds

        def __getattr__(self, name: str) -> Any:
            def slowly(*arguments: Any) -> Any:
                nonlocal clock
                clock += self._seconds
                return getattr(self._role, name)(*arguments)

            return slowly

    run = toy(toy_config())
    roles = run.engines.actors
    actors = Actors(
        Slow(roles.sampler, 8), Slow(roles.policy, 4), Slow(roles.reference, 2), Slow(roles.scorer, 1), exact=False
    )
    key = DrawKey(DRAWS, "rollout", iteration=0)
    seconds = collect_rollout(actors, [PROMPT] * 4, run.config.sampling, key).seconds
    taken = {"sampling": 8, "values": 4, "reference": 2, "scoring": 1}
    assert seconds == {f"time/{role}_seconds": time for role, time in taken.items()}


def test_each_prompt_stands_as_often_as_it_is_answered() -> None:
    prompts = [replace(PROMPT, text=str(number)) for number in range(10)]
    config = toy_config(per_prompt=8)
    batch, _, _ = _planned(prompts, Mixture.whole(10), config, 0, DRAWS)
    more, _, _ = _planned(prompts, Mixture.whole(10), config, 1, DRAWS)
    assert [len({item.text for item in batch[i : i + 8]}) for i in range(0, 32, 8)] == [1] * 4
    assert len({item.text for item in (*batch, *more)}) == 8  # of an epoch of ten none is met twice


def test_the_leash_in_the_loss_is_measured_against_the_neighbours() -> None:
    run = toy(toy_config(per_prompt=4, kl={"place": "loss"}, **FREE))
    rollout = rollout_of(run)
    gaps = [0.5 * row for row in range(32)]
    shifted = rollout.logprobs.clone()
    shifted[:, 0] -= torch.tensor(gaps)
    rollout = replace(rollout, ref_logprobs=shifted, group=torch.arange(32) // 4)
    leash = leash_in_loss(rollout, 0.3, run.config.kl)
    assert leash is not None
    assert leash.coef == 0.3
    others = [sum(gaps[row - row % 4 : row - row % 4 + 4]) - gaps[row] for row in range(32)]
    assert leash.baseline.tolist() == pytest.approx([other / 3 for other in others], abs=1e-5)
    alone = leash_in_loss(replace(rollout, group=torch.arange(32)), 0.3, run.config.kl)
    assert alone is not None
    assert alone.baseline.tolist() == pytest.approx([(sum(gaps) - gap) / 31 for gap in gaps], abs=1e-5)
    assert leash_in_loss(rollout, 0.3, toy_config().kl) is None
    (batch,) = policy_batches(rollout, Credit(rollout.values, rollout.values, leash), [[9], [2]], run.config.update)
    assert batch.leash is not None
    assert sorted(batch.leash.baseline.tolist()) == sorted(leash.baseline[[9, 2]].tolist())


def test_online_dpo_labels_neighbours_by_draws_from_what_they_are_worth() -> None:
    run = toy(toy_config(rollout_batch=2000, update={"loss": "dpo"}, shaping={"length_penalty": 0.5}))
    rollout = rollout_of(run)
    gap = 1.2
    worth = gap * (torch.arange(2000) % 2).float()  # of the second of each pair
    total = worth + 0.5 * rollout.sequences.response_lengths
    rollout = replace(rollout, scores=replace(rollout.scores, total=total))
    rewards = shape(rollout, 0.3, 1.0, run.config)
    assert rewards.sum(dim=1).tolist() == pytest.approx(worth.tolist(), abs=1e-5)  # no KL in it
    credit = label_pairs(rewards, rollout, 0.3, 7, DRAWS)
    assert credit.pairs is not None
    assert credit.pairs.sort(dim=1).values.tolist() == [[row, row + 1] for row in range(0, 2000, 2)]
    second_won = float((credit.pairs[:, 0] % 2).float().mean())
    assert second_won == pytest.approx(1 / (1 + math.exp(-gap)), abs=3 * math.sqrt(0.18 / 1000))
    assert credit.leash is not None
    assert torch.equal(credit.leash.ref_logprobs, rollout.ref_logprobs)
    again, later = (label_pairs(rewards, rollout, 0.3, iteration, DRAWS).pairs for iteration in (7, 8))
    assert again is not None
    assert torch.equal(again, credit.pairs)
    assert later is not None
    assert not torch.equal(later, credit.pairs)


@pytest.mark.parametrize("budget", [9, 100_000])
def test_a_pair_stays_together_and_the_preferred_one_comes_first(budget: int) -> None:
    learner = CountingLearner()
    run = toy(toy_config(rollout_batch=24, update={"loss": "dpo", "minibatches": 3, "token_budget": budget}))
    rollout = rollout_of(run)
    numbered = torch.arange(24.0)[:, None].expand_as(rollout.values)  # names each row
    pairs = torch.stack([torch.arange(24).flip(0)[:12], torch.arange(12)], dim=1)
    engines = PPOEngines(run.engines.actors, learner, run.engines.explain_ratio, run.engines.export)
    credit = Credit(numbered, numbered, Leash(0.1, rollout.ref_logprobs, torch.zeros(24)), pairs)
    update(replace_epochs(run.config.update, 1), engines, rollout, credit, 0, DRAWS)
    seen = [[int(row) for batch in part for row in batch.advantages[:, 0]] for part in learner.minibatches]
    assert [len(part) for part in seen] == [8, 8, 8]
    met = [tuple(part[i : i + 2]) for part in seen for i in range(0, 8, 2)]
    assert sorted(met) == sorted((chosen, rejected) for chosen, rejected in pairs.tolist())


def replace_epochs(config: UpdateConfig, epochs: int) -> UpdateConfig:
    return config.model_copy(update={"epochs": epochs})


def test_the_target_of_sequence_is_the_reward_its_baseline_is_taken_off() -> None:
    run = toy(toy_config(advantage={"kind": "sequence"}))
    rollout = rollout_of(run)
    rollout = replace(rollout, values=torch.tensor([0.3, -2.0]) * rollout.response_mask)
    rewards = shape(rollout, 0.5, 1.0, run.config)
    returns = estimate_advantages(rewards, rollout, run.config.advantage) + baseline(rollout, run.config.advantage)
    for row, kept in zip(returns, rollout.response_mask, strict=True):
        assert len(set(row[kept].tolist())) == 1
    assert returns[:, 0].tolist() == pytest.approx(rewards.sum(dim=1).tolist(), abs=1e-6)


def test_groups_whose_responses_score_alike_are_counted() -> None:
    scores = torch.tensor([1.0, 1.0, 2.0, 3.0, 0.5, 0.5, 0.5, 0.5])
    assert share_alike(scores, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])) == 0.75
    run = toy(toy_config(per_prompt=4), scores=dict.fromkeys(toy_scores(2), 0.5))
    rollout = replace(rollout_of(run), group=torch.arange(32) // 4)
    assert rollout_metrics(rollout, rollout.values, rollout.values)["objective/groups_alike"] == 1.0
    alone = replace(rollout, group=torch.arange(32))
    assert "objective/groups_alike" not in rollout_metrics(alone, rollout.values, rollout.values)


def test_advantages_by_the_named_estimator() -> None:
    run = toy(toy_config())
    rollout = replace(rollout_of(run), values=torch.full((32, 2), 0.3) * rollout_of(run).response_mask)
    rewards = shape(rollout, 0.5, 1.0, run.config)
    monte_carlo = estimate_advantages(rewards, rollout, toy_config(advantage={"kind": "monte_carlo"}).advantage)
    totals = rewards.sum(dim=1) - 0.3  # return of the first token minus its value, gamma 1
    assert monte_carlo[:, 0].tolist() == pytest.approx(totals.tolist(), abs=1e-6)
    one_step = estimate_advantages(rewards, rollout, toy_config(advantage={"lam": 0.0}).advantage)
    two = rollout.response_mask[:, 1]
    deltas = torch.where(two, rewards[:, 0] + 0.3 - 0.3, rewards[:, 0] - 0.3)
    assert one_step[:, 0].tolist() == pytest.approx(deltas.tolist(), abs=1e-6)
    whitened = whiten(monte_carlo, rollout.response_mask)
    assert float(whitened[rollout.response_mask].mean()) == pytest.approx(0.0, abs=1e-6)
