from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from keel.errors import UserError
from keel.text.templates import PLAIN, end_of_turn, install_template, write_turns
from tests.worlds import CHATML, chatml_codec, prefix_space_codec, tiny_codec

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Help?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "How?"},
]


def test_the_plain_template_by_hand() -> None:
    codec = tiny_codec()
    assert write_turns(codec, TURNS, open_turn=True) == (
        "Be brief.\n\nUser: Help?\n\nAssistant: Yes.<|eos|>\n\nUser: How?\n\nAssistant: "
    )
    assert write_turns(prefix_space_codec(), TURNS[1:2], open_turn=False) == "<s>User: Help?\n\n"


def test_auto_keeps_a_tokenizers_own_template() -> None:
    codec = chatml_codec()
    install_template(codec, "auto")
    assert codec.hf.chat_template == CHATML
    bare = tiny_codec()
    bare.hf.chat_template = None
    install_template(bare, "auto")
    assert bare.hf.chat_template == PLAIN


def test_a_file_replaces_the_template_and_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    template = "{% for turn in messages %}<{{ turn['content'] }}>{{ eos_token }}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    codec = chatml_codec()
    install_template(codec, str(tmp_path / "chat.jinja"))
    assert end_of_turn(codec) == codec.hf.eos_token_id
    codec.save(tmp_path / "saved")
    alone = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert alone.apply_chat_template(TURNS[1:2], tokenize=False) == "<Help?><|eos|>"


def test_the_end_of_turn_is_the_first_special_token_after_the_content() -> None:
    codec = chatml_codec()
    assert codec.hf.convert_ids_to_tokens(end_of_turn(codec)) == "<|end|>"
    codec.hf.chat_template = "{% for turn in messages %}{{ turn['content'] }}\n<|end|>{{ eos_token }}{% endfor %}"
    assert codec.hf.convert_ids_to_tokens(end_of_turn(codec)) == "<|end|>"
    codec.hf.chat_template = "{% for turn in messages %}<|end|>{{ turn['content'] }}{% endfor %}"
    assert end_of_turn(codec) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); give `auto` or a file"),
        (b"\xff\xfe", "cannot be read (not UTF-8); give `auto` or a file"),
        (b"{% for turn in messages %}", "the chat template fails on a dialogue of user: Unexpected end of template"),
        (b"{{ messages | no_such_filter }}", "the chat template fails on a dialogue of user: No filter named"),
        (b"{{ raise_exception('only in pairs') }}", "the chat template fails on a dialogue of user: only in pairs"),
    ],
)
def test_a_template_file_that_cannot_serve(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        install_template(tiny_codec(), str(path))
    assert str(caught.value).startswith(f"model.chat_template: {path}")
    assert sentence in str(caught.value)
