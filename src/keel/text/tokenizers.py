"""Loading and training tokenizers, and the policy on BOS, EOS and prefix spaces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from keel.adapter_config import tokenizer_source, whole_model
from keel.errors import UserError, first_line, wants_code

EOS, PAD = "<|eos|>", "<|pad|>"
_ANCHOR = "\n"  # never merges with a letter: what follows it is encoded as inside a text
_OPENER = "a"  # a letter, so never one of the bytes that a decoder joins to a character


class TextCodec:
    """A tokenizer under Keel's rules: no special tokens and no prefix space inside a text; EOS is a set.

    `hf` is the transformers tokenizer (saved with every artefact).
    """

    def __init__(self, hf: Any, generation_eos: Iterable[int] = ()) -> None:
        self.hf = hf
        if hf.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token, so no response could end; set its eos_token")
        self.eos_ids: frozenset[int] = frozenset({int(hf.eos_token_id), *generation_eos})
        # Sentence-piece style tokenizers put a space before any text, so a response would begin with one.
        self._opener_ids: list[int] = hf.encode(_OPENER, add_special_tokens=False)
        opener = hf.convert_ids_to_tokens(self._opener_ids)
        self._adds_prefix_space = bool(opener) and opener[0].startswith("\u2581")
        self._anchor_ids: list[int] = hf.encode(_ANCHOR, add_special_tokens=False)
        self._special = spelt_special(hf)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands inside a longer one: no special tokens, no prefix space.

        What spells a special token is text here: a response that says "<|eos|>" does not end there.
        """
        return self._encode_inside(text, split_special_tokens=True)

    def encode_template(self, text: str, *, inside: bool) -> list[int]:
        """Ids of what a chat template wrote, whose special tokens are such; `inside` a text, or at its beginning."""
        if inside:
            return self._encode_inside(text, split_special_tokens=False)
        return list(self.hf.encode(text, add_special_tokens=False))

    def spelled(self, text: str) -> list[tuple[int, int]]:
        """Where a text spells a special token: (start, end) of each."""
        return [found.span() for found in self._special.finditer(text)]

    def _encode_inside(self, text: str, *, split_special_tokens: bool) -> list[int]:
        if not text:
            return []
        opening = _ANCHOR if self._adds_prefix_space else ""
        split = split_special_tokens
        ids = list(self.hf.encode(opening + text, add_special_tokens=False, split_special_tokens=split))
        if not self._adds_prefix_space:
            return ids
        anchor = self._anchor_ids
        assert ids[: len(anchor)] == anchor, "the tokenizer merged the anchor with the text"
        return ids[len(anchor) :]

    def encode_start(self, text: str) -> list[int]:
        """Ids of a text's beginning, with the tokenizer's own start token where it has one, never an end token.

        From nothing it is the start token; a tokenizer that puts none there has the BOS or, as GPT-2, the EOS for it.
        What spells a special token is text here too.
        """
        if not text and not self.hf.encode(text):
            bos = self.hf.bos_token_id
            return [int(self.hf.eos_token_id if bos is None else bos)]
        ids = list(self.hf.encode(text, split_special_tokens=True))
        bare = list(self.hf.encode(text, add_special_tokens=False, split_special_tokens=True))
        appended = len(ids) > 1 and ids[-1] == self.hf.eos_token_id and bare[-1:] != ids[-1:]
        return ids[:-1] if appended else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that stand inside a longer text, special tokens left out."""
        ids = list(ids)
        if not self._adds_prefix_space:
            return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        text = self.hf.decode(self._opener_ids + ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).lstrip(" ").removeprefix(_OPENER)

    def spell(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text of `ids`; a special one is called by its name.

        A character of several tokens stands where its last one does.
        """
        special = self.hf.added_tokens_decoder
        words, said = [], ""
        for end, token in enumerate(ids, start=1):
            if token in special and special[token].special:
                words.append(str(special[token]))
                continue
            text = self.decode(ids[:end])
            settled = text if end == len(ids) else text.rstrip("\ufffd")
            words.append(settled[len(said) :])
            said = said if len(settled) < len(said) else settled
        return words

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, chat template included."""
        self.hf.save_pretrained(folder)


def spelt_special(hf: Any) -> re.Pattern[str]:
    """What finds the special tokens of a tokenizer that a text spells."""
    special = {str(token) for token in hf.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")


def load_codec(source: str, *, trust_remote_code: bool = False) -> TextCodec:
    """The tokenizer of a model (or adapter) directory or hub name; its EOS set includes the generation config's."""
    hf = load_tokenizer(source, trust_remote_code=trust_remote_code)
    return TextCodec(hf, _generation_eos(whole_model(source)))


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """transformers' tokenizer of a model (or adapter) directory or hub name, as it is."""
    source = tokenizer_source(source)
    try:
        return _bare_bpe(Path(source)) or AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # the libraries raise many kinds for files that are not what they should be
        what = f"{first_line(error)} ({type(error).__name__})"
        hint = wants_code(error) or "; fetch its files again, or save it anew with transformers"
        if not Path(source).is_dir():
            hint = " (and there is no such directory)"
        raise UserError(f"no tokenizer could be loaded from {source}: {what}{hint}") from error


def _bare_bpe(folder: Path) -> Any:
    """GPT-2's tokenizer from its two bare files, which AutoTokenizer does not take; None where they are not alone."""
    vocabularies, merges = list(folder.glob("*vocab.json")), list(folder.glob("*merges.txt"))
    if (folder / "tokenizer_config.json").exists() or len(vocabularies) != 1 or len(merges) != 1:
        return None
    kind: Any = GPT2Tokenizer  # untyped
    return kind(vocab=str(vocabularies[0]), merges=str(merges[0]))


def _generation_eos(source: str) -> list[int]:
    from transformers import GenerationConfig

    try:
        eos: Any = GenerationConfig.from_pretrained(source).eos_token_id
    except Exception as error:
        if (Path(source) / "generation_config.json").exists():
            raise UserError(f"{source}/generation_config.json cannot be read: {first_line(error)}") from None
        return []
    ids = [eos] if isinstance(eos, int) else list(eos or [])
    if not all(isinstance(one, int) for one in ids):
        raise UserError(
            f"{source}/generation_config.json: eos_token_id is {eos!r}, neither a number nor a list of them"
        )
    return ids


def train_codec(texts: Iterable[str], *, vocab: int, context: int) -> TextCodec:
    """A byte-level BPE trained on the texts, with an end and a padding token of its own."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast  # untyped
    hf = fast(tokenizer_object=raw, eos_token=EOS, pad_token=PAD, model_max_length=context)
    return TextCodec(hf)
