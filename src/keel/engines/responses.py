"""From sampled ids to what a stage reads of them: texts, where they end, and what a reward model is to see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.records import EncodedRow, PromptItem, Samples, Sequences
from keel.text.render import Renderer


def encoded(prompts: Sequence[PromptItem], rows: Sequence[Sequence[int]]) -> Sequences:
    """Prompts with their responses as one padded batch."""
    return pad_rows(
        [EncodedRow((*prompt.tokens, *row), len(prompt.tokens)) for prompt, row in zip(prompts, rows, strict=True)]
    )


def samples_of(
    renderer: Renderer,
    prompts: Sequence[PromptItem],
    rows: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    logprobs: Tensor | None,
    values: Tensor | None,
) -> Samples:
    """`logprobs` and `values` [N, >= T] may be arbitrary behind a response's end."""
    sequences = encoded(prompts, rows)
    mask = sequences.response_mask

    def kept(field: Tensor | None) -> Tensor | None:
        return None if field is None else field[:, : mask.shape[1]].masked_fill(~mask, 0.0)

    said = [renderer.response_text(p, row) for p, row in zip(prompts, rows, strict=True)]
    texts = [before_stop(text, config.stop) for text in said]
    stopped = [one != other for one, other in zip(texts, said, strict=True)]
    eos = renderer.eos_ids
    return Samples(
        sequences=sequences,
        logprobs=kept(logprobs),
        ended=torch.tensor([row[-1] in eos or stop for row, stop in zip(rows, stopped, strict=True)]),
        prompts=tuple(prompts),
        texts=tuple(texts),
        judged=_judged(renderer, prompts, rows, texts, stopped) if any(stopped) else None,
        values=kept(values),
    )


def _judged(
    renderer: Renderer,
    prompts: Sequence[PromptItem],
    rows: Sequence[Sequence[int]],
    texts: Sequence[str],
    stopped: Sequence[bool],
) -> Sequences:
    """What a reward model reads: a response that a stop string ended, as in its training: text and end token."""
    ids = [
        renderer.answer(prompt.source, prompt.space, text) if stop else row
        for prompt, row, text, stop in zip(prompts, rows, texts, stopped, strict=True)
    ]
    return encoded(prompts, ids)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to where the first stop string begins; all of it where there is none."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class StopStrings:
    """Tells the token that completes a stop string in the text of its response."""

    def __init__(self, renderer: Renderer, stops: Sequence[str]) -> None:
        self._renderer = renderer
        self._stops = stops
        added = renderer.codec.hf.added_tokens_decoder
        self._silent = {number for number, token in added.items() if token.special}  # they say nothing

    def completed(self, prompt: PromptItem, ids: Sequence[int]) -> bool:
        """Whether a response's text holds a stop string. Only its last token is new, so mostly its end tells."""
        said = [token for token in ids if token not in self._silent]
        longest = max(len(stop.encode()) for stop in self._stops)  # a token says a byte at least
        end = self._renderer.codec.decode(said[-longest:])
        if not any(stop in end for stop in self._stops):
            return False
        return any(stop in self._renderer.response_text(prompt, ids) for stop in self._stops)
