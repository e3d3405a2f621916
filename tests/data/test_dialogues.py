from __future__ import annotations

import pytest

from keel.data.dialogues import continue_prompt, parse_transcript, repeated_role, role_marker
from keel.data.reasons import Reason, Unusable
from keel.schema import Dialogue, Message

USER = Message("user", "Hi")
REPLY = Message("assistant", "Hello")
MORE = Message("user", "And?")
TOOL = Message("tool", "42")
SYSTEM = Message("system", "Be kind.")


def test_a_transcript_is_cut_at_markers_that_begin_a_paragraph() -> None:
    text = "\n\nHuman:  Who said\n\n “so”? Human: me.\nHuman: I\n\nAssistant: You: did.\n\nHuman:\n\nAssistant: "
    assert parse_transcript(text) == (
        Message("user", "Who said\n\n “so”? Human: me.\nHuman: I"),
        Message("assistant", "You: did."),
        Message("user", ""),
        Message("assistant", ""),
    )


def test_a_transcript_may_lack_its_leading_empty_lines() -> None:
    assert parse_transcript("Human: Hi\n\nAssistant: Hello") == (USER, REPLY)


@pytest.mark.parametrize("text", ["", "Hello", "Well.\n\nHuman: Hi\n\nAssistant: Hello", "Humans: Hi", "human: Hi"])
def test_other_texts_are_no_transcripts(text: str) -> None:
    assert parse_transcript(text) is None


@pytest.mark.parametrize(
    ("prompt", "before", "whole"),
    [
        ("Hi", (), (USER,)),
        ("Hi", (USER,), (USER,)),
        ((USER,), (), (USER,)),
        ((USER,), (USER, REPLY, MORE), (USER, REPLY, MORE)),
        ((USER,), (SYSTEM, USER), (SYSTEM, USER)),
        ((USER,), (REPLY, MORE), (USER, REPLY, MORE)),
        ((USER, REPLY), (TOOL,), (USER, REPLY, TOOL)),
        ((), (USER,), (USER,)),
    ],
)
def test_messages_before_the_response_repeat_or_go_on_from_the_prompt(
    prompt: Dialogue, before: tuple[Message, ...], whole: tuple[Message, ...]
) -> None:
    assert continue_prompt(prompt, before, "chosen") == whole


@pytest.mark.parametrize("before", [(MORE,), (SYSTEM, MORE), (SYSTEM,)])
def test_messages_that_belong_to_another_prompt(before: tuple[Message, ...]) -> None:
    with pytest.raises(Unusable) as caught:
        continue_prompt("Hi", before, "chosen")
    assert caught.value.reason is Reason.PROMPTS_DIFFER


def test_repeated_roles() -> None:
    assert repeated_role([USER, REPLY, MORE, REPLY]) is None
    assert repeated_role([USER, REPLY, REPLY, MORE]) == "assistant"
    assert repeated_role([USER, MORE]) == "user"
    assert repeated_role([USER, REPLY, TOOL, TOOL, REPLY]) is None


def test_role_markers() -> None:
    assert role_marker("Fine.  Human: And you?") == "“Human:”"
    assert role_marker("(Assistant: well)") == "“Assistant:”"
    assert role_marker("A Human is no SuperHuman: no.") is None
