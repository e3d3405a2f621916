"""The HTTP side, over real connections, with a policy that needs no model."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serve.support import Answer, Lengths, Parrot, ask, in_threads, serving, until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that is asked nothing that would change it."""
    with serving(Parrot(), [Lengths("long"), Lengths("longer")], seed=0) as (url, _):
        yield url


def error_of(answer: Answer) -> dict[str, Any]:
    """An error in OpenAI's shape, and nothing beside it."""
    assert answer.tree.keys() == {"error"}
    error: dict[str, Any] = answer.tree["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# --- answers ---


def test_a_completion_in_openais_shape(url: str) -> None:
    body = {"prompt": ["ab", [7, 8, 9]], "n": 2, "seed": 5, "logprobs": 0, "return_token_ids": True, "model": "parrot"}
    answer = ask(url, COMPLETIONS, body)
    assert answer.status == 200
    tree = answer.tree
    assert tree["id"].startswith("cmpl-")
    assert tree["created"] > 1_700_000_000
    assert (tree["object"], tree["model"], tree["weight_version"]) == ("text_completion", "parrot", "0")
    assert tree["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert [choice["index"] for choice in tree["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in tree["choices"]] == ["5/0", "5/1", "5/0", "5/1"]
    assert tree["choices"][3] == {
        "index": 3,
        "text": "5/1",
        "logprobs": {
            "tokens": ["5", "/", "1"],
            "token_logprobs": [-1.0, -1.0, -1.0],
            "text_offset": [0, 1, 2],
            "top_logprobs": None,
        },
        "finish_reason": "stop",
        "token_ids": [53, 47, 49],
        "prompt_token_ids": [7, 8, 9],
    }
    plain = ask(url, COMPLETIONS, {"prompt": "ab", "seed": 5}).tree["choices"]
    assert plain == [{"index": 0, "text": "5/0", "logprobs": None, "finish_reason": "stop"}]


def test_a_chat_in_openais_shape(url: str) -> None:
    tree = ask(url, CHAT, {"messages": HI, "seed": 5, "logprobs": True}).tree
    assert (tree["object"], tree["id"][:9]) == ("chat.completion", "chatcmpl-")
    (choice,) = tree["choices"]
    assert choice["message"] == {"role": "assistant", "content": "5/0"}
    assert choice["logprobs"]["content"][1] == {"token": "/", "logprob": -1.0, "bytes": [47], "top_logprobs": []}
    assert tree["usage"]["prompt_tokens"] == len("user:hi")


def test_a_prompt_that_stands_twice_in_a_request_has_two_answers(url: str) -> None:
    choices = ask(url, COMPLETIONS, {"prompt": ["a", "b", "a"], "n": 2, "seed": 1}).tree["choices"]
    assert [choice["text"] for choice in choices] == ["1/0", "1/1", "1/0", "1/1", "1/2", "1/3"]


def test_without_a_seed_the_numbers_are_fresh_and_follow_the_servers_own_seed() -> None:
    texts = []
    for seed in (3, 3, None):
        with serving(Parrot(), seed=seed) as (url, _):
            texts.append([ask(url, COMPLETIONS, {"prompt": "a"}).tree["choices"][0]["text"] for _ in range(2)])
    assert texts[0] == texts[1]
    assert len({text for pair in (texts[0], texts[2]) for text in pair}) == 4


def test_scores_in_order_and_the_models_by_name(url: str) -> None:
    items = [{"prompt": "p", "response": "four"}, {"prompt": HI, "response": "a", "ended": False}]
    tree = ask(url, "/v1/score", {"model": "longer", "items": items}).tree
    assert (tree["scores"], tree["cut"], tree["model"]) == ([4.0, 1.0], [False, False], "longer")
    error = error_of(ask(url, "/v1/score", {"items": items}))
    assert error["message"] == "model is missing; there are long, longer"
    listed = ask(url, "/v1/models", method="GET").tree
    assert listed["object"] == "list"
    assert [(one["id"], one["object"], one["max_model_len"]) for one in listed["data"]] == [
        ("parrot", "model", 40),
        ("long", "model", None),
        ("longer", "model", None),
    ]


def test_health(url: str) -> None:
    assert ask(url, "/health", method="GET").tree == {"status": "ok", "weight_version": "0"}
    with serving(None, [Lengths()]) as (alone, _):
        assert ask(alone, "/health", method="GET").tree == {"status": "ok"}
        assert ask(alone, COMPLETIONS, {"prompt": "a"}).status == 404


# --- refusals ---


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        (COMPLETIONS, b"{", 400, None, None),
        (COMPLETIONS, b"[" * 100_000, 400, None, None),
        (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo", None),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, 404, "model", "model_not_found"),
        (COMPLETIONS, {"prompt": "bad"}, 400, None, None),
        (COMPLETIONS, {"prompt": "a" * 30, "max_tokens": 11}, 400, "prompt", "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 40}]}, 400, "messages", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 501}, 400, None, None),
        (COMPLETIONS, {"prompt": "a", "n": 10**15}, 400, None, None),
        ("/v1/score", {"model": "long", "items": [{"prompt": "a", "response": "b"}] * 1001}, 400, None, None),
        ("/v1/embeddings", {}, 404, None, None),
        ("/v1/models", {}, 405, None, None),
        ("/update_weights", {"path": "x", "version": "1"}, 403, None, None),
    ],
)
def test_errors_have_openais_shape(
    url: str, path: str, body: Any, status: int, param: str | None, code: str | None
) -> None:
    answer = ask(url, path, body)
    error = error_of(answer)
    assert (answer.status, error["type"], error["param"], error["code"]) == (
        status,
        "invalid_request_error",
        param,
        code,
    )
    assert error["message"]


def test_the_context_is_refused_with_its_numbers_and_a_chat_takes_what_is_left(url: str) -> None:
    error = error_of(ask(url, COMPLETIONS, {"prompt": "a" * 30, "max_tokens": 11}))
    assert error["message"] == (
        "a prompt of 30 tokens and 11 for the response pass the model's context of 40; shorten the prompt, or lower "
        "max_tokens to 10"
    )
    assert ask(url, COMPLETIONS, {"prompt": "a" * 30, "max_tokens": 10}).status == 200
    long = [{"role": "user", "content": "a" * 33}]
    assert ask(url, CHAT, {"messages": long, "seed": 12}).tree["choices"][0]["message"]["content"] == "12"


def test_what_is_no_json_by_its_own_word_is_refused(url: str) -> None:
    """So that a page in a browser cannot ask: it would have to say so, and be told no."""
    answer = ask(url, COMPLETIONS, {"prompt": "a"}, Content_Type="text/plain")
    assert error_of(answer)["message"] == "the request is no JSON; send Content-Type: application/json"


def test_without_a_token_only_this_machine_is_answered(url: str) -> None:
    answer = ask(url, COMPLETIONS, {"prompt": "a"}, Host="evil.example:8000")
    assert answer.status == 403
    assert "answers to localhost, not to evil.example" in error_of(answer)["message"]
    assert ask(url, COMPLETIONS, {"prompt": "a"}, Host="localhost:9").status == 200


def test_a_token_opens_everything_but_the_health() -> None:
    with serving(Parrot(), token="sesame") as (url, _):
        for key in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer sésame"},
        ):
            answer = ask(url, COMPLETIONS, {"prompt": "a"}, **key)
            assert (answer.status, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert ask(url, COMPLETIONS, {"prompt": "a"}, Authorization="Bearer sesame", Host="a.example").status == 200
        assert ask(url, "/v1/models", method="GET").status == 401
        assert ask(url, "/health", method="GET").status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_all_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keel.serve.app._BODY_BYTES", 1 << 20)
    answer = ask(url, COMPLETIONS, {"prompt": "a" * (1 << 20)})
    assert (answer.status, error_of(answer)["message"]) == (413, "the request has more than 1 MiB; send several")


def test_a_fault_of_the_server_is_said_to_be_one(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Parrot):
        def draw(self, *_: Any) -> Any:
            raise RuntimeError("secret")

    with serving(Broken()) as (url, _):
        answer = ask(url, COMPLETIONS, {"prompt": "a"})
        assert (answer.status, error_of(answer)["type"]) == (500, "server_error")
        assert b"secret" not in answer.content
        streamed = ask(url, COMPLETIONS, {"prompt": "a", "stream": True})
        assert streamed.events[-1]["error"]["type"] == "server_error"
        assert ask(url, "/health", method="GET").status == 200
    assert "RuntimeError: secret" in capfd.readouterr().err


# --- many at once ---


def test_many_requests_cost_about_one_round() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot) as (url, worker):
        wait = in_threads(64, lambda n: ask(url, COMPLETIONS, {"prompt": f"{n}", "seed": n}))
        until(lambda: sum(parrot.rounds) + len(worker._waiting) == 64)
        parrot.gate.set()
        answers = wait()
    assert [answer.tree["choices"][0]["text"] for answer in answers] == [f"{n}/0" for n in range(64)]
    assert len(parrot.rounds) <= 2


def test_other_settings_are_another_round() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot) as (url, worker):
        wait = in_threads(7, lambda n: ask(url, COMPLETIONS, {"prompt": "a", "temperature": 0.5 + n % 2}))
        until(lambda: sum(parrot.rounds) + len(worker._waiting) == 7)
        parrot.gate.set()
        wait()
    assert sum(parrot.rounds) == 7
    assert len(parrot.rounds) in (2, 3)


def test_a_full_queue_sends_away() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot, max_queue=3) as (url, worker):
        first = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a"}))
        until(lambda: parrot.rounds)
        waiting = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a", "n": 3}))
        until(lambda: worker._waiting)
        answer = ask(url, COMPLETIONS, {"prompt": "a"}, X_Request_Id="again")
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert error_of(answer)["type"] == "rate_limit_error"
        parrot.gate.set()
        assert [one.status for one in first() + waiting()] == [200, 200]
        assert ask(url, COMPLETIONS, {"prompt": "a"}, X_Request_Id="again").status == 200


def test_a_client_that_leaves_before_its_turn_is_not_answered() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot) as (url, worker):
        first = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a"}))
        until(lambda: parrot.rounds)
        for body in ({"prompt": "b", "n": 3}, {"prompt": "c", "n": 5, "stream": True}):
            connection = http.client.HTTPConnection(urlsplit(url).netloc)
            connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
            until(lambda: worker._waiting)
            if "stream" in body:
                connection.getresponse()  # its headers are there at once
            (job,) = worker._waiting
            connection.sock.close()
            connection.close()
            until(job.future.cancelled)
            worker._waiting.clear()
        parrot.gate.set()
        assert first()[0].status == 200
    assert parrot.rounds == [1]


def test_an_id_that_comes_again_is_computed_once() -> None:
    parrot = Parrot()
    body = {"prompt": "a", "n": 2}
    with serving(parrot, [Lengths()]) as (url, _):
        one = ask(url, COMPLETIONS, body, X_Request_Id="one")
        again = ask(url, COMPLETIONS, body, X_Request_Id="one")
        other = ask(url, COMPLETIONS, body, X_Request_Id="two")
        assert one.content == again.content
        assert one.tree["id"] == "cmpl-one"
        assert other.tree["choices"] != one.tree["choices"]  # no seed was given
        assert parrot.rounds == [2, 2]
        parrot.gate.clear()
        wait = in_threads(5, lambda _: ask(url, COMPLETIONS, body, X_Request_Id="three"))
        until(lambda: len(parrot.rounds) == 3)
        parrot.gate.set()
        assert len({answer.content for answer in wait()}) == 1
        assert parrot.rounds == [2, 2, 2]
        refused = ask(url, COMPLETIONS, {"prompt": "b"}, X_Request_Id="one")
        assert (refused.status, parrot.rounds) == (400, [2, 2, 2])


def test_an_answer_outlives_the_client_that_began_it() -> None:
    """A client that timed out asks again, and has what was computed meanwhile."""
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot) as (url, _):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        headers = {"Content-Type": "application/json", "X-Request-Id": "one"}
        connection.request("POST", COMPLETIONS, json.dumps({"prompt": "a"}), headers)
        until(lambda: parrot.rounds)
        connection.close()
        wait = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a"}, X_Request_Id="one"))
        parrot.gate.set()
        assert wait()[0].status == 200
    assert parrot.rounds == [1]


# --- streams ---


def test_a_stream_of_a_completion_token_by_token(url: str) -> None:
    body = {"prompt": "a", "n": 2, "seed": 5, "stream": True, "stream_options": {"include_usage": True}}
    answer = ask(url, COMPLETIONS, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, usage = answer.events
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    pieces = [(event["choices"][0]["index"], event["choices"][0]["text"]) for event in events]
    assert pieces == [(0, "5"), (0, "/"), (0, "0"), (1, "5"), (1, "/"), (1, "1"), (0, ""), (1, "")]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * 6 + ["stop"] * 2
    assert [event.get("weight_version") for event in events[-2:]] == ["0", "0"]


def test_a_stream_of_a_chat_begins_with_who_speaks(url: str) -> None:
    events = ask(url, CHAT, {"messages": HI, "seed": 5, "stream": True}).events
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:]] == ["5", "/", "0", ""]
    assert not any("role" in delta for delta in deltas[1:])
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_a_stream_with_what_is_said_of_tokens_has_a_response_in_one_piece(url: str) -> None:
    body = {"prompt": "a", "seed": 5, "logprobs": 0, "return_token_ids": True}
    whole = ask(url, COMPLETIONS, body).tree["choices"]
    (event,) = ask(url, COMPLETIONS, {**body, "stream": True}).events
    assert event["choices"] == whole


def test_a_stop_string_is_never_streamed(url: str) -> None:
    body = {"prompt": "a", "seed": 52, "stream": True, "stop": ["2/1", "x"]}
    pieces = [event["choices"][0]["text"] for event in ask(url, COMPLETIONS, body).events]
    assert pieces == ["5", "2/0", ""]  # a parrot does not stop


def test_a_stream_that_comes_again_is_the_same_answer() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot) as (url, _):

        def text(_: int) -> str:
            events = ask(url, COMPLETIONS, {"prompt": "a", "stream": True}, X_Request_Id="one").events
            return "".join(event["choices"][0]["text"] for event in events)

        wait = in_threads(3, text)
        until(lambda: parrot.rounds)
        time.sleep(0.2)  # so that all of them listen
        parrot.gate.set()
        texts = {*wait(), text(0)}
    assert len(texts) == 1
    assert len(texts.pop()) > 10
    assert parrot.rounds == [1]


# --- weights ---


def test_every_answer_says_under_which_weights_it_was_drawn() -> None:
    parrot = Parrot()
    parrot.gate.clear()
    with serving(parrot, updates=True) as (url, worker):
        early = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a"}))
        until(lambda: parrot.rounds)
        update = in_threads(1, lambda _: ask(url, "/update_weights", {"path": "new", "version": "7"}))
        until(lambda: len(worker._waiting) == 1)
        late = in_threads(1, lambda _: ask(url, COMPLETIONS, {"prompt": "a"}))
        until(lambda: len(worker._waiting) == 2)
        parrot.gate.set()
        assert update()[0].tree == {"weight_version": "7"}
        assert [one()[0].tree["weight_version"] for one in (early, late)] == ["0", "7"]
        assert ask(url, "/health", method="GET").tree["weight_version"] == "7"
        refused = ask(url, "/update_weights", {"path": "nowhere", "version": "8"})
        assert (refused.status, error_of(refused)["message"]) == (400, "path: there is no directory nowhere")
        assert ask(url, "/health", method="GET").tree["weight_version"] == "7"
