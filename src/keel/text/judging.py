"""What a reward model from elsewhere reads: a prompt and a response, written as its own makers wrote them.

Unlike `render`, which tokenises prompt and response apart so that every stage sees the ids that were sampled, these
write one text and tokenise it whole, as the model's card does: the model is asked what it was trained on.
"""

from __future__ import annotations

from typing import Any, Protocol

from keel.records import EncodedRow
from keel.schema import Dialogue
from keel.text.render import dialogue_text
from keel.text.templates import write_turns
from keel.text.tokenizers import spelt_special


class Encoder(Protocol):
    """Writes a prompt and a response as a model reads them: one of these, or Keel's own `Renderer`."""

    def encode(self, prompt: Dialogue, response: str, *, ended: bool = True) -> EncodedRow:
        """One text; `ended` says that the response was not cut off."""
        ...


class ChatText:
    """The dialogue with the response as its last turn, written by the tokenizer's chat template.

    A prompt of plain text is the user's one message. A response that was cut off is not closed: the text ends with it.
    White space around the response, and around a plain prompt, is left out. A response that spells a special token
    ends no turn by that: there it is tokenised apart, as text.
    """

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self._special = spelt_special(hf)

    def encode(self, prompt: Dialogue, response: str, *, ended: bool = True) -> EncodedRow:
        if isinstance(prompt, str):
            turns: list[dict[str, Any]] = [{"role": "user", "content": prompt.strip()}]
        else:
            turns = [{"role": message.role, "content": message.content} for message in prompt]
        response = response.strip()
        text = write_turns(self, [*turns, {"role": "assistant", "content": response}], open_turn=False)
        found = text.rfind(response) if response else -1
        before = text[:found] if found >= 0 else write_turns(self, turns, open_turn=True)
        if self._special.search(response):
            closing = text[found + len(response) :] if ended and found >= 0 else ""
            ids = [*self._ids(before), *self._ids(response, split_special_tokens=True), *self._ids(closing)]
        else:
            ids = self._ids(text if ended else before + response)
        return EncodedRow(tuple(ids), min(max(len(self._ids(before)), 1), len(ids)))

    def _ids(self, text: str, **options: bool) -> list[int]:
        return list(self.hf(text, add_special_tokens=False, verbose=False, **options).input_ids)


class PairText:
    """Prompt and response as the two texts of a pair, joined by the tokenizer, say `[CLS] prompt [SEP] response [SEP]`.

    White space around both is left out, what spells a special token is text, and nothing in a pair says whether the
    response was cut off.
    """

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self.token_types = 1 in hf("a", "a", verbose=False).get("token_type_ids", [])

    def encode(self, prompt: Dialogue, response: str, *, ended: bool = True) -> EncodedRow:
        before = dialogue_text(prompt).strip()
        options = {"verbose": False, "split_special_tokens": True}
        ids = self.hf(before, response.strip(), **options).input_ids
        return EncodedRow(tuple(ids), min(len(self.hf(before, **options).input_ids), len(ids)))
