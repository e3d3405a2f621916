"""What is trained, token by token; and that a response survives the way to ids and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keel.batching import text_batches
from keel.errors import UserError
from keel.records import EncodedText
from keel.schema import Comparison, Demonstration, Dialogue, Message, Prompt
from keel.text.render import Renderer, dialogue_text
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec
from tests.worlds import chatml_codec, pad_is_eos_codec, prefix_space_codec, tiny_codec

CHAT = (Message("user", "Could you help?"),)
CODECS = {
    "own": tiny_codec(),
    "pad_is_eos": pad_is_eos_codec(),
    "chatml": chatml_codec(),
    "prefix": prefix_space_codec(),
}
RENDERERS = {name: Renderer(codec) for name, codec in CODECS.items()}
LONG_MATE = EncodedText(tuple(range(1, 250)), (False,) * 30 + (True,) * 219)

each_renderer = pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS)


def marked(renderer: Renderer, row: EncodedText) -> list[tuple[bool, str]]:
    """A row in a padded batch, in stretches that train and that do not, special tokens written out.

    The loss of the supervised stage reads this mask and nothing else.
    """
    (batch,) = text_batches([LONG_MATE, row], 1000)
    ids, trained = batch.tokens[1].tolist(), batch.trained[1].tolist()
    assert not any(trained[len(row.tokens) :])  # no padding
    raw = renderer.codec.hf.backend_tokenizer
    stretches = groupby(range(len(row.tokens)), key=lambda position: trained[position])
    return [
        (trains, raw.decode([ids[position] for position in positions], skip_special_tokens=False))
        for trains, positions in stretches
    ]


def prompt_length(row: EncodedText) -> int:
    return row.trains.index(True)


# What is trained


def test_every_token_by_hand_where_the_end_token_is_the_start_token() -> None:
    """BOS = EOS, no pad token, a space before every text: as stories260K. The start is not trained, the end is."""
    renderer = RENDERERS["prefix"]
    row = renderer.demonstration(Demonstration("the ladder was", " the little one."))
    tokens = renderer.codec.hf.convert_ids_to_tokens(list(row.tokens))
    assert tokens[: prompt_length(row)] == ["<s>", "▁the", "▁ladder", "▁was"]
    assert tokens[prompt_length(row) :] == ["▁the", "▁little", "▁on", "e", ".", "<s>"]


def test_a_prompt_that_is_too_long_for_its_response_loses_its_oldest_tokens_by_hand() -> None:
    renderer = RENDERERS["prefix"]
    row = renderer.encode("the ladder was", " the little one.", room=9)  # ten tokens without it
    tokens = renderer.codec.hf.convert_ids_to_tokens(list(row.tokens))
    assert tokens[: row.prompt_length] == ["<s>", "▁ladder", "▁was"]
    assert tokens[row.prompt_length :] == ["▁the", "▁little", "▁on", "e", ".", "<s>"]
    assert renderer.encode("the ladder was", " the little one.", room=10).prompt_length == 4


def test_a_response_gets_no_space_that_was_not_written() -> None:
    renderer = RENDERERS["prefix"]
    row = renderer.demonstration(Demonstration("the ladder w", "as"))
    assert renderer.codec.hf.convert_ids_to_tokens(list(row.tokens)) == [
        "<s>",
        "▁the",
        "▁ladder",
        "▁w",
        "a",
        "s",
        "<s>",
    ]


@pytest.mark.parametrize(
    ("name", "prompt", "untrained", "trained"),
    [
        ("own", "Buy a", "Buy a", " ladder.<|eos|>"),
        ("pad_is_eos", "Buy a", "Buy a", " ladder.<|eos|>"),
        ("chatml", "Buy a", "Buy a", " ladder.<|eos|>"),
        # The decoder takes off the space at a text's beginning; the tokens above show that it is there.
        ("prefix", "Buy a", "<s> Buy a", "ladder.<s>"),
        ("own", CHAT, "User: Could you help?\n\nAssistant:", "  ladder.<|eos|>"),
        ("pad_is_eos", CHAT, "User: Could you help?\n\nAssistant:", "  ladder.<|eos|>"),
        ("chatml", CHAT, "<|turn|>user\nCould you help?<|end|>\n<|turn|>assistant\n", " ladder.<|end|>"),
        ("prefix", CHAT, "<s> User: Could you help?\n\nAssistant:", " ladder.<s>"),
    ],
)
def test_the_response_and_its_end_train_and_nothing_else(
    name: str, prompt: Dialogue, untrained: str, trained: str
) -> None:
    renderer = RENDERERS[name]
    row = renderer.demonstration(Demonstration(prompt, " ladder."))
    assert marked(renderer, row) == [(False, untrained), (True, trained)]
    assert row.tokens == renderer.encode(prompt, " ladder.").tokens


@each_renderer
@pytest.mark.parametrize("prompt", ["Buy a", CHAT], ids=["text", "chat"])
def test_exactly_one_end_token_trains_and_it_is_the_last(renderer: Renderer, prompt: Dialogue) -> None:
    row = renderer.demonstration(Demonstration(prompt, "ladder. No."))
    response = row.tokens[prompt_length(row) :]
    assert [token in renderer.eos_ids for token in response] == [False] * (len(response) - 1) + [True]


@each_renderer
@pytest.mark.parametrize("prompt", ["Buy a", CHAT], ids=["text", "chat"])
def test_a_response_that_was_cut_off_has_no_end(renderer: Renderer, prompt: Dialogue) -> None:
    whole = renderer.encode(prompt, "ladder.")
    cut = renderer.encode(prompt, "ladder.", ended=False)
    assert (*cut.tokens, renderer.end_token(prompt)) == whole.tokens
    assert cut.prompt_length == whole.prompt_length


def test_both_sides_of_a_comparison_know_which_was_cut_off() -> None:
    renderer = RENDERERS["own"]
    row = Comparison("Buy a", chosen=" ladder.", rejected=" market", extra={"rejected_ended": False})
    chosen, rejected = renderer.comparison(row)
    assert chosen == renderer.encode("Buy a", " ladder.")
    assert rejected == renderer.encode("Buy a", " market", ended=False)


@each_renderer
def test_the_prompt_is_the_same_ids_in_every_stage(renderer: Renderer) -> None:
    for prompt in ("Buy a ", "Buy a", CHAT):
        item = renderer.item(Prompt(prompt, {"answer": 3}))
        for response in ("ladder.", " ladder.", "\nladder", "9"):
            row = renderer.encode(prompt, response)
            assert row.tokens[: row.prompt_length] == item.tokens
        assert item.source == prompt
        assert item.row == {"answer": 3}


# Spaces at the border


@each_renderer
@pytest.mark.parametrize("spaces", [1, 3])
def test_a_space_at_the_prompts_end_moves_into_the_response(renderer: Renderer, spaces: int) -> None:
    ids, space = renderer.prompt("Buy a" + " " * spaces)
    assert (ids, space) == (renderer.prompt("Buy a")[0], " " * spaces)
    assert renderer.encode("Buy a" + " " * spaces, "ladder.") == renderer.encode("Buy a", " " * spaces + "ladder.")
    assert renderer.item(Prompt("Buy a ")).text == "Buy a "


def test_a_newline_at_the_prompts_end_stays() -> None:
    assert RENDERERS["own"].prompt("Buy a\n")[1] == ""
    assert RENDERERS["own"].prompt("Buy a\n ")[1] == " "


# There and back

NASTY = [
    "",
    " ",
    "\n",
    "\n\n x",
    " x",
    "  x",
    "x ",
    "ladder.",
    "naïve 漢字",
    "🙂 ok",
    " 👩\u200d👩\u200d👧",
    "\t\n ",
    "a",
    "aa",
    "\u0000",
]


def survives(renderer: Renderer, prompt: Dialogue, response: str) -> None:
    item = renderer.item(Prompt(prompt))
    row = renderer.encode(prompt, response)
    assert renderer.response_text(item, row.tokens[row.prompt_length :]) == response
    assert renderer.codec.decode(renderer.codec.encode(response)) == response


@each_renderer
@pytest.mark.parametrize("response", NASTY)
@pytest.mark.parametrize("prompt", ["Buy a", "Buy a ", CHAT], ids=["text", "space", "chat"])
def test_a_response_survives_encoding_and_decoding(renderer: Renderer, prompt: Dialogue, response: str) -> None:
    survives(renderer, prompt, response)


@given(response=st.text(max_size=20).filter(lambda text: "\u2581" not in text), space=st.sampled_from(["", " ", "  "]))
def test_any_response_survives(response: str, space: str) -> None:
    """All but U+2581, which the prefix-space tokenizers write for a space."""
    for renderer in RENDERERS.values():
        survives(renderer, "Buy a" + space, response)
        survives(renderer, CHAT, response)


@example("a\u2581b")  # which the prefix-space tokenizers write for a space, and no other
@given(st.text(max_size=20))
def test_cutting_a_response_anywhere_never_invents_a_beginning(response: str) -> None:
    """Half a character's bytes at the end become a replacement sign; what was whole before them stays."""
    for renderer in RENDERERS.values():
        ids = renderer.codec.encode(response)
        for end in range(len(ids) + 1):
            said = renderer.codec.decode(ids[:end]).rstrip("\ufffd")
            assert response.replace("\u2581", " ").startswith(said.replace("\u2581", " "))


def test_a_response_of_half_a_character_is_one_replacement_sign() -> None:
    codec = CODECS["prefix"]
    byte = codec.hf.convert_tokens_to_ids("<0xF0>")
    assert codec.decode([byte]) == "\ufffd"


def test_an_end_token_that_is_no_special_token_is_not_said() -> None:
    """A generation config may end texts with an ordinary token."""
    codec = tiny_codec()
    (stop,) = codec.hf.encode("!", add_special_tokens=False)
    renderer = Renderer(TextCodec(codec.hf, [stop]))
    item = renderer.item(Prompt("Buy a"))
    ids = renderer.codec.encode(" ladder!")
    assert renderer.response_text(item, ids) == " ladder"
    assert renderer.response_text(item, renderer.codec.encode("! ladder")) == "! ladder"


# Prompts


def test_a_prompt_starts_with_the_start_token_where_there_is_one() -> None:
    assert RENDERERS["prefix"].prompt("the")[0] == [1, *CODECS["prefix"].hf.convert_tokens_to_ids(["▁the"])]
    assert RENDERERS["own"].prompt("a")[0] == CODECS["own"].encode("a")
    assert RENDERERS["prefix"].prompt("")[0] == [1]  # from nothing: the start token alone


def test_nothing_begins_with_the_start_token_or_as_gpt2_has_it_with_the_end_token() -> None:
    codec = tiny_codec()
    end = codec.hf.eos_token_id
    assert Renderer(codec).prompt("") == ([end], "")
    assert Renderer(codec).prompt("  ") == ([end], "  ")
    row = Renderer(codec).demonstration(Demonstration("", "the ladder"))
    assert row.tokens == (end, *codec.encode("the ladder"), end)
    assert row.trains == (False, *[True] * (len(row.tokens) - 1))
    codec.hf.bos_token = "<|pad|>"
    assert Renderer(codec).prompt("") == ([codec.hf.pad_token_id], "")


def test_a_template_writes_its_own_start_token_once() -> None:
    ids, _ = RENDERERS["prefix"].prompt(CHAT)
    assert ids.count(1) == 1
    assert ids[0] == 1


@pytest.mark.parametrize(
    ("dialogue", "text"),
    [
        ("As it is. ", "As it is. "),
        (CHAT, "Could you help?"),
        ((Message("system", "Be brief."), *CHAT), "system: Be brief.\nuser: Could you help?"),
        (
            (*CHAT, Message("assistant", "Yes."), Message("user", "How?")),
            "user: Could you help?\nassistant: Yes.\nuser: How?",
        ),
    ],
)
def test_a_dialogue_as_people_read_it(dialogue: Dialogue, text: str) -> None:
    assert dialogue_text(dialogue) == text
    assert RENDERERS["own"].item(Prompt(dialogue)).text == text


def test_an_unknown_role_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="the chat template fails on a dialogue of user, wizard: unknown role wizard"):
        RENDERERS["own"].prompt((*CHAT, Message("wizard", "Abracadabra.")))


# Which tokens end a response


@pytest.mark.parametrize(
    ("make", "text_end", "chat_end", "all_ends"),
    [
        (tiny_codec, "<|eos|>", "<|eos|>", {"<|eos|>"}),
        (chatml_codec, "<|eos|>", "<|end|>", {"<|eos|>", "<|end|>"}),
        (prefix_space_codec, "<s>", "<s>", {"<s>"}),
    ],
)
def test_the_end_of_a_text_and_of_a_turn(
    make: Callable[[], TextCodec], text_end: str, chat_end: str, all_ends: set[str]
) -> None:
    renderer = Renderer(make())
    tokens = renderer.codec.hf.convert_ids_to_tokens
    assert tokens(renderer.end_token("text")) == text_end
    assert tokens(renderer.end_token(CHAT)) == chat_end
    assert {tokens(end) for end in renderer.eos_ids} == all_ends


def test_a_template_without_an_end_of_turn_ends_with_the_texts_end() -> None:
    codec = tiny_codec()
    codec.hf.chat_template = "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}\n{% endfor %}"
    renderer = Renderer(codec)
    assert renderer.turn_end is None
    assert renderer.end_token(CHAT) == codec.hf.eos_token_id


def test_the_eos_set_joins_generation_config_and_template() -> None:
    codec = TextCodec(chatml_codec().hf, [7, 8])
    install_template(codec, "auto")
    end = codec.hf.convert_tokens_to_ids("<|end|>")
    assert Renderer(codec).eos_ids == {codec.hf.eos_token_id, 7, 8, end}
