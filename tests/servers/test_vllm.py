"""Keel against a real vLLM. Run by `make test-servers`; measured figures are printed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import SIZES, make_models, random_texts
from benchmarks.peers import HOME
from keel.build import load_renderer, run_recipe
from keel.config.recipe import parse_recipe
from keel.config.sampling import SamplingConfig
from keel.config.servers import ServersConfig
from keel.engines.base import DrawKey
from keel.engines.remote import rms_gap
from keel.engines.sampler import CachedSampler
from keel.errors import UserError
from keel.models.load import load_causal_lm
from keel.models.policy import Policy
from keel.records import PromptItem, Samples
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from tests.engines.helpers import responses
from tests.pipeline.support import Heard
from tests.remote.policy import Trained
from tests.servers.launch import CONTEXT, Running, serving

pytestmark = pytest.mark.servers

KEY = DrawKey(Draws(0, "test"), "response", iteration=0)
SAMPLING = SamplingConfig(max_new_tokens=64, temperature=0.7)
TEMPERED = ("--logprobs-mode", "processed_logprobs")
EXACT = 1e-3  # of a log-probability: float32 on both sides, other kernels


@pytest.fixture(scope="module")
def model() -> Path:
    """A small random Llama that ends its responses by itself, head size 64."""
    return make_models(SIZES["small"], HOME / "models" / "servers", mean_length=32, max_length=64).policy


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(model, tmp_path_factory.mktemp("vllm") / "log", *TEMPERED) as running:
        yield running


@pytest.fixture
def trained(model: Path) -> Trained:
    policy = Policy(load_causal_lm(str(model), dtype=torch.float32)).eval()
    return Trained(policy, load_renderer(str(model)))


def config(*servers: Running, **settings: Any) -> ServersConfig:
    return ServersConfig.model_validate({"urls": [one.url for one in servers], "kind": "vllm", **settings})


def prompts(count: int) -> list[PromptItem]:
    rows = random_texts(count, 16, 32, SIZES["small"].vocab, seed=1)
    return [PromptItem(tuple(row), text="", row={}, source="") for row in rows]


def gap(trained: Trained, samples: Samples, temperature: float = SAMPLING.temperature) -> float:
    """Largest difference of a log-probability, the server's against the trainer's."""
    assert samples.logprobs is not None
    ours = trained.scorer(temperature).logprobs(samples.sequences)
    said = rms_gap(ours, samples.logprobs, samples.sequences.response_mask)
    largest = float((ours - samples.logprobs)[samples.sequences.response_mask].abs().max())
    print(f"log-probabilities at temperature {temperature:g}: largest gap {largest:.2g}, rms {said:.2g}")
    return largest


def test_responses_and_their_log_probabilities(server: Running, trained: Trained, tmp_path: Path) -> None:
    sampler, many = trained.sampler(config(server), tmp_path / "servers"), prompts(128)
    sampler.check(many[:4], SAMPLING, KEY, context=CONTEXT, scorer=trained.scorer)
    started = time.perf_counter()
    samples = sampler.sample(many, SAMPLING, KEY)
    seconds = time.perf_counter() - started
    here = time.perf_counter()
    CachedSampler(trained.policy, trained.renderer).sample(many, SAMPLING, KEY)
    inside = time.perf_counter() - here
    tokens = samples.sequences.weight
    print(
        f"{tokens:.0f} tokens: {tokens / seconds:.0f} tokens/s over HTTP; in process {inside:.2f} s for as many prompts"
    )
    assert gap(trained, samples) < EXACT
    assert gap(trained, samples, 1.0) > 0.05  # so the temperature is in them
    assert float(samples.ended.float().mean()) > 0.7
    assert len(set(map(len, responses(samples)))) > 16
    again = sampler.sample(many[:16], SAMPLING, KEY)
    assert responses(again) == responses(samples)[:16]  # the same seeds
    sampler.close()


def test_the_default_mode_of_log_probabilities_is_refused(model: Path, trained: Trained, tmp_path: Path) -> None:
    with serving(model, tmp_path / "log") as raw:
        sampler = trained.sampler(config(raw), tmp_path / "servers")
        with pytest.raises(UserError, match=r"temperature 1, though it draws at 0\.7; start vLLM with --logprobs-mode"):
            sampler.check(prompts(4), SAMPLING, KEY, context=CONTEXT, scorer=trained.scorer)
        sampler.close()


def test_new_weights_are_seen(server: Running, trained: Trained, tmp_path: Path) -> None:
    sampler = trained.sampler(config(server), tmp_path / "servers")
    for step in range(3):
        if step:
            with torch.no_grad():
                for weight in trained.policy.parameters():
                    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
                    weight.add_(0.2 * weight.std() * noise if weight.dim() > 1 else 0.02 * noise)
            before = sampler.sample(prompts(16), SAMPLING, KEY)
            assert gap(trained, before) > 0.05  # those of the old ones
            trained.steps += 1
        started = time.perf_counter()
        samples = sampler.sample(prompts(1), SAMPLING, KEY)
        print(f"writing, loading and one response: {time.perf_counter() - started:.2f} s")
        samples = sampler.sample(prompts(32), SAMPLING, KEY)
        assert gap(trained, samples) < EXACT
    sampler.close()


def test_stop_strings(server: Running, trained: Trained, tmp_path: Path) -> None:
    sampler = trained.sampler(config(server), tmp_path / "servers")
    stopping = SAMPLING.model_copy(update={"stop": ("w77", "w5 ")})
    samples = sampler.sample(prompts(64), stopping, KEY)
    eos = trained.renderer.eos_ids
    by_string = [row for row in responses(samples) if row[-1] not in eos and len(row) < SAMPLING.max_new_tokens]
    print(f"{len(by_string)} of 64 responses ended with a stop string")
    assert by_string
    assert all("w77" not in text for text in samples.texts)
    sampler.close()


def test_a_server_killed_in_the_batch_leaves_its_requests_to_the_other(
    server: Running, model: Path, trained: Trained, tmp_path: Path
) -> None:
    with serving(model, tmp_path / "log", *TEMPERED) as other:
        sampler = trained.sampler(config(server, other, retries=2), tmp_path / "servers")
        sampler.sample(prompts(8), SAMPLING, KEY)  # both have the weights
        killer = threading.Timer(0.7, other.kill)
        killer.start()
        many = prompts(256)
        samples = sampler.sample(many, SAMPLING, KEY)
        assert not killer.is_alive(), "the batch was over before the kill"
        assert len(samples.texts) == len(many)
        assert gap(trained, samples) < EXACT
        trained.steps += 1
        assert len(sampler.sample(prompts(8), SAMPLING, KEY).texts) == 8
        sampler.close()


def test_ppo_samples_on_the_server(server: Running, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [" ".join(f"w{token}" for token in prompt.tokens) for prompt in prompts(64)]
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (tmp_path / "servers_taste.py").write_text(
        "def even(prompts, responses, rows):\n"
        "    words = [[int(word[1:]) for word in response.split() if word[1:].isdigit()] for response in responses]\n"
        "    return [sum(word % 2 == 0 for word in one) / max(1, len(one)) for one in words]\n"
    )
    ppo = {
        "prompts": {"path": str(file), "validation": 0.2},
        "iterations": 3,
        "rollout_batch": 32,
        "sampling": {"max_new_tokens": 64, "temperature": 0.7},
        "update": {"epochs": 2, "minibatches": 2, "lr": 1e-4},
        "evaluate": {"every": 3, "count": 8},
        "reward": [{"function": "servers_taste:even"}],
        "servers": {"urls": [server.url], "kind": "vllm", "max_logprob_gap": 0.01},
        "max_truncated": 1.0,
    }
    tree = {"name": "x", "device": "cpu", "model": {"base": str(model), "tune": "full"}, "ppo": ppo}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        run_recipe(parse_recipe(tree, "test"), tmp_path / "out", console=Heard())
    lines = read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")[1:]
    for line in lines:
        shown = {key: line[key] for key in ("ppo/policy/sampler_gap_rms", "ppo/policy/sampler_gap", "objective/kl")}
        print(shown, {key: round(line[key], 2) for key in ("time/rollout_seconds", "time/update_seconds")})
    assert len(lines) == 3
    assert all(line["ppo/policy/sampler_gap_rms"] < EXACT for line in lines)
    assert lines[-1]["objective/kl"] > 0  # the policy has moved, and the server with it
