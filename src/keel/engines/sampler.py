"""Sampling in process, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from keel.batching import pad_left, pad_rows
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.functional.logprobs import token_logprobs
from keel.models.policy import Policy
from keel.records import EncodedRow, PromptItem, Samples, Sequences
from keel.text.render import Renderer

_COMPACT_BELOW = 0.75  # share of unfinished rows at which the finished ones leave the batch


class CachedSampler:
    """Draws from a policy a token at a time; prompts are aligned at their ends.

    One uniform number a response and position decides a token by the inverse of the cumulative distribution,
    so a response depends on its own draws, not on its batch (but for the rounding of a larger matrix product).
    A response ends with an end token, or with the token that completes a stop string in its text.
    """

    def __init__(
        self, policy: Policy, renderer: Renderer, watch: Callable[[Sequence[int], Sequence[int]], None] | None = None
    ) -> None:
        """`watch` hears after each step which responses of the batch got a token, and the tokens."""
        self.policy = policy
        self.renderer = renderer
        self._watch = watch
        self._eos = torch.tensor(sorted(renderer.eos_ids), device=policy.device)
        added = renderer.codec.hf.added_tokens_decoder
        self._silent = {number for number, token in added.items() if token.special}  # they say nothing

    @torch.no_grad()
    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        """One response a prompt; `logprobs` are those of the full distribution at the temperature, or None if cut."""
        rows: list[list[int]] = []
        logprobs: list[list[float]] = []
        for start in range(0, len(prompts), config.batch):
            part = prompts[start : start + config.batch]
            indices = range(key.first_sample + start, key.first_sample + start + len(part))
            uniforms = key.draws.uniforms(
                key.purpose, iteration=key.iteration, samples=indices, length=config.max_new_tokens
            )
            tokens, part_logprobs = self._draw(part, config, uniforms)
            rows += tokens
            logprobs += part_logprobs
        sequences = pad_rows(
            [EncodedRow((*prompt.tokens, *row), len(prompt.tokens)) for prompt, row in zip(prompts, rows, strict=True)]
        )
        known = torch.zeros(sequences.response_mask.shape)
        for index, values in enumerate(logprobs):
            known[index, : len(values)] = torch.tensor(values)
        eos = self.renderer.eos_ids
        said = [self.renderer.response_text(p, row) for p, row in zip(prompts, rows, strict=True)]
        texts = [before_stop(text, config.stop) for text in said]
        stopped = [one != other for one, other in zip(texts, said, strict=True)]
        return Samples(
            sequences=sequences,
            logprobs=None if config.truncated or config.temperature == 0 else known,
            ended=torch.tensor([row[-1] in eos or stop for row, stop in zip(rows, stopped, strict=True)]),
            prompts=tuple(prompts),
            texts=tuple(texts),
            judged=self._judged(prompts, rows, texts, stopped) if any(stopped) else None,
        )

    def _judged(
        self,
        prompts: Sequence[PromptItem],
        rows: Sequence[Sequence[int]],
        texts: Sequence[str],
        stopped: Sequence[bool],
    ) -> Sequences:
        """What a reward model reads: a response that a stop string ended, as in its training: text and end token."""
        encoded = []
        for prompt, row, text, stop in zip(prompts, rows, texts, stopped, strict=True):
            ids = self.renderer.answer(prompt.source, prompt.space, text) if stop else row
            encoded.append(EncodedRow((*prompt.tokens, *ids), len(prompt.tokens)))
        return pad_rows(encoded)

    def _completes_stop(self, prompt: PromptItem, ids: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether a response's text holds a stop string. Only its last token is new, so mostly its end tells."""
        said = [token for token in ids if token not in self._silent]
        longest = max(len(stop.encode()) for stop in stops)  # a token says a byte at least
        end = self.renderer.codec.decode(said[-longest:])
        if not any(stop in end for stop in stops):
            return False
        return any(stop in self.renderer.response_text(prompt, ids) for stop in stops)

    def _stopped(
        self, prompts: Sequence[PromptItem], drawn: Tensor, alive: Tensor, finished: Tensor, stops: Sequence[str]
    ) -> Tensor:
        """Which rows of the batch, bool like `finished`, end for a stop string in what was drawn, [prompts, t]."""
        stopped = torch.zeros_like(finished)
        for row in (~finished).nonzero().squeeze(1).tolist():
            number = int(alive[row])
            stopped[row] = self._completes_stop(prompts[number], drawn[number].tolist(), stops)
        return stopped

    def _draw(
        self,
        prompts: Sequence[PromptItem],
        config: SamplingConfig,
        uniforms: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids of each response, its end token included, and their log-probabilities."""
        device = self.policy.device
        tokens, mask = (part.to(device) for part in pad_left([prompt.tokens for prompt in prompts]))
        draws = torch.from_numpy(uniforms).float().to(device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        alive = torch.arange(len(prompts), device=device)  # which response each row of the batch is
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        out_tokens = torch.full((len(prompts), config.max_new_tokens), -1, dtype=torch.long, device=device)
        out_logprobs = torch.zeros((len(prompts), config.max_new_tokens), device=device)
        for step in range(config.max_new_tokens):
            logits = self.policy.next_logits(tokens, mask, positions, cache)
            chosen = choose_tokens(logits, config, draws[alive, step])
            temperature = config.temperature or 1.0
            running = alive[~finished]
            out_tokens[running, step] = chosen[~finished]
            out_logprobs[running, step] = token_logprobs(logits, chosen, temperature=temperature)[~finished]
            if self._watch is not None:
                self._watch(running.tolist(), chosen[~finished].tolist())
            finished = finished | torch.isin(chosen, self._eos)
            if config.stop:
                finished = finished | self._stopped(prompts, out_tokens[:, : step + 1], alive, finished, config.stop)
            left = int((~finished).sum())
            if left == 0:
                break
            if left < _COMPACT_BELOW * len(alive):
                keep = (~finished).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, finished, chosen = alive[keep], finished[keep], chosen[keep]
                mask, positions = mask[keep], positions[keep]
            tokens = chosen[:, None]
            mask = torch.cat([mask, torch.ones((len(alive), 1), dtype=torch.bool, device=device)], dim=1)
            positions = positions[:, -1:] + 1
        lengths = (out_tokens >= 0).sum(dim=1).tolist()
        ids, known = out_tokens.tolist(), out_logprobs.tolist()
        return [row[:n] for row, n in zip(ids, lengths, strict=True)], [
            row[:n] for row, n in zip(known, lengths, strict=True)
        ]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to where the first stop string begins; all of it where there is none."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def choose_tokens(logits: Tensor, config: SamplingConfig, uniforms: Tensor) -> Tensor:
    """One token a row [B] from logits [B, V]: the argmax at temperature 0, else by inverse CDF at `uniforms` [B].

    top-k keeps the k likeliest tokens, top-p the smallest set of likeliest ones whose probability reaches p; the
    draw is from what is kept, renormalised.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits.float() / config.temperature).softmax(dim=-1)
    if config.truncated:
        ranked, order = probs.sort(dim=-1, descending=True)
        before = ranked.cumsum(dim=-1) - ranked  # probability of everything likelier
        cut = before >= config.top_p
        if config.top_k:
            cut[:, config.top_k :] = True
        probs = probs.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), 0.0)
    cumulative = probs.cumsum(dim=-1)
    target = uniforms[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=probs.shape[1] - 1)
    possible = probs.gather(1, chosen[:, None]).squeeze(1) > 0  # rounding may end beyond the last possible token
    return torch.where(possible, chosen, probs.argmax(dim=-1))
