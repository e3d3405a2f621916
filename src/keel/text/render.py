"""Records to token ids: the only owner of ids, and of which tokens are a response.

Prompt and response are tokenised apart, in every stage alike, so that a token never straddles the border:
what supervised training teaches, what is sampled and what is scored are the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from keel.errors import UserError
from keel.records import EncodedRow, PromptItem
from keel.schema import CHOSEN_ENDED, REJECTED_ENDED, Comparison, Demonstration, Dialogue, Prompt
from keel.text.templates import end_of_turn, write_turns
from keel.text.tokenizers import TextCodec


def dialogue_text(prompt: Dialogue) -> str:
    """A prompt as plain text, for people, annotators and reward functions.

    A single user message is its content; a longer dialogue is one `role: content` line a message.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


class Renderer:
    """Turns records into ids with one tokenizer and its chat template."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.turn_end = end_of_turn(codec)
        self.eos_ids = codec.eos_ids if self.turn_end is None else codec.eos_ids | {self.turn_end}

    def prompt(self, prompt: Dialogue) -> tuple[list[int], str]:
        """Ids of a prompt, and the space at its end, which belongs to the response's first word."""
        if isinstance(prompt, str):
            stripped = prompt.rstrip(" ")
            ids = self.codec.encode_start(stripped)
            if not ids:
                raise UserError("an empty prompt needs a tokenizer with a start token; this one has none")
            return ids, prompt[len(stripped) :]
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        text = write_turns(self.codec, messages, open_turn=True)
        stripped = text.rstrip(" ")
        return self.codec.hf.encode(stripped, add_special_tokens=False), text[len(stripped) :]

    def end_token(self, prompt: Dialogue) -> int:
        """The token that ends a response: the template's end of turn in a chat, else the tokenizer's EOS."""
        if isinstance(prompt, str) or self.turn_end is None:
            return int(self.codec.hf.eos_token_id)
        return self.turn_end

    def item(self, prompt: Prompt) -> PromptItem:
        """A prompt ready to be sampled from. Text that a chat template adds is not part of `text`."""
        ids, space = self.prompt(prompt.prompt)
        text = dialogue_text(prompt.prompt)
        return PromptItem(tokens=tuple(ids), text=text, row=prompt.extra, source=prompt.prompt, space=space)

    def encode(self, prompt: Dialogue, response: str, *, ended: bool = True) -> EncodedRow:
        """Prompt, response and (unless it was cut off) its end token as ids; the response is what trains."""
        ids, space = self.prompt(prompt)
        answer = self.codec.encode(space + response)
        if ended:
            answer.append(self.end_token(prompt))
        return EncodedRow(tokens=(*ids, *answer), prompt_length=len(ids))

    def demonstration(self, row: Demonstration) -> EncodedRow:
        return self.encode(row.prompt, row.response)

    def comparison(self, row: Comparison) -> tuple[EncodedRow, EncodedRow]:
        """(chosen, rejected); the columns `chosen_ended` and `rejected_ended` say which was cut off."""
        return (
            self.encode(row.prompt, row.chosen, ended=row.extra.get(CHOSEN_ENDED) is not False),
            self.encode(row.prompt, row.rejected, ended=row.extra.get(REJECTED_ENDED) is not False),
        )

    def length(self, row: Prompt | Demonstration | Comparison) -> int:
        """Tokens of a record: a prompt's own, else those of prompt and longest response together."""
        if isinstance(row, Prompt):
            return len(self.prompt(row.prompt)[0])
        if isinstance(row, Demonstration):
            return len(self.demonstration(row).tokens)
        return max(len(side.tokens) for side in self.comparison(row))

    def response_text(self, prompt: PromptItem, ids: Sequence[int]) -> str:
        """What a sampled response says, without its end token: `encode` takes it back beside the same prompt."""
        said = ids[:-1] if ids and ids[-1] in self.eos_ids else ids  # an end token need not be a special one
        return self.codec.decode(said).removeprefix(prompt.space)
