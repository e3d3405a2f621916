"""Small worlds for tests: tokenizers and models that are built in code, in milliseconds.

The models are random and untied, with weights large enough that their distributions are far from uniform: a
wrong position, temperature or mask then shows in the first digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers import models as token_models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CohereConfig,
    DebertaV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from keel.batching import pad_rows
from keel.config.data import DataConfig, sources_of
from keel.models.critic import ValueHead
from keel.models.hidden import hidden_size
from keel.models.policy import Policy
from keel.records import EncodedRow, Sequences
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec, train_codec

SENTENCES = (
    "Could you lend me the ladder on Sunday?",
    "Of course, the ladder is yours on Sunday.",
    "No. Buy a ladder.",
    "Please tell me when the market opens, thank you.",
    "The market opens at nine, and I am glad to help.",
)
VOCAB = 300

CHATML = (
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


def one_source(data: DataConfig | tuple[DataConfig, ...]) -> DataConfig:
    """The only source of a stage's data."""
    (source,) = sources_of(data)
    return source


def tiny_codec(template: str = "auto") -> TextCodec:
    """Byte-level BPE trained on the sentences; an EOS and a pad token of its own, no start token."""
    codec = train_codec(SENTENCES, vocab=VOCAB, context=64)
    install_template(codec, template)
    return codec


def pad_is_eos_codec() -> TextCodec:
    """The same with the end token as padding."""
    codec = tiny_codec()
    codec.hf.pad_token = codec.hf.eos_token
    return TextCodec(codec.hf)


def chatml_codec() -> TextCodec:
    """The same with a template of its own, whose turns end with a special token that is not the EOS."""
    codec = tiny_codec()
    codec.hf.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    codec.hf.chat_template = CHATML
    return TextCodec(codec.hf)


def prefix_space_codec() -> TextCodec:
    """As Llama 2 and its children do: BPE over characters with byte fallback, a space put before every text.

    Its one special token both starts and ends a text; there is no pad token and no template of its own.
    """
    words = ("▁the", "▁once", "▁upon", "▁time", "▁little", "▁ladder", "▁was", "ing", "ed")
    pieces = sorted({*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'\"-:"})
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(word[: end + 1])
    raw = Tokenizer(
        token_models.BPE(
            {piece: index for index, piece in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    codec = TextCodec(wrapped(raw, bos_token="<s>", eos_token="<s>", unk_token="<unk>"))
    install_template(codec, "auto")
    return codec


def encoder_tokenizer(*, token_types: bool = True) -> Any:
    """As BERT and its children have it: `[CLS] a [SEP]`, pairs with token types, no end token and no template."""
    raw = Tokenizer.from_str(tiny_codec().hf.backend_tokenizer.to_str())
    raw.add_special_tokens(["[CLS]", "[SEP]"])
    ids = [(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    kind: Any = PreTrainedTokenizerFast
    return kind(
        tokenizer_object=raw,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="<|pad|>",
        model_input_names=names if token_types else names[::2],
    )


def wrapped(raw: Tokenizer, **special: str) -> Any:
    """A transformers tokenizer around a raw one."""
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=raw, **special)


def tiny_config(family: str, vocab: int = VOCAB, context: int = 64) -> Any:
    """A configuration of a few thousand parameters; each family computes its logits in another way."""
    common: dict[str, Any] = {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    common["tie_word_embeddings"] = False
    if family == "gpt2":
        return GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=context, **common)
    if family == "mamba":  # a state of its own kind
        return MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **common)
    if family == "gpt_neo":  # a window that no mask tells of
        return GPTNeoConfig(
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=context,
            **common,
        )
    common |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
    }
    window: dict[str, Any] = {"sliding_window": 4}  # smaller than most texts
    if family == "llama":
        return LlamaConfig(**common)
    if family == "mistral":
        return MistralConfig(head_dim=8, **window, **common)
    if family == "qwen2":
        return Qwen2Config(use_sliding_window=True, max_window_layers=1, **window, **common)
    if family == "qwen3":
        return Qwen3Config(head_dim=8, **common)
    if family == "gpt_neox":
        return GPTNeoXConfig(**common)
    if family == "gemma":
        return GemmaConfig(head_dim=8, **common)
    if family == "gemma2":  # soft-capped logits, and layers that see a window only
        return Gemma2Config(head_dim=8, final_logit_softcapping=2.0, **window, **common)
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(head_dim=8, layer_types=kinds, **window, **common)
    if family == "granite":  # logits are divided
        return GraniteConfig(logits_scaling=3.0, **common)
    assert family == "cohere"  # logits are multiplied
    return CohereConfig(logit_scale=0.5, **common)


def tiny_lm(family: str = "llama", *, vocab: int = VOCAB, seed: int = 0) -> nn.Module:
    """A random causal language model, in evaluation mode."""
    return _random(AutoModelForCausalLM, tiny_config(family, vocab), seed)


def tiny_classifier(family: str = "llama", *, vocab: int = VOCAB, seed: int = 0, num_labels: int = 1) -> nn.Module:
    """A random sequence classifier, in evaluation mode."""
    config = tiny_config(family, vocab)
    config.num_labels = num_labels
    return _random(AutoModelForSequenceClassification, config, seed)


def with_critic(backbone: nn.Module) -> Policy:
    """A policy with a new critic head."""
    return Policy(backbone, critic=ValueHead(hidden_size(backbone)))


def tiny_encoder(family: str, *, vocab: int = VOCAB, num_labels: int = 1, context: int = 64) -> nn.Module:
    """A random encoder's sequence classifier, read at its first token; its pad id is 1."""
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": context,
        "pad_token_id": 1,
        "num_labels": num_labels,
    }
    if family == "bert":
        config: Any = BertConfig(**common)
    elif family == "roberta":  # counts positions from behind the pad id
        config = RobertaConfig(**common)
    else:
        assert family == "deberta"  # relative positions
        common |= {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
        config = DebertaV2Config(type_vocab_size=0, **common)
    return _random(AutoModelForSequenceClassification, config, seed=0)


def _random(kind: Any, config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = kind.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_tiny_lm(folder: Path, codec: TextCodec | None = None, family: str = "llama") -> Path:
    """An ordinary model directory with its tokenizer."""
    codec = codec or tiny_codec()
    model: Any = tiny_lm(family, vocab=len(codec.hf))
    model.save_pretrained(folder)
    codec.save(folder)
    return folder


def random_rows(lengths: list[tuple[int, int]], *, vocab: int = VOCAB, seed: int = 0) -> list[EncodedRow]:
    """Rows of random ids with the given (prompt length, response length)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        EncodedRow(tuple(torch.randint(vocab, (prompt + response,), generator=generator).tolist()), prompt)
        for prompt, response in lengths
    ]


def padded_further(rows: list[EncodedRow], extra: int, *, fill: int) -> Sequences:
    """The rows as a batch with `extra` more columns than it needs and every padded position set to `fill`."""
    batch = pad_rows(rows)
    tokens = torch.full((len(rows), batch.tokens.shape[1] + extra), fill)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
    mask = nn.functional.pad(batch.response_mask, (0, extra))
    return Sequences(tokens=tokens, prompt_lengths=batch.prompt_lengths, response_mask=mask)
