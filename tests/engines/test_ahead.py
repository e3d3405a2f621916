"""A batch that is begun before its turn: the same responses, whatever else happens, and nothing that is left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.config.sampling import SamplingConfig
from keel.config.servers import ServersConfig
from keel.engines.ahead import AheadSampler
from keel.engines.base import DrawKey
from keel.engines.remote import RemoteSampler
from keel.errors import UserError
from keel.records import Samples
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.tokenizers import TextCodec
from tests.engines.helpers import items, responses, tiny_policy
from tests.remote.fake import Asked, FakeServer, Reply
from tests.remote.policy import ServedPolicy, Trained
from tests.worlds import tiny_codec

PROMPTS = items((1, 9, 4, 7))
NEXT = DrawKey(Draws(0, "test"), "rollout", iteration=3, first_sample=12)
HELD_OUT = DrawKey(Draws(0, "test"), "held-out", iteration=0)
SAMPLING = SamplingConfig(max_new_tokens=5, temperature=0.7)
PATIENCE = 60.0  # seconds until a test that hangs fails


def renderer() -> Renderer:
    return Renderer(TextCodec(tiny_codec().hf, range(60)))


class Gated:
    """A server that answers completions while its gate is open."""

    def __init__(self) -> None:
        self.policy = ServedPolicy(tiny_policy(seed=5).backbone, renderer())
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def __call__(self, asked: Asked) -> Reply:
        if asked.path == "/v1/completions" and not self.gate.is_set():
            self.waiting.set()
            self.gate.wait(PATIENCE)
        return self.policy(asked)

    @property
    def num_drawn(self) -> int:
        return sum(self.policy.computed.values())


@contextmanager
def ahead(tmp_path: Path, server: Any, **settings: Any) -> Iterator[tuple[AheadSampler, RemoteSampler, Trained]]:
    with FakeServer(server) as fake:
        trained = Trained(tiny_policy(), renderer())
        config = {"urls": [fake.url], "kind": "keel", "retries": 1, "overlap": True, **settings}
        remote = trained.sampler(ServersConfig.model_validate(config), tmp_path / "servers", first_rest=0.02)
        try:
            yield AheadSampler(remote), remote, trained
        finally:
            remote.close()


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "keel ahead"]


def same(one: Samples, other: Samples) -> bool:
    assert one.logprobs is not None
    assert other.logprobs is not None
    alike = responses(one) == responses(other) and one.texts == other.texts and torch.equal(one.ended, other.ended)
    return alike and torch.equal(one.logprobs, other.logprobs)


def moved(trained: Trained) -> None:
    """The policy has taken an update."""
    with torch.no_grad():
        for weight in trained.policy.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    trained.steps += 1


def test_it_is_drawn_under_the_weights_of_its_beginning_and_taken_later(tmp_path: Path) -> None:
    server = Gated()
    with ahead(tmp_path, server) as (sampler, remote, trained):
        expected = remote.sample(PROMPTS, SAMPLING, NEXT)
        server.gate.clear()
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        assert server.waiting.wait(PATIENCE)  # nobody waited for it here
        moved(trained)
        server.gate.set()
        found = sampler.sample(PROMPTS, SAMPLING, NEXT)
        assert same(found, expected)
        assert (found.lag, expected.lag) == (1, 0)
        again = sampler.sample(PROMPTS, SAMPLING, NEXT)  # taken once
        assert again.lag == 0
        assert not same(again, expected)  # the policy has moved


def test_who_else_samples_waits_and_gets_the_newest_weights(tmp_path: Path) -> None:
    server = Gated()
    with ahead(tmp_path, server, max_in_flight=1) as (sampler, remote, trained):
        expected = remote.sample(PROMPTS, SAMPLING, NEXT)
        server.gate.clear()
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        moved(trained)
        threading.Timer(0.2, server.gate.set).start()
        held_out = remote.sample(PROMPTS, SAMPLING, HELD_OUT)
        assert server.policy.version.startswith("step-1-")
        assert same(sampler.sample(PROMPTS, SAMPLING, NEXT), expected)
        assert same(remote.sample(PROMPTS, SAMPLING, HELD_OUT), held_out)


def test_a_checkpoint_holds_it_and_gives_it_back_bit_by_bit(tmp_path: Path) -> None:
    server = Gated()
    with ahead(tmp_path, server) as (sampler, _, trained):
        assert sampler.kept() is None
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        kept = sampler.kept()
        assert kept is not None
        assert kept["policy_version"] == 2
        written = json.dumps(kept, allow_nan=False)
        expected = sampler.sample(PROMPTS, SAMPLING, NEXT)
        moved(trained)
        drawn = server.num_drawn
        sampler.restore(json.loads(written))
        found = sampler.sample(PROMPTS, SAMPLING, NEXT)
        assert same(found, expected)
        assert found.lag == 1
        assert server.num_drawn == drawn


def test_what_does_not_fit_is_left_and_drawn_anew(tmp_path: Path) -> None:
    others: list[tuple[Any, SamplingConfig, DrawKey]] = [
        (PROMPTS[:3], SAMPLING, NEXT),
        (items((1, 9, 4, 6)), SAMPLING, NEXT),
        (PROMPTS, SamplingConfig(max_new_tokens=4, temperature=0.7), NEXT),
        (PROMPTS, SamplingConfig(max_new_tokens=5, temperature=0.8), NEXT),
        (PROMPTS, SAMPLING, DrawKey(Draws(1, "test"), "rollout", iteration=3, first_sample=12)),
        (PROMPTS, SAMPLING, DrawKey(Draws(0, "test"), "rollout", iteration=4, first_sample=12)),
    ]
    with ahead(tmp_path, Gated()) as (sampler, remote, _):
        for prompts, sampling, key in others:
            sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
            found = sampler.sample(prompts, sampling, key)
            assert found.lag == 0
            assert same(found, remote.sample(prompts, sampling, key))
            assert sampler.kept() is None


def test_its_error_is_raised_where_it_is_taken(tmp_path: Path) -> None:
    def broken(asked: Asked) -> Reply:
        return Reply(status=500) if asked.path == "/v1/completions" else Reply()

    with ahead(tmp_path, broken) as (sampler, _, _):
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        assert sampler.kept() is None  # no checkpoint is refused for it
        with pytest.raises(UserError, match=r"no server is left that answers: .*HTTP 500"):
            sampler.sample(PROMPTS, SAMPLING, NEXT)


def test_a_server_that_hangs_ends_it_in_time(tmp_path: Path) -> None:
    server = Gated()
    server.gate.clear()
    with ahead(tmp_path, server, timeout=0.2) as (sampler, _, _):
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        with pytest.raises(UserError, match=r"no server is left that answers: .*no answer in time"):
            sampler.sample(PROMPTS, SAMPLING, NEXT)  # before the gate's patience ends
        server.gate.set()


def test_the_end_of_a_run_leaves_no_thread_though_a_server_hangs(tmp_path: Path) -> None:
    server = Gated()
    server.gate.clear()
    with ahead(tmp_path, server, timeout=2.0, max_in_flight=2) as (sampler, remote, _):
        sampler.begin(PROMPTS, SAMPLING, NEXT, version=2)
        assert server.waiting.wait(PATIENCE)
        assert ours()
        remote.close()  # while the gate is shut
        deadline = time.monotonic() + PATIENCE
        while ours() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not ours()
        with pytest.raises(UserError, match="were given up"):
            sampler.sample(PROMPTS, SAMPLING, NEXT)
        server.gate.set()
        assert server.num_drawn <= 2  # those in flight, and no other
