"""Chat templates: the tokenizer's own, a file's, or Keel's plain one, saved with the tokenizer either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def install_template(codec: TextCodec, choice: str) -> None:
    """Give the tokenizer its one chat template: `auto` keeps its own if it has one, else Keel's plain one."""
    if choice == "auto":
        if codec.hf.chat_template is None:
            codec.hf.chat_template = PLAIN
        return
    try:
        codec.hf.chat_template = Path(choice).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"model.chat_template: {choice} cannot be read ({error.strerror}); give `auto` or a file") from None


def end_of_turn(codec: TextCodec) -> int | None:
    """The id with which the template ends an assistant's turn, or None if it ends without a special token."""
    marker = "keel turn marker"
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
    text = codec.hf.apply_chat_template(turns, tokenize=False)
    tail = text.rsplit(marker, 1)[-1]
    ids = codec.hf.encode(tail, add_special_tokens=False) if tail else []
    special = set(codec.hf.all_special_ids) | set(codec.hf.added_tokens_decoder)
    return next((int(token) for token in ids if token in special), None)
