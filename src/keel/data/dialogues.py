"""Chat messages, whole dialogues split at their last turn, and what looks odd in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from keel.data.reasons import Reason, Unusable
from keel.schema import Dialogue, Message

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}  # sharegpt's names

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_MARKER = re.compile(r"\b(?:Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_messages(value: Iterable[Any], field: str) -> tuple[Message, ...]:
    """Messages from their JSON form, [{"role": …, "content": …}, …]; other keys of a message are not read.

    sharegpt's form, [{"from": "human", "value": …}, …], is read as well.
    Raises Unusable (wrong type) with the field's name and what is wrong.
    """
    return tuple(_parse_message(item, field) for item in value)


def _parse_message(item: Any, field: str) -> Message:
    if isinstance(item, dict) and isinstance(item.get("role"), str):
        role, given, content = item["role"], item["role"], item.get("content")
    elif isinstance(item, dict) and isinstance(item.get("from"), str):
        role, given, content = _SPEAKERS.get(item["from"], ""), item["from"], item.get("value")
    else:
        raise Unusable(Reason.WRONG_TYPE, f'{field}: a message is {{"role": …, "content": …}}')
    if role not in ROLES:
        known = ", ".join(ROLES if "role" in item else _SPEAKERS)
        raise Unusable(Reason.WRONG_TYPE, f"{field}: role “{given}” is none of {known}")
    if not isinstance(content, str):
        raise Unusable(Reason.WRONG_TYPE, f"{field}: the content of a message is not text")
    return Message(role, content)


def parse_transcript(text: str) -> tuple[Message, ...] | None:
    """Messages of a whole dialogue written as one text in the manner of hh-rlhf, or None if it is no such text.

    "\\n\\nHuman: Hi.\\n\\nAssistant: Hello." is two messages, user and assistant, without the white space around them.
    A marker that does not begin a paragraph begins no turn.
    """
    turns = list(_TURN.finditer(text))
    if not turns or turns[0].start() != 0:
        return None
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    return tuple(
        Message(_TRANSCRIPT_ROLES[turn[1]], text[turn.end() : end].strip())
        for turn, end in zip(turns, ends, strict=True)
    )


def split_last_turn(messages: tuple[Message, ...], field: str) -> tuple[tuple[Message, ...], str]:
    """(the messages before the last one, its content). Raises Unusable if the last one is not the assistant's."""
    if not messages or messages[-1].role != "assistant":
        raise Unusable(Reason.WRONG_TYPE, f"{field}: the dialogue does not end with the assistant's turn")
    return messages[:-1], messages[-1].content


def as_messages(prompt: Dialogue) -> tuple[Message, ...]:
    """A dialogue as messages; plain text is one message of the user."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def with_system(prompt: Dialogue, system: str) -> Dialogue:
    """The dialogue with a system message, unless it has one; an empty text is no dialogue."""
    if not prompt or (not isinstance(prompt, str) and any(message.role == "system" for message in prompt)):
        return prompt
    return (Message("system", system), *as_messages(prompt))


def without_system(prompt: Dialogue, system: str | None) -> Dialogue:
    """What the row said itself, before `with_system`."""
    if system is None or isinstance(prompt, str) or prompt[:1] != (Message("system", system),):
        return prompt
    return prompt[1:]


def continue_prompt(prompt: Dialogue, before: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    """The whole prompt of a response that came as messages, `before` being those in front of the response.

    They may repeat the prompt (and add to either end of it), or go on from where it stops.
    Raises Unusable (prompts differ) if they do neither.
    """
    messages = as_messages(prompt)
    if before[: len(messages)] == messages or before[-len(messages) :] == messages:
        return before
    if not before or before[0].role in ("assistant", "tool"):
        return messages + before
    raise Unusable(Reason.PROMPTS_DIFFER, f"the messages of {field} do not begin with the prompt")


def repeated_role(messages: Iterable[Message]) -> str | None:
    """The first role that has two turns in a row, if any; results of several tools may follow each other."""
    for one, two in pairwise(messages):
        if one.role == two.role != "tool":
            return one.role
    return None


def role_marker(text: str) -> str | None:
    """The first "Human:" or "Assistant:" inside a text, if any, in quotes."""
    found = _MARKER.search(text)
    return f"“{found[0]}”" if found else None
