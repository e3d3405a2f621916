"""Sampling on servers: exact log-probabilities, faults of every kind, weights that are always the right ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keel.config.sampling import SamplingConfig
from keel.config.servers import ServersConfig
from keel.engines.base import DrawKey
from keel.engines.remote import RemoteSampler
from keel.engines.sampler import CachedSampler
from keel.errors import UserError
from keel.models.policy import Policy
from keel.records import Samples
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.tokenizers import TextCodec
from tests.engines.helpers import exact_logprobs, items, responses, rows_of, tiny_policy
from tests.remote.fake import Asked, FakeServer, Reply
from tests.remote.policy import ServedPolicy, Trained
from tests.worlds import tiny_codec

KEY = DrawKey(Draws(0, "test"), "response", iteration=3, first_sample=20)
ENDS = range(60)  # a fifth of all tokens, so that responses of every length end
LENGTHS = (1, 9, 4, 4, 13, 2, 7, 5, 11, 3)
Answer = Callable[[Asked], Reply]
PATIENCE = 60.0  # seconds until a test that hangs fails


def renderer() -> Renderer:
    return Renderer(TextCodec(tiny_codec().hf, ENDS))


def sampling(**changes: Any) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 6, "temperature": 0.7, **changes})


def keels_uniforms(count: int, key: DrawKey = KEY) -> dict[int, list[float]]:
    """What Keel's own sampler draws with, by the seeds that the servers are sent."""
    draws = key.draws
    samples = range(key.first_sample, key.first_sample + count)
    rows = draws.uniforms(key.purpose, iteration=key.iteration, samples=samples, length=6)
    seeds = [draws.integer(key.purpose, iteration=key.iteration, sample=sample) for sample in samples]
    return dict(zip(seeds, rows.tolist(), strict=True))


@contextmanager
def remote(
    tmp_path: Path, *answers: Answer, policy: Policy | None = None, **settings: Any
) -> Iterator[tuple[RemoteSampler, list[FakeServer], Trained]]:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer(answer)) for answer in answers]
        trained = Trained(policy or tiny_policy(), renderer())
        config = {"urls": [fake.url for fake in fakes], "kind": "keel", "retries": 2, **settings}
        sampler = trained.sampler(ServersConfig.model_validate(config), tmp_path / "servers", first_rest=0.02)
        stack.callback(sampler.close)
        yield sampler, fakes, trained


def served(**options: Any) -> ServedPolicy:
    """A server that was started with other weights than those of the policy that trains."""
    return ServedPolicy(tiny_policy(seed=5).backbone, renderer(), **options)


def with_fault(policy: ServedPolicy, faults: Mapping[int, Reply]) -> Answer:
    """A fault at the given numbers of its completions; a reply that is cut or late is the policy's own."""
    numbers = count()

    def answer(asked: Asked) -> Reply:
        if asked.path != "/v1/completions":
            return policy(asked)
        fault = faults.get(next(numbers), Reply())
        if fault.status != 200 or fault.die:
            return fault
        return Reply(policy(asked).body, after=fault.after, cut=fault.cut)

    return answer


def require_exact(samples: Samples, model: nn.Module, temperature: float) -> None:
    assert samples.logprobs is not None
    for row, said in zip(rows_of(samples.sequences), samples.logprobs, strict=True):
        torch.testing.assert_close(
            said[: row.response_length].double(), exact_logprobs(model, row, temperature), rtol=0, atol=1e-5
        )


def test_the_same_draws_give_the_responses_of_the_sampler_in_process(tmp_path: Path) -> None:
    prompts, policy = items(LENGTHS), tiny_policy()
    one, other = (served(uniforms=keels_uniforms(len(prompts))) for _ in range(2))
    with remote(tmp_path, one, other, policy=policy) as (sampler, fakes, _):
        found = sampler.sample(prompts, sampling(), KEY)
        expected = CachedSampler(policy, renderer()).sample(prompts, sampling(), KEY)
        assert responses(found) == responses(expected)
        assert len({len(row) for row in responses(found)}) >= 4
        assert found.texts == expected.texts
        assert found.ended.tolist() == expected.ended.tolist()
        assert found.logprobs is not None
        assert expected.logprobs is not None
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
        require_exact(found, policy.backbone, 0.7)
        assert [len(one.loaded), len(other.loaded)] == [1, 1]
        assert sum(fake.paths().count("/v1/completions") for fake in fakes) == len(prompts)


def test_stop_strings_end_responses_as_in_process(tmp_path: Path) -> None:
    prompts, policy = items(LENGTHS * 2), tiny_policy()
    config = sampling(stop=("a", "e", "er"))
    with remote(tmp_path, served(uniforms=keels_uniforms(len(prompts))), policy=policy) as (sampler, _, _):
        found = sampler.sample(prompts, config, KEY)
    expected = CachedSampler(policy, renderer()).sample(prompts, config, KEY)
    assert responses(found) == responses(expected)
    assert found.texts == expected.texts
    assert any(not set(row) & set(ENDS) and len(row) < 6 for row in responses(found))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What one server without a fault draws for twice the lengths."""
    with remote(tmp_path_factory.mktemp("calm"), served()) as (sampler, _, _):
        return responses(sampler.sample(items(LENGTHS * 2), sampling(), KEY))


@pytest.mark.parametrize(
    "fault",
    [Reply(status=500), Reply(status=429, headers={"Retry-After": "0.05"}), Reply(cut=True), Reply(after=3.0)],
    ids=["500", "429", "cut", "timeout"],
)
def test_faults_change_no_response_and_nothing_is_drawn_twice(
    tmp_path: Path, calm: list[list[int]], fault: Reply
) -> None:
    prompts, policy = items(LENGTHS), served()
    answer = with_fault(policy, {2: fault, 5: fault})
    with remote(tmp_path, answer, timeout=1.0 if fault.after else PATIENCE, max_in_flight=2) as (sampler, (fake,), _):
        found = sampler.sample(prompts, sampling(), KEY)
        sent = [asked.id for asked in fake.asked if asked.path == "/v1/completions"]
    assert responses(found) == calm[: len(prompts)]
    require_exact(found, tiny_policy().backbone, 0.7)
    assert len(set(sent)) == len(prompts) == len(policy.computed)
    assert len(prompts) < len(sent) <= len(prompts) + 4
    assert set(policy.computed.values()) == {1}
    assert fake.most_at_once <= (4 if fault.after else 2)  # it goes on with what nobody waits for any more


def test_a_server_that_dies_in_the_batch_leaves_its_requests_to_the_other(
    tmp_path: Path, calm: list[list[int]]
) -> None:
    prompts = items(LENGTHS * 2)
    dying, policy, lost = with_fault(served(), {4: Reply(die=True)}), served(), threading.Event()

    def until_then(asked: Asked) -> Reply:
        reply = dying(asked)
        if reply.die:
            lost.set()
        return reply

    def other(asked: Asked) -> Reply:
        """Leaves the dying one what it dies at."""
        if asked.path == "/v1/completions":
            lost.wait(PATIENCE)
        return policy(asked)

    with remote(tmp_path, until_then, other, max_in_flight=2) as (sampler, (dead, _), trained):
        found = sampler.sample(prompts, sampling(), KEY)
        assert dead.dead
        assert responses(found) == calm
        require_exact(found, trained.policy.backbone, 0.7)
        trained.steps += 1  # the dead one misses an update; the next rollout does without it
        assert len(sampler.sample(prompts[:3], sampling(), KEY).texts) == 3


def test_without_a_server_one_sentence_names_them_and_the_last_error(tmp_path: Path) -> None:
    broken = [with_fault(served(), dict.fromkeys(range(99), Reply(status=500))) for _ in range(2)]
    with (
        remote(tmp_path, *broken, retries=1) as (sampler, (one, other), _),
        pytest.raises(
            UserError, match=rf"no server is left that answers: {one.url} \(HTTP 500.*{other.url} \(HTTP 500"
        ),
    ):
        sampler.sample(items(LENGTHS), sampling(), KEY)


def test_every_rollout_is_drawn_under_the_newest_weights(tmp_path: Path) -> None:
    prompts, policy, one = items(LENGTHS), tiny_policy(), served()
    with remote(tmp_path, one, policy=policy) as (sampler, _, trained):
        require_exact(sampler.sample(prompts, sampling(), KEY), policy.backbone, 0.7)
        sampler.sample(prompts, sampling(), KEY)
        assert len(one.loaded) == 1  # the same weights are not sent twice
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        trained.steps += 1
        require_exact(sampler.sample(prompts, sampling(), KEY), policy.backbone, 0.7)
        assert len(one.loaded) == 2
        assert len(list((tmp_path / "servers").iterdir())) == 2
    assert not (tmp_path / "servers").exists()


def test_a_server_that_was_started_anew_gets_the_weights_again(tmp_path: Path) -> None:
    prompts, one = items(LENGTHS), served()

    def restarted(asked: Asked) -> Reply:
        if asked.path == "/v1/completions" and len(one.computed) == 4 and len(one.loaded) == 1:
            one.model, one.version = tiny_policy(seed=5).backbone, "as it was started"
        return one(asked)

    with remote(tmp_path, restarted, max_in_flight=1) as (sampler, _, trained):
        found = sampler.sample(prompts, sampling(), KEY)
        require_exact(found, trained.policy.backbone, 0.7)
    assert len(one.loaded) == 2


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"token_ids": None}, "no token_ids"),
        ({"logprobs": None}, "no log-probabilities"),
        ({"token_ids": [4, 299, 300], "logprobs": {"token_logprobs": [-1, -1, -1]}}, "beyond the policy's vocabulary"),
        ({"token_ids": [299] * 7, "logprobs": {"token_logprobs": [-1.0] * 7}}, "7 tokens where at most 6"),
        ({"token_ids": [299], "logprobs": {"token_logprobs": [-1.0]}}, "neither ends nor is at the limit"),
        ({"token_ids": [0], "logprobs": {"token_logprobs": [math.nan]}}, "nan is no log-probability"),
        ({"token_ids": [0], "logprobs": {"token_logprobs": [1.0]}}, "1.0 is no log-probability"),
    ],
)
def test_a_wrong_answer_ends_the_run_and_is_never_used(tmp_path: Path, wrong: dict[str, Any], what: str) -> None:
    with (
        remote(tmp_path, served(wrong=wrong)) as (sampler, (fake,), _),
        pytest.raises(UserError, match=rf"{fake.url} does not answer what was asked: .*{what}"),
    ):
        sampler.sample(items(LENGTHS), sampling(), KEY)


# --- the check at the start ---


def check(sampler: RemoteSampler, trained: Trained, *, context: int = 40, temperature: float = 0.7) -> None:
    sampler.check(items((3, 5, 2)), sampling(temperature=temperature), KEY, context=context, scorer=trained.scorer)


def test_servers_as_they_should_be_pass(tmp_path: Path) -> None:
    with remote(tmp_path, served(), served()) as (sampler, fakes, trained):
        check(sampler, trained)
        assert all(fake.paths()[:2] == ["/v1/models", "/update_weights"] for fake in fakes)


def test_log_probabilities_without_the_temperature_are_told(tmp_path: Path) -> None:
    with (
        remote(tmp_path, served(), served(tempered=False)) as (sampler, (_, wrong), trained),
        pytest.raises(UserError, match=rf"{wrong.url} are those at temperature 1, though it draws at 0.7"),
    ):
        check(sampler, trained)


def test_other_log_probabilities_are_told(tmp_path: Path) -> None:
    one = served()

    def deaf(asked: Asked) -> Reply:
        """Takes no weights, and says nothing of those it has."""
        if asked.path == "/update_weights":
            return Reply()
        body = one(asked).body
        return Reply({name: value for name, value in body.items() if name != "weight_version"})

    with (
        remote(tmp_path, deaf, max_logprob_gap=0.01) as (sampler, (fake,), trained),
        pytest.raises(UserError, match=rf"{fake.url} differ from the trainer's by 0\.\d+ \(root mean square; "),
    ):
        check(sampler, trained)


@pytest.mark.parametrize(
    ("settings", "context", "what"),
    [
        ({"model": "another"}, 40, "has no model 'another'; ppo.servers.model may be policy"),
        ({}, 65, "reads at most 64 tokens, and the recipe's prompts and responses have up to 65"),
    ],
)
def test_a_server_that_does_not_fit_the_recipe_is_told(
    tmp_path: Path, settings: dict[str, Any], context: int, what: str
) -> None:
    with (
        remote(tmp_path, served(), **settings) as (sampler, _, trained),
        pytest.raises(UserError, match=what),
    ):
        check(sampler, trained, context=context)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with remote(tmp_path, served()) as (sampler, (fake,), trained):
        fake.dead = True
        with pytest.raises(
            UserError, match=rf"the server {fake.url} does not answer: .*take it out of ppo.servers.urls"
        ):
            check(sampler, trained)


def test_another_tokenizer_is_told(tmp_path: Path) -> None:
    with (
        remote(tmp_path, served(wrong={"text": "another story"})) as (sampler, _, trained),
        pytest.raises(UserError, match="another tokenizer: it reads 'another story' where"),
    ):
        check(sampler, trained)
