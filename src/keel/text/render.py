"""Records to token ids: the only owner of ids, and of which tokens are a response.

Prompt and response are tokenised apart, in every stage alike, so that a token never straddles the border:
what supervised training teaches, what is sampled and what is scored are the same ids. So is every earlier turn of
the assistant in a dialogue: what was a response stays the same ids when more turns follow it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from keel.errors import UserError
from keel.records import EncodedRow, EncodedText, PromptItem
from keel.schema import (
    CHOSEN_ENDED,
    REJECTED_ENDED,
    AnyRecord,
    Comparison,
    Demonstration,
    Dialogue,
    Message,
    Prompt,
    Ranking,
)
from keel.text.templates import end_of_turn, take_apart, write_turns
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


def cut_left(ids: Sequence[int], room: int, start_ids: Collection[int]) -> list[int]:
    """At most `room` ≥ 1 ids of a prompt: its start token, if there is one, and as much of its end as fits."""
    if len(ids) <= room:
        return list(ids)
    if room < 1:
        raise ValueError(f"no prompt fits in {room} tokens")
    kept = int(ids[0] in start_ids)
    return [*ids[:kept], *ids[len(ids) - room + kept :]]


class Renderer:
    """Turns records into ids with one tokenizer and its chat template."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.turn_end = end_of_turn(codec)
        self.eos_ids = codec.eos_ids if self.turn_end is None else codec.eos_ids | {self.turn_end}
        self._start_ids = {codec.hf.bos_token_id, codec.encode_start("")[0]}

    def prompt(self, prompt: Dialogue) -> tuple[list[int], str]:
        """Ids of a prompt, and the space at its end, which belongs to the response's first word.

        Raises UserError where the chat template refuses the dialogue, or a turn of it spells a special token and the
        template rewrites turns, so that what is whose cannot be told.
        """
        if isinstance(prompt, str):
            stripped = prompt.rstrip(" ")
            return self.codec.encode_start(stripped), prompt[len(stripped) :]
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        writer = _Writer(self.codec)
        for text, number in self._pieces(prompt, turns):
            if number is None:
                writer.template(text)
            elif prompt[number].role == "assistant":
                writer.apart(text)
            else:
                writer.said(text)
        return writer.finish()

    def _pieces(self, prompt: Sequence[Message], turns: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
        """The dialogue as the template writes it, in pieces where they matter: (text, turn or None)."""
        spelled = [turn["content"] for turn in turns if self.codec.spelled(turn["content"])]
        if spelled or any(message.role == "assistant" for message in prompt):
            pieces = take_apart(self.codec, turns)
            if pieces is not None:
                return pieces
        if spelled:
            raise UserError(
                f"a turn of a dialogue spells a special token ({spelled[0]!r:.80}), and this chat template rewrites "
                "turns, so it cannot be kept from being one; change the turn, or leave the row out"
            )
        return [(write_turns(self.codec, turns, open_turn=True), None)]

    def end_token(self, prompt: Dialogue) -> int:
        """The token that ends a response: the template's end of turn in a chat, else the tokenizer's EOS."""
        if isinstance(prompt, str) or self.turn_end is None:
            return int(self.codec.hf.eos_token_id)
        return self.turn_end

    def cut(self, ids: Sequence[int], room: int) -> list[int]:
        """See `cut_left`."""
        return cut_left(ids, room, self._start_ids)

    def item(self, prompt: Prompt, *, room: int | None = None, kind: str | None = None) -> PromptItem:
        """A prompt ready to be sampled from, its oldest tokens cut where it is longer than `room`.

        Text that a chat template adds is not part of `text`; what is cut is still part of `text` and `source`.
        """
        ids, space = self.prompt(prompt.prompt)
        tokens = tuple(ids if room is None else self.cut(ids, room))
        text = dialogue_text(prompt.prompt)
        return PromptItem(tokens, text, row=prompt.extra, source=prompt.prompt, kind=kind, space=space)

    def answer(self, prompt: Dialogue, space: str, response: str, *, ended: bool = True) -> list[int]:
        """Ids of a response after that prompt and its space, with its end token unless it was cut off."""
        ids = self.codec.encode(space + response)
        return [*ids, self.end_token(prompt)] if ended else ids

    def encode(self, prompt: Dialogue, response: str, *, ended: bool = True, room: int | None = None) -> EncodedRow:
        """Prompt, response and (unless it was cut off) its end token as ids; the response is what trains.

        The prompt is cut where both are longer than `room`.
        """
        ids, space = self.prompt(prompt)
        answer = self.answer(prompt, space, response, ended=ended)
        if room is not None:
            ids = self.cut(ids, room - len(answer))
        return EncodedRow((*ids, *answer), prompt_length=len(ids))

    def demonstration(
        self,
        row: Demonstration,
        *,
        train_on: Literal["last", "all"] = "last",
        room: int | None = None,
        kind: str | None = None,
    ) -> EncodedText:
        """Prompt and response as ids, the prompt cut where both are longer than `room`.

        The response trains, with its end token; with `train_on="all"` every earlier turn of the assistant too.
        Raises UserError where the template does not leave an earlier turn the ids that it had as a response.
        """
        ids, space = self.prompt(row.prompt)
        answer = self.answer(row.prompt, space, row.response)
        trains = [False] * len(ids)
        if train_on == "all" and not isinstance(row.prompt, str):
            for start, end in self._earlier_turns(row.prompt, ids):
                trains[start:end] = [True] * (end - start)
        if room is not None and len(ids) + len(answer) > room:
            ids, trains = self._cut_trained(ids, trains, room - len(answer))
        return EncodedText((*ids, *answer), (*trains, *[True] * len(answer)), kind)

    def _cut_trained(self, ids: list[int], trains: list[bool], room: int) -> tuple[list[int], list[bool]]:
        """A prompt cut on the left; a turn that is cut into does not train."""
        kept = self.cut(ids, room)
        gone = len(ids) - len(kept)
        marks = trains[gone:]  # ids[gone] itself stays only where no start token does
        if trains[gone]:
            whole = next((index for index, mark in enumerate(marks) if not mark), len(marks))
            marks[:whole] = [False] * whole
        return kept, marks

    def _earlier_turns(self, prompt: tuple[Message, ...], ids: list[int]) -> list[tuple[int, int]]:
        """(start, end) in the prompt's ids of each turn that the assistant had before the last one."""
        spans = []
        for number, message in enumerate(prompt):
            if message.role != "assistant" or not message.content.strip() or number == 0:
                continue
            before, space = self.prompt(prompt[:number])
            start = len(before)
            answers = [self.answer(prompt, space, said) for said in (message.content, message.content.strip())]
            end = next((start + len(one) for one in answers if ids[: start + len(one)] == before + one), None)
            if end is None or self.turn_end is None:
                raise UserError(
                    "sft.train_on: all needs a chat template that writes a turn of the assistant, and what stands "
                    "before it, alike whether more turns follow or not, its end token right behind it; this one does "
                    "not, so give another model.chat_template, or train_on: last"
                )
            spans.append((start, end))
        return spans

    def comparison(self, row: Comparison, *, room: int | None = None) -> tuple[EncodedRow, EncodedRow]:
        """(chosen, rejected); the columns `chosen_ended` and `rejected_ended` say which was cut off.

        Where the longer one passes `room` their one prompt is cut.
        """
        ended = [row.extra.get(column) is not False for column in (CHOSEN_ENDED, REJECTED_ENDED)]
        chosen, rejected = self._responses(row.prompt, [row.chosen, row.rejected], ended, room)
        return chosen, rejected

    def ranking(self, row: Ranking, *, room: int | None = None) -> tuple[EncodedRow, ...]:
        """Each response after their one prompt, which is cut where the longest one passes `room`."""
        return self._responses(row.prompt, row.responses, [True] * len(row.responses), room)

    def _responses(
        self, prompt: Dialogue, responses: Sequence[str], ended: Sequence[bool], room: int | None
    ) -> tuple[EncodedRow, ...]:
        ids, space = self.prompt(prompt)
        answers = [
            self.answer(prompt, space, response, ended=whole) for response, whole in zip(responses, ended, strict=True)
        ]
        if room is not None:
            ids = self.cut(ids, room - max(map(len, answers)))
        return tuple(EncodedRow((*ids, *answer), len(ids)) for answer in answers)

    def lengths(self, row: AnyRecord) -> tuple[int, int]:
        """Tokens of a record: of its prompt, and of its longest response."""
        if isinstance(row, Prompt):
            return len(self.prompt(row.prompt)[0]), 0
        if isinstance(row, Comparison):
            rows: tuple[EncodedRow, ...] = self.comparison(row)
        elif isinstance(row, Ranking):
            rows = self.ranking(row)
        else:
            rows = (self.encode(row.prompt, row.response),)
        return rows[0].prompt_length, max(one.response_length for one in rows)

    def length(self, row: AnyRecord) -> int:
        """Tokens of a record: a prompt's own, else those of prompt and longest response together."""
        return sum(self.lengths(row))

    def response_text(self, prompt: PromptItem, ids: Sequence[int]) -> str:
        """What a sampled response says, without its end token: `encode` takes it back beside the same prompt."""
        said = ids[:-1] if ids and ids[-1] in self.eos_ids else ids  # an end token need not be a special one
        return self.codec.decode(said).removeprefix(prompt.space)


@dataclass
class _Writer:
    """Joins the pieces of a dialogue to ids: what is not kept apart is tokenised together, as the template wrote it."""

    codec: TextCodec
    ids: list[int] = field(default_factory=list)
    text: str = ""  # not yet ids
    begun: bool = False

    def template(self, text: str) -> None:
        """What the template wrote: special tokens in it are special."""
        self.text += text

    def said(self, text: str) -> None:
        """What a user or the system said: a special token that it spells is text."""
        at = 0
        for start, end in self.codec.spelled(text):
            self.text += text[at:start]
            self._flush(self.text)
            self.ids += self.codec.encode(text[start:end])
            at = end
        self.text += text[at:]

    def apart(self, text: str) -> None:
        """What the assistant said, with the space before it: tokenised apart, as a response is."""
        stripped = self.text.rstrip(" ")
        space = self.text[len(stripped) :]
        self._flush(stripped)
        self.ids += self.codec.encode(space + text)

    def finish(self) -> tuple[list[int], str]:
        """All ids, and the space at the end."""
        stripped = self.text.rstrip(" ")
        space = self.text[len(stripped) :]
        self._flush(stripped)
        return self.ids, space

    def _flush(self, text: str) -> None:
        self.ids += self.codec.encode_template(text, inside=self.begun)
        self.begun, self.text = True, ""
