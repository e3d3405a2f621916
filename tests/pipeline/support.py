"""A toy language whose responses can all be listed, and the stand-ins that the tests of the stages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from keel.batching import pad_rows
from keel.engines.scorers import PolicyScorer
from keel.models.policy import Policy
from keel.records import EncodedRow, PromptItem, Samples, Scores
from keel.runs.callbacks import Callback, StageInfo
from keel.runs.identity import Identity
from keel.runs.run import StageRun
from keel.text.render import Renderer
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec
from tests.worlds import with_critic

EOS = 0
WORDS = ("<eos>", "<unk>", "a", "b", "c", "d", "e", "f")
PROMPT = PromptItem(tokens=(2, 3), text="a b", row={}, source="a b")

Response = tuple[int, ...]


class StopAt(Callback):
    """Asks for the end once a step is logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        return step == self.step


class Heard:
    """A console that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.progressed: list[tuple[str, int, int]] = []
        self.shown: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self.progressed.append((stage, done, total))

    def samples(self, stage: str, rows: list[dict[str, Any]]) -> None:
        self.shown += rows


def begin_stage(folder: Path, name: str, said: list[str] | None = None, callbacks: Sequence[Callback] = ()) -> StageRun:
    """A stage's directory outside any run; called again it goes on, as a new process would."""
    folder.mkdir(exist_ok=True)
    stage = StageRun(folder / name, Identity({}, {}), (said if said is not None else []).append, callbacks=callbacks)
    stage.begin()
    return stage


def toy_renderer() -> Renderer:
    """Eight words, the first of which ends a text."""
    raw = Tokenizer(token_models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast  # untyped
    codec = TextCodec(fast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>"))
    install_template(codec, "auto")
    return Renderer(codec)


def toy_config() -> LlamaConfig:
    """A Llama over the eight words."""
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )


def toy_policy(*, critic: bool = False, spread: float = 0.3, seed: int = 0) -> Policy:
    """A random Llama over the eight words."""
    config = toy_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader: Any = AutoModelForCausalLM  # untyped
        backbone: nn.Module = loader.from_config(config)
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=spread)
    return (with_critic(backbone) if critic else Policy(backbone)).eval()


def all_responses(longest: int) -> list[Response]:
    """Every response of at most `longest` tokens: it ends with EOS, or is cut at the limit."""
    words = range(1, len(WORDS))
    ended = [(*start, EOS) for length in range(longest) for start in product(words, repeat=length)]
    return ended + list(product(words, repeat=longest))


def exact_distribution(policy: Policy, longest: int, temperature: float = 1.0) -> Tensor:
    """The probability of each of `all_responses`, float64 [K]."""
    rows = [EncodedRow((*PROMPT.tokens, *response), len(PROMPT.tokens)) for response in all_responses(longest)]
    scorer = PolicyScorer(policy, temperature=temperature, token_budget=10_000)
    return scorer.logprobs(pad_rows(rows)).double().sum(dim=1).exp()


class TableScorer:
    """The score of a response is read from a table; NaN counts as no opinion."""

    def __init__(self, name: str, table: Mapping[Response, float]) -> None:
        self.name = name
        self.table = table

    def score(self, samples: Samples) -> Scores:
        scores = torch.tensor([self.table[response] for response in responses_of(samples)])
        return Scores(total=scores.nan_to_num(0.0), parts={self.name: scores})


def responses_of(samples: Samples) -> list[Response]:
    tokens = samples.sequences.response_tokens().tolist()
    lengths = samples.sequences.response_lengths.tolist()
    return [tuple(row[:length]) for row, length in zip(tokens, lengths, strict=True)]


def samples_of(responses: Sequence[Response], prompts: Sequence[PromptItem] | None = None) -> Samples:
    """Samples as if those responses had been drawn, each token with log-probability -1."""
    prompts = prompts or [PROMPT] * len(responses)
    rows = [EncodedRow((*p.tokens, *r), len(p.tokens)) for p, r in zip(prompts, responses, strict=True)]
    sequences = pad_rows(rows)
    return Samples(
        sequences=sequences,
        logprobs=-sequences.response_mask.float(),
        ended=torch.tensor([response[-1] == EOS for response in responses]),
        prompts=tuple(prompts),
        texts=tuple(" ".join(WORDS[token] for token in response if token != EOS) for response in responses),
    )
