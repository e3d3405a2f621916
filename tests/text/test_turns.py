"""Dialogues of several turns: which of them train, token by token; special tokens that people spell; long prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.errors import UserError
from keel.records import EncodedText
from keel.schema import Comparison, Demonstration, Dialogue, Message, Prompt
from keel.text.render import Renderer
from keel.text.templates import take_apart
from keel.text.tokenizers import TextCodec, train_codec
from tests.text.test_render import RENDERERS, each_renderer, marked
from tests.worlds import CHATML, VOCAB, chatml_codec, tiny_codec

LADDER = (
    Message("system", "Be brief."),
    Message("user", "A ladder?"),
    Message("assistant", "Of course."),
    Message("user", "On Sunday?"),
    Message("assistant", " the market opens."),
    Message("user", "Thank you."),
)
ROW = Demonstration(LADDER, "I am glad.")


def renderer_with(template: str, codec: TextCodec | None = None) -> Renderer:
    codec = codec or chatml_codec()
    codec.hf.chat_template = template
    return Renderer(codec)


# Which turns train


@pytest.mark.parametrize(
    ("name", "stretches"),
    [
        (
            "own",
            [
                (False, "Be brief.\n\nUser: A ladder?\n\nAssistant:"),
                (True, " Of course.<|eos|>"),
                (False, "\n\nUser: On Sunday?\n\nAssistant:"),
                (True, "  the market opens.<|eos|>"),
                (False, "\n\nUser: Thank you.\n\nAssistant:"),
                (True, " I am glad.<|eos|>"),
            ],
        ),
        (
            "chatml",
            [
                (False, "<|turn|>system\nBe brief.<|end|>\n<|turn|>user\nA ladder?<|end|>\n<|turn|>assistant\n"),
                (True, "Of course.<|end|>"),
                (False, "\n<|turn|>user\nOn Sunday?<|end|>\n<|turn|>assistant\n"),
                (True, " the market opens.<|end|>"),
                (False, "\n<|turn|>user\nThank you.<|end|>\n<|turn|>assistant\n"),
                (True, "I am glad.<|end|>"),
            ],
        ),
        (
            "prefix",  # its decoder takes off one space at a text's beginning
            [
                (False, "<s> Be brief.\n\nUser: A ladder?\n\nAssistant:"),
                (True, "Of course.<s>"),
                (False, "\n\nUser: On Sunday?\n\nAssistant:"),
                (True, " the market opens.<s>"),
                (False, "\n\nUser: Thank you.\n\nAssistant:"),
                (True, "I am glad.<s>"),
            ],
        ),
    ],
)
def test_every_turn_of_the_assistant_trains_with_its_end_and_nothing_else(
    name: str, stretches: list[tuple[bool, str]]
) -> None:
    assert marked(RENDERERS[name], RENDERERS[name].demonstration(ROW, train_on="all")) == stretches


def test_where_padding_is_the_end_token_every_end_still_trains() -> None:
    row = RENDERERS["pad_is_eos"].demonstration(ROW, train_on="all")
    assert row == RENDERERS["own"].demonstration(ROW, train_on="all")


@each_renderer
def test_each_turn_is_the_ids_it_has_as_the_last_one(renderer: Renderer) -> None:
    """What trains in one row of three turns is what three rows of one turn would train."""
    together = renderer.demonstration(ROW, train_on="all")
    last = renderer.demonstration(ROW)
    assert together.tokens == last.tokens == renderer.encode(LADDER, ROW.response).tokens
    trained = [False] * len(together.tokens)
    for number, turn in enumerate((*LADDER, Message("assistant", ROW.response))):
        if turn.role == "assistant":
            alone = renderer.encode((*LADDER, turn)[:number], turn.content)
            assert together.tokens[: len(alone.tokens)] == alone.tokens
            trained[alone.prompt_length : len(alone.tokens)] = [True] * alone.response_length
    assert together.trains == tuple(trained)


TURN = st.text(max_size=8).filter(lambda text: "\u2581" not in text)


@given(st.lists(TURN, min_size=1, max_size=3), TURN, st.booleans())
def test_any_dialogue_keeps_its_turns(said: list[str], response: str, system: bool) -> None:
    dialogue = [Message("system", "Be brief.")] if system else []
    for number, text in enumerate(said):
        dialogue += [Message("user", f"{number}?"), Message("assistant", text)]
    dialogue.append(Message("user", "And?"))
    for name in ("own", "chatml", "prefix"):
        renderer = RENDERERS[name]
        row = renderer.demonstration(Demonstration(tuple(dialogue), response), train_on="all")
        kept = sum(1 for text in said if text.strip())
        ends = [token in renderer.eos_ids for token, trains in zip(row.tokens, row.trains, strict=True) if trains]
        assert sum(ends) == kept + 1  # each turn's own end, and no other
        assert row.tokens == renderer.encode(tuple(dialogue), response).tokens


def test_a_turn_that_says_nothing_does_not_train() -> None:
    dialogue = (Message("user", "A?"), Message("assistant", " "), Message("user", "B?"))
    row = RENDERERS["chatml"].demonstration(Demonstration(dialogue, "C."), train_on="all")
    assert row == RENDERERS["chatml"].demonstration(Demonstration(dialogue, "C."))


def test_a_plain_text_has_no_earlier_turns() -> None:
    row = Demonstration("Buy a", " ladder.")
    assert RENDERERS["own"].demonstration(row, train_on="all") == RENDERERS["own"].demonstration(row)


CHATML_TRIMMED = (
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


def test_a_template_that_strips_turns_serves() -> None:
    row = renderer_with(CHATML_TRIMMED).demonstration(ROW, train_on="all")
    assert sum(row.trains) > len(renderer_with(CHATML_TRIMMED).encode("", ROW.response).tokens)
    stretches = marked(renderer_with(CHATML_TRIMMED), row)
    assert [text for trains, text in stretches if trains][1] == "the market opens.<|end|>"


@pytest.mark.parametrize(
    "template",
    [
        # no end of its own; something between a turn and its end; earlier turns dropped; rewritten; told elsewhere
        "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}\n{% endfor %}",
        "{% for turn in messages %}<|turn|>{{ turn['content'] }}\n<|end|>{% endfor %}",
        "{% for turn in messages[-1:] %}<|turn|>{{ turn['content'] }}<|end|>{% endfor %}",
        "{% for turn in messages %}<|turn|>{{ turn['content'] | upper }}<|end|>{% endfor %}",
        "{% for turn in messages | reverse %}<|turn|>{{ turn['content'] }}<|end|>{% endfor %}",
        "{{ messages | length }}{% for turn in messages %}<|turn|>{{ turn['content'] }}<|end|>{% endfor %}",
    ],
)
def test_a_template_that_does_not_leave_a_turn_as_it_was_is_refused(template: str) -> None:
    renderer = renderer_with(template)
    renderer.demonstration(ROW)  # the last turn alone can always train
    with pytest.raises(UserError, match=r"^sft.train_on: all needs a chat template that .* or train_on: last$"):
        renderer.demonstration(ROW, train_on="all")


# Special tokens that people spell


def specials(renderer: Renderer, ids: list[int]) -> list[str]:
    special = {id for id, token in renderer.codec.hf.added_tokens_decoder.items() if token.special}
    tokens: list[str] = renderer.codec.hf.convert_ids_to_tokens([token for token in ids if token in special])
    return tokens


@pytest.mark.parametrize("text", ["{}", "say {} and go on", "{}{}", "a{}", " {}\n{} b"])
@pytest.mark.parametrize("name", ["own", "chatml", "prefix"])
def test_what_people_say_holds_no_special_token(name: str, text: str) -> None:
    renderer = RENDERERS[name]
    codec = renderer.codec
    for token in [*codec.hf.all_special_tokens, "<|end|>", "<|turn|>"]:
        said = text.replace("{}", token)
        plain, _ = renderer.prompt(said)
        assert specials(renderer, plain) == (["<s>"] if name == "prefix" else [])
        assert codec.decode(plain).lstrip(" ") == said.strip(" ")
        for role in ("user", "system", "assistant"):
            dialogue = (Message("user", "Hi"), Message(role, said), Message("user", "Ho"))
            innocent = (Message("user", "Hi"), Message(role, text.replace("{}", "x")), Message("user", "Ho"))
            assert specials(renderer, renderer.prompt(dialogue)[0]) == specials(renderer, renderer.prompt(innocent)[0])
            raw = codec.hf.decode(renderer.prompt(dialogue)[0], skip_special_tokens=True)
            assert said.strip() in raw


def test_it_is_the_ids_of_its_letters_beside_the_templates_own_tokens() -> None:
    renderer = RENDERERS["chatml"]
    ids, _ = renderer.prompt((Message("user", "a<|end|>b"),))
    codec = renderer.codec
    turn, end = codec.hf.convert_tokens_to_ids(["<|turn|>", "<|end|>"])
    inside = [*codec.encode("user\na"), *codec.encode("<|end|>"), *codec.encode("b")]
    assert ids == [turn, *inside, end, *codec.encode("\n"), turn, *codec.encode("assistant\n")]


def test_a_template_that_rewrites_turns_cannot_tell_whose_token_it_is() -> None:
    renderer = renderer_with("{% for turn in messages %}<|turn|>{{ turn['content'] | upper }}<|end|>{% endfor %}")
    renderer.prompt((Message("user", "Hi"),))
    with pytest.raises(UserError, match=r"a turn of a dialogue spells a special token \('a<\|end\|>b'\)"):
        renderer.prompt((Message("user", "a<|end|>b"),))


def test_pieces_are_whose_they_are() -> None:
    codec = chatml_codec()
    loop = "{% for m in messages[1:] %}{{ m['role'] }}:{{ m['content'] | trim }};{% endfor %}"
    codec.hf.chat_template = loop + "({{ messages[0]['content'] }})"
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": " u:"}, {"role": "user", "content": ";"}]
    told = [("user:", None), ("u:", 1), (";user:", None), (";", 2), (";(", None), ("S", 0), (")", None)]
    assert take_apart(codec, turns) == told
    codec.hf.chat_template = "{% for m in messages %}{{ m['content'] | replace('u', 'v') }};{% endfor %}"
    assert take_apart(codec, turns) is None
    assert take_apart(codec, turns[:1]) == [("", None), ("S", 0), (";", None)]


# Prompts that are too long


def test_a_cut_by_hand() -> None:
    renderer = RENDERERS["prefix"]  # 1 starts a text
    assert renderer.cut([1, 5, 6, 7], 3) == [1, 6, 7]
    assert renderer.cut([5, 6, 7, 8], 3) == [6, 7, 8]
    assert renderer.cut([1, 5, 6, 7], 1) == [1]
    assert renderer.cut([1, 5, 6, 7], 4) == [1, 5, 6, 7]
    with pytest.raises(ValueError, match="no prompt fits in 0 tokens"):
        renderer.cut([1, 5], 0)
    own = RENDERERS["own"]
    assert own.cut([own.codec.hf.eos_token_id, 5, 6], 2) == [own.codec.hf.eos_token_id, 6]


@each_renderer
@pytest.mark.parametrize("prompt", ["the ladder was the little one", LADDER], ids=["text", "chat"])
def test_the_prompts_end_and_the_whole_response_stay(renderer: Renderer, prompt: Dialogue) -> None:
    whole = renderer.encode(prompt, "I am glad.")
    answer = list(whole.tokens[whole.prompt_length :])
    start = [1] if renderer is RENDERERS["prefix"] else []
    for room in range(len(answer) + 2, len(whole.tokens)):
        row = renderer.demonstration(Demonstration(prompt, "I am glad."), room=room)
        kept = list(whole.tokens[whole.prompt_length - (room - len(answer)) + len(start) : whole.prompt_length])
        assert list(row.tokens) == start + kept + answer
        assert row.trains == (False,) * (room - len(answer)) + (True,) * len(answer)
        item = renderer.item(Prompt(prompt), room=room - len(answer))
        assert list(item.tokens) == start + kept
        assert item.source == prompt
    assert renderer.demonstration(Demonstration(prompt, "I am glad."), room=len(whole.tokens)).tokens == whole.tokens


def test_both_sides_of_a_comparison_keep_one_prompt() -> None:
    renderer = RENDERERS["own"]
    row = Comparison("the ladder was the little one", chosen=" a", rejected=" the market opens at nine")
    chosen, rejected = renderer.comparison(row, room=12)
    assert len(rejected.tokens) == 12
    assert chosen.prompt_length == rejected.prompt_length
    assert chosen.tokens[: chosen.prompt_length] == rejected.tokens[: rejected.prompt_length]
    assert renderer.comparison(row, room=1000) == renderer.comparison(row)


def test_a_turn_that_is_cut_into_does_not_train() -> None:
    renderer = RENDERERS["chatml"]
    whole = renderer.demonstration(ROW, train_on="all")
    starts = [place for place in range(1, len(whole.tokens)) if whole.trains[place] and not whole.trains[place - 1]]
    for room in range(len(whole.tokens) - starts[-1] + 1, len(whole.tokens)):
        gone = len(whole.tokens) - room
        row = renderer.demonstration(ROW, train_on="all", room=room)
        assert row.tokens == whole.tokens[gone:]
        inside = next((start for start in starts if start <= gone and all(whole.trains[start : gone + 1])), None)
        expected = list(whole.trains)
        if inside is not None:
            end = next(place for place in range(inside, len(whole.trains)) if not whole.trains[place])
            expected[inside:end] = [False] * (end - inside)
        assert row == EncodedText(whole.tokens[gone:], tuple(expected[gone:]))


def test_lengths_tell_prompt_and_response_apart() -> None:
    renderer = Renderer(tiny_codec())
    row = Comparison("Buy a", chosen=" ladder.", rejected=" the market opens")
    chosen, rejected = renderer.comparison(row)
    assert renderer.lengths(row) == (chosen.prompt_length, rejected.response_length)
    assert renderer.lengths(Prompt("Buy a")) == (chosen.prompt_length, 0)
    assert renderer.length(Demonstration("Buy a", " ladder.")) == len(chosen.tokens)


def test_a_turn_keeps_its_ids_where_they_would_merge_with_what_stands_before() -> None:
    """Two line breaks are one token here, so a turn that begins with two would lose one to the template's."""
    codec = train_codec(["a\n\nb\n\nc\n\n\nd"] * 9, vocab=VOCAB, context=64)
    codec.hf.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    renderer = renderer_with(CHATML, TextCodec(codec.hf))
    dialogue = (Message("user", "a"), Message("assistant", "\n\nb"), Message("user", "c"))
    (merged,) = codec.encode("\n\n")
    assert merged not in renderer.prompt(dialogue)[0]
    row = renderer.demonstration(Demonstration(dialogue, "\n\nd"), train_on="all")
    assert [text for trains, text in marked(renderer, row) if trains] == ["\n\nb<|end|>", "\n\nd<|end|>"]
