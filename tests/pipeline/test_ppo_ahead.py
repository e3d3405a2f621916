"""PPO whose next batch is drawn while this one trains: held to a loop written by hand, interrupted, and failing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.engines.ahead import AheadSampler
from keel.engines.base import DrawKey, Sampler
from keel.engines.remote import RemoteSampler
from keel.engines.scorers import PolicyScorer
from keel.errors import UserError
from keel.functional.advantages import gae
from keel.functional.closed_form import objective
from keel.functional.masked import whiten
from keel.models.export import save_policy
from keel.models.policy import Policy
from keel.pipeline import ppo as stage_module
from keel.pipeline.guards import require_near_servers
from keel.pipeline.heldout import HeldOut
from keel.records import Credit, EncodedRow, PromptItem, Rollout, Samples
from keel.remote.weights import WeightsFolder
from keel.runs.metrics import read_lines
from tests.checkpoints import tensors_in
from tests.pipeline.support import (
    EOS,
    PROMPT,
    WORDS,
    Heard,
    StopAt,
    begin_stage,
    exact_distribution,
    toy_policy,
    toy_renderer,
)
from tests.pipeline.test_ppo import LEARNING, optimum_by_hand
from tests.pipeline.toy_ppo import DRAWS, Toy, toy, toy_config, toy_scores
from tests.remote.fake import Asked, FakeServer, Reply
from tests.remote.policy import ServedPolicy

BATCH, ITERATIONS = 8, 4
Setting = Mapping[str, Any]


class Served:
    """A server of the toy language, and runs that draw on it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.policy = ServedPolicy(toy_policy(seed=5).backbone, toy_renderer())
        self.fault: Callable[[Asked], Reply | None] = lambda asked: None
        self.fake = stack.enter_context(FakeServer(lambda asked: self.fault(asked) or self.policy(asked)))
        self._stack = stack
        self._folder = folder
        self._runs = 0

    def run(self, overlap: bool = True, **changes: Any) -> Toy:
        servers = {"urls": [self.fake.url], "kind": "keel", "overlap": overlap, "retries": 1, "max_logprob_gap": 0.01}
        settings = {"rollout_batch": BATCH, "iterations": ITERATIONS, "evaluate": {"every": 2}, **changes}
        config = toy_config(**settings, servers=servers)
        assert config.servers is not None
        run = toy(config)
        policy, renderer = run.policy, toy_renderer()

        def write(folder: Path) -> None:
            save_policy(policy.backbone, renderer.codec.hf, folder, eos_ids=renderer.eos_ids)

        self._runs += 1
        remote = RemoteSampler(
            config.servers,
            renderer,
            vocabulary=len(WORDS),
            weights=WeightsFolder(self._folder / f"servers-{self._runs}", write),
            version=lambda: f"step-{run.learner.steps}",
            first_rest=0.02,
        )
        self._stack.callback(remote.close)
        actors = replace(run.engines.actors, sampler=remote, exact=False)
        if overlap:
            ahead = AheadSampler(remote)
            run.engines = replace(run.engines, actors=replace(actors, sampler=ahead), ahead=ahead, ratio_tolerance=0.1)
        else:
            run.engines = replace(run.engines, actors=actors, ratio_tolerance=0.1)
        near = partial(require_near_servers, servers=config.servers, explain=lambda _: "They disagree.")
        run.held_out = HeldOut(actors, None, [PROMPT] * 4, config.sampling, config.kl.coef, DRAWS, check=near)
        return run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(stack, tmp_path)


def weights(run: Toy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def drawn_by_hand(policy: Policy, iteration: int) -> Samples:
    """A response after the other from the model as it is, with the seeds of that iteration's."""
    server = ServedPolicy(copy.deepcopy(policy.backbone), toy_renderer())
    rows, logprobs = [], []
    for number in range(iteration * BATCH, (iteration + 1) * BATCH):
        body = {
            "prompt": list(PROMPT.tokens),
            "temperature": 1.0,
            "max_tokens": 2,
            "seed": DRAWS.integer("rollout", iteration=iteration, sample=number),
            "stop_token_ids": [EOS],
            "top_p": 1.0,
            "top_k": 0,
            "logprobs": 0,
        }
        choice = server(Asked(0, "/v1/completions", body, str(number), None)).body["choices"][0]
        rows.append(choice["token_ids"])
        logprobs.append(choice["logprobs"]["token_logprobs"])
    sequences = pad_rows([EncodedRow((*PROMPT.tokens, *row), len(PROMPT.tokens)) for row in rows])
    padded = torch.zeros(sequences.response_mask.shape)
    for row, said in zip(padded, logprobs, strict=True):
        row[: len(said)] = torch.tensor(said)
    texts = tuple(" ".join(WORDS[token] for token in row if token != EOS) for row in rows)
    ended = torch.tensor([row[-1] == EOS for row in rows])
    return Samples(sequences, padded, ended, (PROMPT,) * BATCH, texts)


def train_by_hand(run: Toy, iterations: int) -> list[float]:
    """Batch t + 1 is drawn before update t, from pi_t, and trained on after it, corrected by pi_(t+1) / pi_t.

    How far that ratio is from 1, on average over the tokens of each batch.
    """
    off = []
    look = PolicyScorer(run.policy, temperature=1.0, token_budget=10_000)
    waiting = drawn_by_hand(run.policy, 0)
    for t in range(iterations):
        samples, mask = waiting, waiting.sequences.response_mask
        assert samples.logprobs is not None
        waiting = drawn_by_hand(run.policy, t + 1)
        logprobs, values = look.logprobs_and_values(samples.sequences)
        reference = run.engines.actors.reference.logprobs(samples.sequences)
        scores = run.engines.actors.scorer.score(samples)
        rewards = torch.where(mask, -0.5 * (logprobs - reference), 0.0)
        rewards[torch.arange(BATCH), mask.sum(dim=1) - 1] += scores.total
        advantages = gae(rewards, values, mask, gamma=1.0, lam=0.95)
        returns = advantages + values
        rollout = Rollout(samples, logprobs, reference, values, scores, torch.arange(BATCH), 0, samples.logprobs)
        credit = Credit(whiten(advantages, mask), returns)
        stage_module.update(run.config.update, run.engines, rollout, credit, t, DRAWS)
        ratios = [now / then for now, then in zip(logprobs[mask].exp(), samples.logprobs[mask].exp(), strict=True)]
        off.append(sum(abs(float(ratio) - 1) for ratio in ratios) / len(ratios))
    return off


def test_it_trains_as_a_loop_by_hand_does_on_batches_an_update_old(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, real = [], stage_module.update

    def noting(config: Any, engines: Any, rollout: Rollout, *rest: Any) -> Any:
        versions.append(rollout.policy_version)
        return real(config, engines, rollout, *rest)

    monkeypatch.setattr(stage_module, "update", noting)
    run = served.run(checkpoint_every=10)
    run.train(begin_stage(tmp_path, "ppo"))
    monkeypatch.undo()
    by_hand = toy(run.config)
    by_hand.engines = replace(by_hand.engines, ratio_tolerance=1.0)  # which is for batches that are not old
    off = train_by_hand(by_hand, ITERATIONS)
    assert same(weights(run), weights(by_hand))
    assert versions == [0, 0, 1, 2]
    lines = read_lines(tmp_path / "ppo" / "metrics.jsonl")
    assert [line["ppo/policy/lag"] for line in lines[1:]] == [0, 1, 1, 1]
    assert ["ppo/policy/sampler_gap" in line for line in lines[1:]] == [True, False, False, False]
    assert [line["ppo/policy/staleness"] for line in lines[2:]] == pytest.approx(off[1:], rel=1e-3)
    assert min(off[1:]) > 0.01 > 1e-4 > off[0]
    assert all(line["eval/sampler_gap_rms"] < 1e-5 for line in lines if "eval/scores" in line)  # never an update old

    on_time = served.run(overlap=False, checkpoint_every=10)
    on_time.train(begin_stage(tmp_path, "on-time"))
    assert not same(weights(on_time), weights(run))


def seeds(server: FakeServer) -> list[int]:
    return [asked.body["seed"] for asked in server.asked if asked.path == "/v1/completions"]


class Stopped(Exception):
    pass


class DiesAfter(Heard):
    """The process ends once an iteration is told of, before its checkpoint."""

    def __init__(self, iteration: int) -> None:
        super().__init__()
        self.iteration = iteration

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done == self.iteration:
            raise Stopped


@pytest.mark.parametrize("every", [1, 2])
def test_killed_and_resumed_it_trains_on_the_same_batches(served: Served, tmp_path: Path, every: int) -> None:
    alone = served.run(checkpoint_every=every)
    begun = begin_stage(tmp_path, "alone")
    alone.train(begun)
    killed = served.run(checkpoint_every=every)
    with pytest.raises(Stopped):
        killed.train(begin_stage(tmp_path, "killed"), DiesAfter(3))
    asked = len(seeds(served.fake))
    resumed = served.run(checkpoint_every=every)
    stage = begin_stage(tmp_path, "killed")
    assert stage.snapshot(2).state["ahead"]["policy_version"] == 1
    resumed.train(stage)
    assert same(weights(resumed), weights(alone))
    again = seeds(served.fake)[asked:]
    batch = [DRAWS.integer("rollout", iteration=2, sample=number) for number in range(2 * BATCH, 3 * BATCH)]
    assert not set(again) & set(batch)  # it lay in the checkpoint
    told = [
        [{key: value for key, value in line.items() if not key.startswith("time")} for line in lines]
        for lines in (read_lines(tmp_path / run / "metrics.jsonl") for run in ("alone", "killed"))
    ]
    assert told[0] == told[1]
    for kind in ("model", "optimiser"):
        assert same(*(tensors_in(one.snapshot(ITERATIONS).path, kind) for one in (stage, begun)))
    assert stage.snapshot(ITERATIONS).state["ahead"] is None  # nothing comes after it


@pytest.mark.parametrize(
    ("changes", "lag"),
    [
        ({"update": {"lr": 5e-3}}, 1),
        ({"sampling": {"max_new_tokens": 1}}, 0),
        ({"rollout_batch": 2 * BATCH}, 0),
    ],
    ids=["rate", "length", "batch"],
)
def test_a_run_that_goes_on_otherwise_takes_the_batch_only_where_it_fits(
    served: Served, tmp_path: Path, changes: Setting, lag: int
) -> None:
    with pytest.raises(Stopped):
        served.run().train(begin_stage(tmp_path, "ppo"), DiesAfter(3))
    served.run(**changes).train(begin_stage(tmp_path, "ppo"))
    lines = read_lines(tmp_path / "ppo" / "metrics.jsonl")
    assert [line["ppo/policy/lag"] for line in lines[1:]] == [0, 1, lag, 1]


def test_overlap_is_begun_and_left_from_a_checkpoint_of_the_other_kind(served: Served, tmp_path: Path) -> None:
    for first, name in ((False, "begun"), (True, "left")):
        with pytest.raises(Stopped):
            served.run(overlap=first).train(begin_stage(tmp_path, name), DiesAfter(3))
        served.run(overlap=not first).train(begin_stage(tmp_path, name))
        lags = [line["ppo/policy/lag"] for line in read_lines(tmp_path / name / "metrics.jsonl")[1:]]
        assert lags == ([0, 0, 0, 1] if name == "begun" else [0, 1, 0, 0])


def test_an_error_of_the_batch_ahead_ends_the_run_when_it_is_taken(served: Served, tmp_path: Path) -> None:
    bad = {DRAWS.integer("rollout", iteration=2, sample=number) for number in range(2 * BATCH, 3 * BATCH)}

    def failing(asked: Asked) -> Reply | None:
        return Reply(status=500) if asked.path == "/v1/completions" and asked.body["seed"] in bad else None

    served.fault = failing
    run = served.run(evaluate={"every": 100})
    with pytest.raises(UserError, match=r"no server is left that answers: .*HTTP 500"):
        run.train(begin_stage(tmp_path, "ppo"))
    assert run.learner.steps == 2 * 2  # the update beside it was taken, and kept
    snapshot = begin_stage(tmp_path, "ppo").snapshot(2)
    assert snapshot.state["ahead"] is None
    served.fault = lambda asked: None
    served.run(evaluate={"every": 100}).train(begin_stage(tmp_path, "ppo"))
    assert [line["ppo/policy/lag"] for line in read_lines(tmp_path / "ppo" / "metrics.jsonl")[1:]] == [0, 1, 0, 1]


def test_a_server_that_keeps_old_weights_is_told_at_the_next_evaluation(served: Served, tmp_path: Path) -> None:
    def keeping(asked: Asked) -> Reply | None:
        if asked.path != "/update_weights" or not served.policy.loaded:
            return None
        served.policy.version = asked.body["version"]
        return Reply()

    served.fault = keeping
    run = served.run()  # whose batches lag, and may be an update apart
    with pytest.raises(UserError, match=r"log-probabilities differ from the trainer's by 0\.\d+ .* They disagree"):
        run.train(begin_stage(tmp_path, "ppo"))
    assert run.learner.steps == 2 * 2  # evaluated after the second iteration


def test_a_run_that_is_stopped_leaves_the_batch_in_its_checkpoint(served: Served, tmp_path: Path) -> None:
    run = served.run(checkpoint_every=100)
    summary = run.train(begin_stage(tmp_path, "ppo", callbacks=[StopAt(3)]))
    assert summary["iterations"] == 3
    assert len(begin_stage(tmp_path, "ppo").snapshot(3).state["ahead"]["drawn"]) == BATCH


class Here:
    """Draws ahead in the trainer's own process: before the update, and not beside it."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._begun: Samples | None = None

    def begin(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey, version: int) -> None:
        self._begun = replace(self._sampler.sample(prompts, config, key), lag=1)

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        begun, self._begun = self._begun, None
        return begun or self._sampler.sample(prompts, config, key)

    def kept(self) -> None:
        return None

    def restore(self, kept: Mapping[str, Any]) -> None:
        raise AssertionError


def test_batches_an_update_old_lead_to_the_known_optimum(tmp_path: Path) -> None:
    run = toy(toy_config(**LEARNING))
    here = Here(run.engines.actors.sampler)
    actors = replace(run.engines.actors, sampler=here, exact=False)
    run.engines = replace(run.engines, actors=actors, ahead=here, ratio_tolerance=0.1)
    run.train(begin_stage(tmp_path, "ppo"))
    scores = list(toy_scores(2).values())
    start, end = exact_distribution(toy_policy(), 2), exact_distribution(run.policy, 2)
    _, value = optimum_by_hand(start, scores, beta=0.5)
    rewards = torch.tensor(scores, dtype=torch.float64)
    assert value - float(objective(start, start, rewards, 0.5)) > 0.2
    assert value - float(objective(end, start, rewards, 0.5)) < 0.005
