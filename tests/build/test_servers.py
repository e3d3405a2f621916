"""PPO sampling on servers, and rewards from a service, through the composition root."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from keel.build import run_recipe
from keel.config.recipe import Recipe, parse_recipe
from keel.errors import UserError
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from keel.text.render import Renderer
from tests.pipeline.support import Heard
from tests.remote.fake import Asked, FakeServer, Reply
from tests.remote.policy import ServedPolicy
from tests.worlds import save_tiny_lm, tiny_codec, tiny_lm

ITERATIONS, BATCH, TOKENS, HELD_OUT = 2, 8, 5, 3
PPO: dict[str, Any] = {
    "iterations": ITERATIONS,
    "rollout_batch": BATCH,
    "sampling": {"max_new_tokens": TOKENS, "temperature": 0.8},
    "update": {"epochs": 2, "minibatches": 2, "lr": 1e-3},
    "evaluate": {"every": 1, "count": HELD_OUT},
    "reward": [{"function": "keel.demo:polite"}],
    "max_truncated": 1.0,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_tiny_lm(tmp_path / "model"))


def recipe_of(model: str, tmp_path: Path, tune: str = "full", **changes: Any) -> Recipe:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Could you {n}"}) + "\n" for n in range(20)))
    ppo = {**PPO, "prompts": {"path": str(file), "validation": 0.3}, **changes}
    return parse_recipe({"name": "x", "device": "cpu", "model": {"base": model, "tune": tune}, "ppo": ppo}, "test")


def keels_uniforms() -> dict[int, list[float]]:
    """The random numbers of the whole stage, by the seeds that the servers are sent."""
    draws = Draws(0, "ppo")
    named = [("held-out", 0, sample) for sample in range(HELD_OUT)]
    named += [("rollout", n // BATCH, n) for n in range(ITERATIONS * BATCH)]
    named += [("servers", 0, sample) for sample in range(4)]
    return {
        draws.integer(purpose, iteration=iteration, sample=sample): draws.uniforms(
            purpose, iteration=iteration, samples=[sample], length=TOKENS
        )[0].tolist()
        for purpose, iteration, sample in named
    }


@pytest.fixture
def server() -> Iterator[FakeServer]:
    policy = ServedPolicy(tiny_lm(seed=9), Renderer(tiny_codec()), uniforms=keels_uniforms())
    with FakeServer(policy) as fake:
        yield fake


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_ppo_on_a_server_ends_as_ppo_in_process_on_the_same_draws(
    model: str, tmp_path: Path, server: FakeServer, tune: str
) -> None:
    changes: dict[str, Any] = {} if tune == "full" else {"critic": "none", "advantage": {"kind": "reward_to_go"}}
    run_recipe(recipe_of(model, tmp_path, tune, **changes), tmp_path / "here", console=Heard())
    servers = {"urls": [server.url], "kind": "keel"}
    run_recipe(recipe_of(model, tmp_path, tune, servers=servers, **changes), tmp_path / "there", console=Heard())
    here, there = (load_file(tmp_path / run / "ppo" / "model" / "model.safetensors") for run in ("here", "there"))
    start = load_file(Path(model) / "model.safetensors")
    assert any((here[name] - start[name]).abs().max() > 1e-4 for name in start)
    for name, weight in here.items():
        torch.testing.assert_close(there[name], weight, rtol=0, atol=1e-5)
    lines = read_lines(tmp_path / "there" / "ppo" / "metrics.jsonl")
    assert [line["ppo/policy/sampler_gap_rms"] < 1e-4 for line in lines[1:]] == [True, True]
    assert server.paths().count("/update_weights") == 1 + ITERATIONS  # at the start, and each new policy
    assert not (tmp_path / "there" / "ppo" / "servers").exists()


def test_a_server_with_another_gap_than_allowed_stops_the_run(model: str, tmp_path: Path) -> None:
    policy = ServedPolicy(tiny_lm(), Renderer(tiny_codec()))

    def drifting(asked: Asked) -> Reply:
        """Stops taking weights after the check."""
        if asked.path == "/update_weights" and policy.loaded:
            policy.version = asked.body["version"]
            return Reply()
        return policy(asked)

    update = {"epochs": 2, "minibatches": 2, "lr": 3e-2}
    with FakeServer(drifting) as fake:
        servers = {"urls": [fake.url], "kind": "keel", "max_logprob_gap": 0.01}
        recipe = recipe_of(model, tmp_path, servers=servers, update=update)
        with pytest.raises(
            UserError, match=r"the servers' log-probabilities differ from the trainer's by 0\.\d+ \(root"
        ):
            run_recipe(recipe, tmp_path / "out", console=Heard())


def test_a_stage_is_the_same_on_other_servers(model: str, tmp_path: Path, server: FakeServer) -> None:
    for url in (server.url, "http://127.0.0.1:1"):
        servers = {"urls": [url], "kind": "keel"}
        console = Heard()
        run_recipe(recipe_of(model, tmp_path, servers=servers), tmp_path / "out", console=console)
    assert console.said[0] == "ppo: finished before, skipped."
    with pytest.raises(UserError, match=r"ppo\.servers"):
        run_recipe(recipe_of(model, tmp_path), tmp_path / "out", console=Heard())


def test_a_service_is_a_reward_like_others(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(asked: Asked) -> Reply:
        assert asked.path == "/v1/score"
        return Reply({"scores": [float(len(item["response"])) for item in asked.body["items"]]})

    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    with FakeServer(judge) as fake:
        source = {"service": fake.url, "name": "judge", "weight": 0.5, "token_env": "JUDGE_TOKEN"}
        reward = [source, {"function": "keel.demo:polite", "weight": 0.0}]
        run_recipe(recipe_of(model, tmp_path, reward=reward), tmp_path / "out", console=Heard())
        assert {asked.token for asked in fake.asked} == {"Bearer secret"}
    line = read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")[-1]
    assert line["reward/judge"] > 0
    assert line["objective/scores"] == pytest.approx(0.5 * line["reward/judge"])
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(UserError, match="token_env of the reward judge names the environment variable JUDGE_TOKEN"):
        run_recipe(recipe_of(model, tmp_path, reward=reward), tmp_path / "other", console=Heard())
