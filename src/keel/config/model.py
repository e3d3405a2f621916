"""Which model is trained, and how its text is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from keel.config.base import Config, without_effect


class ScratchConfig(Config):
    """A Llama built from nothing; its tokenizer is trained on the supervised stage's data, or given."""

    hidden: int = Field(192, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    intermediate: int | None = Field(None, gt=0, description="width of the MLP; 8/3 of `hidden` unless given")
    vocab: int = Field(1024, ge=260, description="most tokens the trained tokenizer may have; 256 are the bytes")
    tokenizer: str | None = Field(
        None, description="a tokenizer to use: a directory (a bare vocab.json and merges.txt will do) or a hub name"
    )
    context: int = Field(512, gt=0, description="longest text in tokens")

    def contradictions(self) -> Iterator[str]:
        if self.hidden % (2 * self.heads):
            yield f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads})"
        if self.tokenizer is not None:
            yield from without_effect(self, "vocab", because="with a given tokenizer, which has its own")


class LoRAConfig(Config):
    """Low-rank adapters: W + (alpha / rank) B A, where only A and B train (Hu et al., 2021)."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="names of the linear layers that are adapted; all of the body's unless given"
    )


class ModelConfig(Config):
    """A base model (a directory or a hub name) or one from nothing."""

    base: str | None = None
    scratch: ScratchConfig | None = None
    tune: Literal["full", "lora"] = Field(
        "full", description="lora: one frozen base, adapters train; a `scratch` model's supervised stage is always full"
    )
    lora: LoRAConfig = LoRAConfig()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of weights and activations; what trains also keeps float32 copies. auto: bfloat16 on CUDA"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="the attention kernel; auto: transformers' choice for the model"
    )
    chat_template: str = Field(
        "auto", description="auto: the tokenizer's own, else Keel's plain one; or the path of a Jinja file"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with a hub model")

    def contradictions(self) -> Iterator[str]:
        if (self.base is None) == (self.scratch is None):
            yield "give exactly one of `base` (a path or a hub name) and `scratch` (a model from nothing)"
        if self.tune == "full":
            yield from without_effect(self, "lora", because="with tune: full")
