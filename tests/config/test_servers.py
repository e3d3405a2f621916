"""Servers in a recipe: addresses are checked, and keys that would have no effect are refused."""

from __future__ import annotations

from typing import Any

import pytest

from keel.config.ppo import PPOConfig
from keel.config.recipe import parse_recipe
from keel.config.rewards import RewardSource
from keel.errors import UserError

URL = "http://127.0.0.1:8000"


def ppo(**stage: Any) -> PPOConfig:
    recipe = parse_recipe({"name": "x", "model": {"base": "x"}, "ppo": {"prompts": "p", **stage}}, "test")
    assert recipe.ppo is not None
    return recipe.ppo


def reward(**source: Any) -> RewardSource:
    return ppo(reward=[source]).reward[0]


def test_an_address_is_a_root() -> None:
    config = ppo(reward=[{"function": "math:cos"}], servers={"urls": [f"{URL}/", "https://other"]}).servers
    assert config is not None
    assert config.urls == (URL, "https://other")


@pytest.mark.parametrize(
    ("servers", "what"),
    [
        ({"urls": ["127.0.0.1:8000"]}, "is no address of a server; give one such as http://"),
        ({"urls": [f"{URL}/v1"]}, f"ends with /v1; give the server's root, {URL}"),
        ({"urls": [URL, f"{URL}/"]}, "stands there twice"),
        ({"urls": []}, "at least 1 item"),
        ({"urls": [URL], "max_logprob_gap": 0}, "above 0, not 0"),
    ],
)
def test_another_address_is_refused(servers: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        ppo(reward=[{"function": "math:cos"}], servers=servers)


def test_keys_of_the_sampler_in_process_have_no_effect() -> None:
    with pytest.raises(UserError, match=r"batch has no effect with ppo\.servers"):
        ppo(reward=[{"function": "math:cos"}], servers={"urls": [URL]}, sampling={"batch": 4})


def test_staleness_has_no_limit_without_overlap() -> None:
    with pytest.raises(UserError, match="max_staleness has no effect without overlap"):
        ppo(reward=[{"function": "math:cos"}], servers={"urls": [URL], "max_staleness": 0.3})


def test_a_service_is_one_address_or_several() -> None:
    assert reward(service=URL, name="judge").service == (URL,)
    source = reward(service=[URL, "http://b"], name="judge", timeout=5, token_env="TOKEN")
    assert source.service == (URL, "http://b")
    assert source.logged_as == "judge"
    schema = RewardSource.model_json_schema()["properties"]["service"]["anyOf"]
    assert [one["type"] for one in schema] == ["string", "array", "null"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ({"service": URL}, "a service needs a `name:`"),
        ({"service": URL, "function": "math:cos", "name": "x"}, "either `model:` or `function:` or `service:`"),
        ({"service": URL, "name": "x", "workers": 2}, "workers has no effect on a service"),
        ({"service": URL, "name": "x", "on_error": "none"}, "on_error has no effect on a service"),
        ({"service": URL, "name": "x", "label": 1}, "label has no effect on a service"),
        ({"service": URL, "name": "x", "combine": "min"}, "combine has no effect on a service"),
        ({"function": "math:cos", "token_env": "TOKEN"}, "token_env has no effect on a function"),
        ({"model": "judge", "timeout": 3}, "timeout has no effect on a model"),
        ({"service": "judge:80", "name": "x"}, "is no address of a server"),
    ],
)
def test_other_services_are_refused(source: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        reward(**source)
