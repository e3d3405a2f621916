from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keel.config.sampling import SamplingConfig
from keel.schema import Message
from keel.serve.records import Ids, ScoreItem
from keel.serve.refusal import Refusal
from keel.serve.requests import read_chat, read_completion, read_scoring, read_update

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", ("hi",)),
        (["hi", "ho"], ("hi", "ho")),
        ([3, 0, 2], (Ids((3, 0, 2)),)),
        ([[3], [0, 2]], (Ids((3,)), Ids((0, 2)))),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt: Any, expected: Any) -> None:
    assert read_completion({"prompt": prompt}).prompts == expected


def test_what_is_not_said_is_as_openai_has_it() -> None:
    asked = read_completion({"prompt": "hi"})
    assert (asked.n, asked.max_tokens, asked.seed, asked.logprobs, asked.stream) == (1, 16, None, False, False)
    assert asked.sampling == SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop=())
    assert read_chat({"messages": HI}).max_tokens is None


def test_all_that_can_be_said() -> None:
    body = {
        **{"prompt": "hi", "model": "m", "n": 3, "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 7},
        **{"seed": -4, "stop": ["a", "b"], "stop_token_ids": [8, 9], "return_token_ids": True, "logprobs": 0},
        **{"stream": True, "stream_options": {"include_usage": True}, "user": "me", "presence_penalty": 0.0},
    }
    asked = read_completion(body)
    assert asked.sampling == SamplingConfig(temperature=0.0, top_p=0.5, top_k=7, stop=("a", "b"))
    assert (asked.model, asked.n, asked.max_tokens, asked.seed) == ("m", 3, 5, -4)
    assert asked.stop_token_ids == {8, 9}
    assert (asked.return_token_ids, asked.logprobs, asked.stream, asked.stream_usage) == (True,) * 4
    assert read_completion({"prompt": "hi", "stop": "a", "top_k": -1}).sampling == SamplingConfig(stop=("a",))


def test_a_dialogue_may_come_in_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_chat({"messages": [*HI, {"role": "assistant", "content": parts}], "max_completion_tokens": 9})
    assert asked.prompts == ((Message("user", "hi"), Message("assistant", "ab")),)
    assert asked.max_tokens == 9


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        *(
            ({"prompt": "hi", **one}, next(iter(one)))
            for one in (
                {"n": 0},
                {"n": True},
                {"n": 1.5},
                {"max_tokens": 0},
                {"max_tokens": "5"},
                {"temperature": -0.1},
                {"temperature": "hot"},
                {"temperature": float("nan")},
                {"top_p": 0},
                {"top_p": 1.1},
                {"top_k": -2},
                {"seed": "a"},
                {"stop": [""]},
                {"stop": 3},
                {"stop": [3]},
                {"stop_token_ids": ["a"]},
                {"logprobs": 1},
                {"logprobs": True},
                {"logprobs": 0, "top_p": 0.5},
                {"stream": 1},
                {"stream_options": {"include_usage": True}},
                {"model": 3},
                {"presence_penalty": 0.5},
                {"best_of": 2},
                {"echo": True},
                {"logit_bias": {"5": 1}},
                {"min_p": 0.1},
                {"ignore_eos": True},
                {"temprature": 0.5},
            )
        ),
    ],
)
def test_what_cannot_be_answered_names_its_key(body: Any, param: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        read_completion(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param is None or str(caught.value).startswith(param)


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (read_chat, {"messages": []}, "messages"),
        (read_chat, {"messages": [{"role": "user"}]}, "messages[0]"),
        (read_chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        (read_chat, {"messages": HI, "tools": [{}]}, "tools"),
        (read_chat, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
        (read_chat, {"messages": HI, "logprobs": 0}, "logprobs"),
        (read_scoring, {}, "items"),
        (read_scoring, {"items": []}, "items"),
        (read_scoring, {"items": [{"prompt": "a"}]}, "items[0].response"),
        (
            read_scoring,
            {"items": [{"prompt": "a", "response": "b"}, {"prompt": 1, "response": "b"}]},
            "items[1].prompt",
        ),
        (read_scoring, {"items": [{"prompt": "a", "response": "b", "ended": 1}]}, "items[0].ended"),
        (read_scoring, {"items": [{"prompt": "a", "response": "b", "end": True}]}, "items[0].end"),
        (read_update, {"path": "x"}, "version"),
        (read_update, {"path": 1, "version": "1"}, "path"),
    ],
)
def test_the_other_requests_are_as_strict(read: Callable[[Any], Any], body: Any, param: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(body)
    assert caught.value.param == param


def test_a_request_for_scores() -> None:
    asked = read_scoring({"items": [{"prompt": HI, "response": "ho", "ended": False}, {"prompt": "a", "response": ""}]})
    assert asked.items == (ScoreItem((Message("user", "hi"),), "ho", False), ScoreItem("a", "", True))
