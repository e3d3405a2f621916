"""From records to JSON: whole answers, and the pieces of a stream."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from keel.serve.records import Drawn, Heading, Order, Response, Scored

END_OF_STREAM = "data: [DONE]\n\n"


def generation_answer(order: Order, drawn: Drawn) -> dict[str, Any]:
    """The answer to a completion or a chat."""
    choices = []
    for index, response in enumerate(drawn.responses):
        message = {"message": {"role": "assistant", "content": response.text}}
        said: dict[str, Any] = message if order.asked.chat else {"text": response.text}
        choices.append({"index": index, **said, **_details(order, index, response)})
    kind = "chat.completion" if order.asked.chat else "text_completion"
    usage = {"usage": _usage(order, drawn), "weight_version": drawn.version}
    return {**_fields(order.heading, kind), "choices": choices, **usage}


def scoring_answer(heading: Heading, scored: Scored) -> dict[str, Any]:
    """The answer to a request for scores."""
    return {**_fields(heading, "score"), "scores": list(scored.scores), "cut": list(scored.cut)}


def piece(order: Order, index: int, text: str, **more: Any) -> dict[str, Any]:
    """A part of a response's text, in a stream; `more` is what else is said of the response."""
    said: dict[str, Any] = {"delta": {"content": text}} if order.asked.chat else {"text": text}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": None, **more}
    return {**_stream_fields(order), "choices": [choice]}


def first_piece(order: Order, index: int) -> dict[str, Any]:
    """How a chat's stream begins: with who speaks."""
    return piece(order, index, "", delta={"role": "assistant", "content": ""})


def last_piece(order: Order, index: int, drawn: Drawn, sent: str) -> dict[str, Any]:
    """What of a response's text was not `sent`, and all else that is said of it."""
    response = drawn.responses[index]
    rest = piece(order, index, response.text[len(sent) :], **_details(order, index, response))
    return {**rest, "weight_version": drawn.version}


def usage_piece(order: Order, drawn: Drawn) -> dict[str, Any]:
    """The end of a stream that was asked to count."""
    return {**_stream_fields(order), "choices": [], "usage": _usage(order, drawn)}


def event(tree: dict[str, Any]) -> str:
    """As a server-sent event."""
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"


def _fields(heading: Heading, kind: str) -> dict[str, Any]:
    return {"id": heading.id, "object": kind, "created": heading.created, "model": heading.model}


def _stream_fields(order: Order) -> dict[str, Any]:
    return _fields(order.heading, "chat.completion.chunk" if order.asked.chat else "text_completion")


def _details(order: Order, index: int, response: Response) -> dict[str, Any]:
    """What is said of a response beside its text."""
    ids = {"token_ids": list(response.token_ids), "prompt_token_ids": list(order.rows[index].tokens)}
    return {
        "logprobs": (_chat_logprobs if order.asked.chat else _logprobs)(response),
        "finish_reason": response.finish_reason,
        **(ids if order.asked.return_token_ids else {}),
    }


def _logprobs(response: Response) -> dict[str, Any] | None:
    if response.drawn_tokens is None:
        return None
    tokens = [token for token, _ in response.drawn_tokens]
    return {
        "tokens": tokens,
        "token_logprobs": [logprob for _, logprob in response.drawn_tokens],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)),
        "top_logprobs": None,
    }


def _chat_logprobs(response: Response) -> dict[str, Any] | None:
    if response.drawn_tokens is None:
        return None
    return {
        "content": [
            {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
            for token, logprob in response.drawn_tokens
        ]
    }


def _usage(order: Order, drawn: Drawn) -> dict[str, int]:
    """How many tokens were read, each prompt once, and drawn."""
    read = sum(len(row.tokens) for row in order.rows[:: order.asked.n])
    written = sum(len(one.token_ids) for one in drawn.responses)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
