"""What the audit keeps of a text: fingerprints, a length, and what looks wrong with it."""

from __future__ import annotations

import re
from enum import IntFlag
from hashlib import blake2b

from keel.data.dialogues import as_messages
from keel.schema import Dialogue

_LONG = 100  # characters, from which a reply is expected to be written in sentences
_SENTENCE_END = re.compile(r"[.!?]\s")
_MID_SENTENCE = re.compile(r"(?:\w|[,;(\[–—-])\Z")
# Turns as chat templates and model families write them.
_NAME = r"(?:Human|User|Assistant):"
_TOKEN = (
    r"(?:<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|assistant|system|endoftext)\|>"
    r"|\[/?INST\]|<(?:start|end)_of_turn>)"
)
_MARKER = re.compile(rf"\b{_NAME}|{_TOKEN}")
# A turn begins a reply or a line, or stands off by two spaces; a token also follows a sentence, or a word at once.
_OPENS = r"\A\s?|(?<=\n)|(?<=\s\s)"
_TURN = re.compile(rf"(?:{_OPENS}){_NAME}|(?:{_OPENS}|(?<=[.!?…]\s)|(?<=[\w.!?…”’)\]>])){_TOKEN}")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


class Oddity(IntFlag):
    """What is odd about a reply."""

    CUT_OFF = 1  # it is known not to have ended
    MID_SENTENCE = 2  # it ends as if it had been cut off
    LEAKS = 4  # another turn begins in it: it plays another part than its own
    EMPTY = 8
    MENTIONS = 16  # it holds a turn's marker where no turn begins: in a sentence, in quotes, in code


def normal(text: str) -> str:
    """The text without regard to white space and case."""
    return " ".join(text.casefold().split())


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b: among a million texts two unequal ones share it with a probability of 3e-8."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prompt_text(prompt: Dialogue) -> str:
    """A prompt as one text; a chat whose only message is the user's is that message."""
    messages = as_messages(prompt)
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def oddities(reply: str, ended: object = None) -> Oddity:
    """What looks wrong with a reply; `ended` is what its row says of it, where it says true or false.

    A reply whose end is not known "ends in mid-sentence" if it is long, has a full stop, and ends with neither a stop
    nor a bracket, a quote or a symbol. That is a guess: titles, lists and verse end so too. So is whether a marker
    begins another turn or is only spoken of: by where it stands.
    """
    found = Oddity(0)
    if not reply.strip():
        return Oddity.EMPTY
    if ended is False:
        found |= Oddity.CUT_OFF
    elif ended is None and len(reply) >= _LONG:
        end = reply.rstrip()
        if _MID_SENTENCE.search(end, len(end) - 1) and _SENTENCE_END.search(end):
            found |= Oddity.MID_SENTENCE
    if _MARKER.search(reply):
        found |= Oddity.LEAKS if _TURN.search(_CODE.sub("`", reply)) else Oddity.MENTIONS
    return found
