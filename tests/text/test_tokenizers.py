from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers, processors

from keel.errors import UserError
from keel.text.tokenizers import EOS, PAD, TextCodec, load_codec, train_codec
from tests.worlds import SENTENCES, VOCAB, pad_is_eos_codec, prefix_space_codec, tiny_codec, wrapped


def test_a_trained_tokenizer_is_a_function_of_its_texts() -> None:
    codec = train_codec(SENTENCES, vocab=VOCAB, context=64)
    assert codec.hf.get_vocab() == train_codec(iter(SENTENCES), vocab=VOCAB, context=64).hf.get_vocab()
    assert len(codec.hf) == VOCAB
    assert (codec.hf.eos_token, codec.hf.pad_token, codec.hf.bos_token) == (EOS, PAD, None)
    assert codec.hf.eos_token_id != codec.hf.pad_token_id
    assert codec.hf.model_max_length == 64
    assert codec.eos_ids == {codec.hf.eos_token_id}


def test_a_trained_tokenizer_knows_every_byte() -> None:
    codec = train_codec(["ab"], vocab=VOCAB, context=64)
    everything = "".join(map(chr, range(0x250))) + "漢🙂"
    assert codec.decode(codec.encode(everything)) == everything
    assert len(codec.hf) == 2 + 256 + 1  # two tokens of its own, the bytes, and the one pair there is


def test_nothing_is_encoded_as_nothing() -> None:
    for codec in (tiny_codec(), prefix_space_codec()):
        assert codec.encode("") == []
        assert codec.decode([]) == ""


def test_inside_a_text_no_special_token_and_no_space_is_added() -> None:
    codec = prefix_space_codec()
    assert codec.hf.convert_ids_to_tokens(codec.hf.encode("time")) == ["<s>", "▁time"]  # what the tokenizer does
    assert codec.hf.convert_ids_to_tokens(codec.encode("time")) == ["t", "i", "m", "e"]
    assert codec.hf.convert_ids_to_tokens(codec.encode(" time")) == ["▁time"]
    assert codec.hf.convert_ids_to_tokens(codec.encode("\n time")) == ["<0x0A>", "▁time"]
    assert codec.decode(codec.encode("time")) == "time"
    assert codec.decode(codec.encode(" time")) == " time"


@pytest.mark.parametrize("codec", [tiny_codec(), prefix_space_codec()])
def test_what_each_token_says_is_the_text_in_pieces(codec: TextCodec) -> None:
    text = " the time é – 漢 of"
    ids = codec.encode(text)
    said = codec.spell(ids)
    assert len(said) == len(ids)
    assert "".join(said) == codec.decode(ids) == text
    assert not any("\ufffd" in word for word in said)
    assert "漢" in said  # of three tokens, which all but the last say nothing
    assert said[said.index("漢") - 2 : said.index("漢")] == ["", ""]
    end = codec.hf.eos_token_id
    assert codec.spell([*ids, end, *ids[:1]]) == [*said, codec.hf.eos_token, said[0]]


def test_a_character_that_never_ends_is_said_at_the_end() -> None:
    codec = tiny_codec()
    ids = codec.encode("a漢")[:-1]
    assert codec.spell(ids) == ["a", "", "\ufffd"]
    assert codec.spell([]) == []


def test_a_texts_beginning_keeps_the_start_token_and_loses_the_end_token() -> None:
    hf = prefix_space_codec().hf
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    hf.eos_token = "</s>"
    codec = TextCodec(hf)
    assert hf.convert_ids_to_tokens(codec.encode_start("the time")) == ["<s>", "▁the", "▁time"]
    assert codec.encode_start("") == [1]


def test_the_start_token_stays_where_it_is_also_the_end_token() -> None:
    assert prefix_space_codec().encode_start("") == [1]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    hf = wrapped(tiny_codec().hf.backend_tokenizer)
    with pytest.raises(UserError, match="the tokenizer has no end-of-text token, so no response could end"):
        TextCodec(hf)


@pytest.mark.parametrize("codec", [tiny_codec(), pad_is_eos_codec(), prefix_space_codec()])
def test_a_saved_tokenizer_is_loaded_alike(tmp_path: Path, codec: TextCodec) -> None:
    codec.save(tmp_path)
    loaded = load_codec(str(tmp_path))
    for text in (*SENTENCES, " a\n🙂"):
        assert loaded.encode(text) == codec.encode(text)
        assert loaded.encode_start(text) == codec.encode_start(text)
    assert loaded.eos_ids == codec.eos_ids
    assert loaded.hf.chat_template == codec.hf.chat_template


@pytest.mark.parametrize(("eos", "ids"), [(5, {0, 5}), ([5, 6], {0, 5, 6}), (None, {0})])
def test_the_generation_config_adds_ends(tmp_path: Path, eos: int | list[int] | None, ids: set[int]) -> None:
    tiny_codec().save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert load_codec(str(tmp_path)).eos_ids == ids


def test_a_broken_generation_config_is_refused(tmp_path: Path) -> None:
    """Passed over, it would take its end tokens with it, and no response would end."""
    tiny_codec().save(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json cannot be read"):
        load_codec(str(tmp_path))


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer could be loaded from .*none: .*there is no such directory"):
        load_codec(str(tmp_path / "none"))
    tiny_codec().save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer could be loaded from"):
        load_codec(str(tmp_path))


@pytest.mark.parametrize("codec", [tiny_codec(), prefix_space_codec()], ids=["own", "prefix"])
def test_a_response_that_spells_a_special_token_does_not_hold_it(codec: TextCodec) -> None:
    text = f"say {codec.hf.eos_token} and go on"
    ids = codec.encode(text)
    assert not codec.eos_ids & set(ids)
    assert codec.decode(ids) == text


def test_gpt2s_bare_files_are_a_tokenizer(tmp_path: Path) -> None:
    """A vocabulary with the byte alphabet of GPT-2 and one merge: "he" is one token, and "<|endoftext|>" the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "he", "<|endoftext|>"])}
    (tmp_path / "gpt2_vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "gpt2_merges.txt").write_text("#version: 0.2\nh e\n")
    codec = load_codec(str(tmp_path))
    assert codec.encode("hey") == [vocabulary["he"], vocabulary["y"]]
    assert codec.eos_ids == {257}
    assert codec.decode(codec.encode("hey, <|endoftext|>")) == "hey, <|endoftext|>"
