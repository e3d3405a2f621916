"""Models and texts that both sides load: random weights from a fixed seed, in ordinary Hugging Face directories."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

EOS, PAD, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
CONTEXT = 512
_COMMON = 1.0  # length of what all token embeddings share, in standard deviations of the rest over the width


@dataclass(frozen=True)
class Size:
    """A Llama's shape."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int

    @property
    def body(self) -> int:
        """Weights of the body's matrices: what a token's forward multiplies with (embedding rows are looked up)."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the language head."""
        return self.hidden * self.vocab


SIZES = {
    "tiny": Size(64, 2, 2, 128, 256),  # for trying a script out
    "small": Size(256, 4, 4, 688, 8192),
    "big": Size(512, 8, 8, 1376, 16384),
}


@dataclass(frozen=True)
class Models:
    """Directories of one size's models. `endless` is the policy that never draws the end token."""

    folder: Path

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def endless(self) -> Path:
        return self.folder / "endless"

    @property
    def reward(self) -> Path:
        return self.folder / "reward"

    @property
    def value(self) -> Path:
        return self.folder / "value"

    @property
    def reference(self) -> Path:
        """A policy with other weights, for losses that would be a constant where policy and reference are one."""
        return self.folder / "reference"

    def paths(self) -> dict[str, str]:
        """For the specification that a side reads."""
        names = ("policy", "endless", "reference", "reward", "value")
        return {name: str(getattr(self, name).resolve()) for name in names}


def make_models(size: Size, folder: Path, *, mean_length: float, max_length: int, seed: int = 0) -> Models:
    """The models in `folder`, made once.

    The policy ends its responses by itself, after `mean_length` tokens on average where `max_length` cuts them: all
    token embeddings share a component, so the last hidden state has a constant direction, and the end token's row of
    the head lies along it, as long as the probability that is wanted.
    """
    models = Models(folder)
    if (folder / "done").exists():
        return models
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = make_tokenizer(size.vocab)
    policy = _policy(size, seed)
    common = _share_a_direction(policy, seed)
    weight = policy.lm_head.weight
    with torch.no_grad():
        states, others = _look(policy, seed)
        along = states @ common
        weight[PAD] = -50.0 / along.mean() * common  # what pads is never drawn
        weight[EOS] = weight[PAD]
    _save(policy, tokenizer, models.endless)
    with torch.no_grad():
        probability = end_probability(mean_length, max_length)
        weight[EOS] = (math.log(probability / (1 - probability)) + others.mean()) / along.mean() * common
    _save(policy, tokenizer, models.policy)
    for path, number in ((models.reward, 1), (models.value, 2)):
        _save(_classifier(size, seed + number), tokenizer, path)
    _save(_policy(size, seed + 3), tokenizer, models.reference)
    (folder / "done").touch()
    return models


def end_probability(mean_length: float, max_length: int) -> float:
    """p of a token that ends a response, so that min(geometric, max_length) has that mean: (1 - (1-p)^max) / p."""
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** max_length) / middle > mean_length else (low, middle)
    return (low + high) / 2


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A word a token: w3, w4, …; and an end, a padding and an unknown token."""
    words = {"<eos>": EOS, "<pad>": PAD, "<unk>": UNKNOWN} | {f"w{index}": index for index in range(FIRST_WORD, vocab)}
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins with spaces
    kind: Any = PreTrainedTokenizerFast  # untyped
    made: PreTrainedTokenizerFast = kind(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", model_max_length=CONTEXT
    )
    return made


def random_texts(count: int, shortest: int, longest: int, vocab: int, seed: int) -> list[list[int]]:
    """Words as token ids, uniformly drawn, of lengths uniformly drawn."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, longest + 1, count)
    return [generator.integers(FIRST_WORD, vocab, int(length)).tolist() for length in lengths]


def as_text(tokens: list[int]) -> str:
    """What the tokenizer turns into these ids."""
    return " ".join(f"w{token}" for token in tokens)


def _config(size: Size, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocab,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **more,
    )


def _policy(size: Size, seed: int) -> Any:
    torch.manual_seed(seed)
    made: Any = LlamaForCausalLM(_config(size))
    made = made.eval()
    made.generation_config.eos_token_id = EOS
    made.generation_config.pad_token_id = PAD
    return made


def _classifier(size: Size, seed: int) -> Any:
    torch.manual_seed(seed)
    kind: Any = LlamaForSequenceClassification  # untyped
    made = kind(_config(size, num_labels=1))
    return made.eval()


def _share_a_direction(policy: Any, seed: int) -> Tensor:
    """Add one vector to all token embeddings; the unit vector along it. No row of the head leans on it."""
    table = policy.get_input_embeddings().weight
    direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed + 100))
    direction /= direction.norm()
    with torch.no_grad():
        table += _COMMON * table.std() * math.sqrt(table.shape[1]) * direction
        head = policy.lm_head.weight
        head -= torch.outer(head @ direction, direction)
    return direction


@torch.no_grad()
def _look(policy: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Last hidden states [N, H] of random texts, and the logarithm [N] of the sum of all words' exponentials."""
    config = policy.config
    tokens = torch.tensor(random_texts(32, 64, 64, config.vocab_size, seed + 200))
    states = policy.model(input_ids=tokens).last_hidden_state.flatten(0, 1)
    logits = policy.lm_head(states)
    return states, logits[:, FIRST_WORD - 1 :].logsumexp(dim=1)  # the unknown token is drawn like a word


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
