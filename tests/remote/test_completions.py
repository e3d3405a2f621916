"""What is asked of a server for one response, and what of its answers is believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from keel.config.sampling import SamplingConfig
from keel.errors import UserError
from keel.remote.completions import Wanted, completion_call, read_completion
from keel.remote.server import Server, Stale

WANTED = Wanted(prompt=(7, 8), max_new_tokens=4, vocabulary=10, eos_ids={0, 1}, stopped=lambda ids: 5 in ids)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server("http://127.0.0.1:1")
    yield one
    one.close()


def answer(tokens: Any, logprobs: Any = None, **more: Any) -> dict[str, Any]:
    said = [-0.5] * len(tokens) if logprobs is None and isinstance(tokens, list) else logprobs
    choice = {"index": 0, "text": "x", "finish_reason": "stop", "token_ids": tokens}
    return {"choices": [{**choice, "logprobs": {"token_logprobs": said}, **more}]}


def test_the_request_says_all_that_the_recipe_does() -> None:
    config = SamplingConfig(max_new_tokens=9, temperature=0.7, stop=("\n\n",))
    call = completion_call((7, 8), config, seed=123, eos_ids={5, 2}, kind="vllm", model="policy")
    assert call.path == "/v1/completions"
    assert call.body == {
        "model": "policy",
        "prompt": [7, 8],
        "n": 1,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 123,
        "stop": ["\n\n"],
        "stop_token_ids": [2, 5],
        "logprobs": 0,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("tokens", [[3, 4, 0], [1], [3, 3, 3, 3], [3, 5], [2, 2, 2, 0]])
def test_a_response_that_is_over_is_taken(server: Server, tokens: list[int]) -> None:
    drawn = read_completion(server, answer(tokens, [-0.25] * (len(tokens) - 1) + [1e-6]), WANTED)
    assert drawn.tokens == tuple(tokens)
    assert drawn.logprobs == (*[-0.25] * (len(tokens) - 1), 0.0)  # what rounding put above 0 is 0


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (answer(None), "no token_ids"),
        (answer([]), "no token_ids"),
        (answer([3, 0], logprobs=[]), "0 log-probabilities for 2 tokens"),
        ({"choices": [{"token_ids": [3, 0], "logprobs": None}]}, "no log-probabilities for 2 tokens"),
        (answer([3, 0], [-1.0, math.nan]), "nan is no log-probability"),
        (answer([3, 0], [-1.0, None]), "None is no log-probability"),
        (answer([3, 0], [-math.inf, -1.0]), "-inf is no log-probability"),
        (answer([3, 0], [0.2, -1.0]), "0.2 is no log-probability"),
        (answer([3, 3, 3, 3, 0]), "drew 5 tokens where at most 4"),
        (answer([3, 10, 0]), "token id 10 is beyond the policy's vocabulary of 10"),
        (answer([3, -1, 0]), "token id -1 is beyond"),
        (answer([3, 4], finish_reason="abort"), "neither ends nor is at the limit of 4 .finish_reason 'abort'"),
        (answer([3, 0, 4, 1]), "goes on behind its end token"),
        (answer([3, 0], prompt_token_ids=[8]), "read another prompt, of 1 tokens and not 2"),
        ({"choices": []}, "no completion"),
        ({"error": "?"}, "no completion"),
        (None, "no completion"),
    ],
)
def test_another_answer_is_refused_with_the_servers_name(server: Server, given: Any, what: str) -> None:
    with pytest.raises(UserError, match=rf"the server http://127.0.0.1:1 does not answer what was asked: .*{what}"):
        read_completion(server, given, WANTED)


def test_a_response_under_other_weights_counts_as_a_failure(server: Server) -> None:
    told = answer([3, 0]) | {"weight_version": "step-1"}
    assert read_completion(server, told, WANTED, "step-1").tokens == (3, 0)
    assert read_completion(server, answer([3, 0]), WANTED, "step-1").tokens == (3, 0)  # one that does not say
    with pytest.raises(Stale, match="under the weights step-1 and not step-2"):
        read_completion(server, told, WANTED, "step-2")
