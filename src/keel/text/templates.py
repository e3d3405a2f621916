"""Chat templates: the tokenizer's own, a file's, or Keel's plain one, saved with the tokenizer either way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from keel.errors import UserError
from keel.text.tokenizers import TextCodec

PLAIN = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


class HasTokenizer(Protocol):
    """Whatever holds transformers' tokenizer."""

    hf: Any


def install_template(codec: HasTokenizer, choice: str, key: str = "model.chat_template") -> None:
    """Give the tokenizer its one chat template: `auto` keeps its own if it has one, else Keel's plain one.

    Any other choice is a file; `key` is what errors call the recipe's key. Raises UserError for a file that cannot be
    read or holds no template.
    """
    if choice == "auto":
        if codec.hf.chat_template is None:
            codec.hf.chat_template = PLAIN
        return
    try:
        codec.hf.chat_template = Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{key}: {choice} cannot be read ({reason}); give `auto` or a file") from None
    try:
        write_turns(codec, [{"role": "user", "content": "a"}], open_turn=True)
    except UserError as error:
        raise UserError(f"{key}: {choice}: {error}") from None


def write_turns(codec: HasTokenizer, turns: list[dict[str, Any]], *, open_turn: bool) -> str:
    """The turns as the tokenizer's template writes them, with the assistant's turn opened or not.

    Raises UserError where the template is no valid Jinja or refuses the dialogue (a role it does not know).
    """
    try:
        return str(codec.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn))
    except Exception as error:  # what a template computes may fail in any way
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(f"the chat template fails on a dialogue of {roles}: {error}") from None


def take_apart(codec: TextCodec, turns: list[dict[str, Any]]) -> list[tuple[str, int | None]] | None:
    """What `write_turns` writes with the assistant's turn opened, in pieces: (text, the number of the turn it is of).

    The number is None for what the template adds. A template may strip a turn's content, and put it where and as
    often as it likes; where it rewrites one the answer is None, for then nobody knows which text is whose.
    """
    text = write_turns(codec, turns, open_turn=True)
    marks = [f"KEEL{number}TURN" for number in range(len(turns))]
    marked = write_turns(codec, [t | {"content": m} for t, m in zip(turns, marks, strict=True)], open_turn=True)
    between = re.split(r"KEEL(\d+)TURN", marked)  # template, number, template, …, template
    pieces: list[tuple[str, int | None]] = [(between[0], None)]
    at = len(between[0])
    for number, after in zip(map(int, between[1::2]), between[2::2], strict=True):
        content = turns[number]["content"]
        written = (content, content.strip(), content.lstrip(), content.rstrip())
        found = next((one for one in written if text.startswith(one + after, at)), None)
        if found is None:
            return None
        pieces += [(found, number), (after, None)]
        at += len(found) + len(after)
    return pieces if text.startswith(between[0]) and at == len(text) else None


def end_of_turn(codec: TextCodec) -> int | None:
    """The id with which the template ends an assistant's turn, or None if it ends without a special token."""
    marker = "keel turn marker"
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
    text = write_turns(codec, turns, open_turn=False)
    tail = text.rsplit(marker, 1)[-1]
    ids = codec.hf.encode(tail, add_special_tokens=False) if tail else []
    special = set(codec.hf.all_special_ids) | set(codec.hf.added_tokens_decoder)
    return next((int(token) for token in ids if token in special), None)
