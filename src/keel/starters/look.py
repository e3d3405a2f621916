"""Looking at a model and at data: nothing is trained, no weights are read."""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from keel.adapter_config import whole_model
from keel.config.data import DataConfig
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, LABELS, PROMPTS, RANKINGS, RATINGS, Kind, guess_kind
from keel.data.load import read_records, told_by
from keel.data.read import read_rows
from keel.data.split import in_validation
from keel.errors import UserError, first_line
from keel.models.load import context_length
from keel.models.quiet import quiet_transformers
from keel.schema import Comparison, Demonstration, Prompt
from keel.starters.facts import ModelFacts, SourceFacts
from keel.text.render import Renderer
from keel.text.templates import install_template
from keel.text.tokenizers import load_codec

_GUESSED_FROM = 100  # rows
_SAMPLE = 500  # rows whose tokens are counted
_HELD_OUT = 16  # prompts that a share should hold out
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)

Record = Prompt | Demonstration | Comparison
R = TypeVar("R")


def look_at_model(source: str) -> tuple[ModelFacts, Renderer]:
    """The facts of a model and the owner of its ids; the parameters are counted without making them.

    Raises UserError where there is no causal language model with a tokenizer.
    """
    kind: Any = AutoModelForCausalLM  # untyped
    try:
        config: Any = AutoConfig.from_pretrained(whole_model(source))
        with quiet_transformers(), torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    except Exception as error:  # many kinds, for files that are not what they should be
        raise UserError(f"{source} is no causal language model that can be loaded: {first_line(error)}") from error
    codec = load_codec(source)
    facts = ModelFacts(
        name=source,
        family=str(config.model_type),
        parameters=parameters,
        context=context_length(source),
        vocabulary=int(config.get_text_config().vocab_size),
        own_template=codec.hf.chat_template is not None,
    )
    install_template(codec, "auto")
    return facts, Renderer(codec)


def look_at_data(source: str, renderer: Renderer) -> SourceFacts:
    """The facts of a source of rows.

    Raises UserError where it cannot be read, its rows are of no known kind, or none of them can be used.
    """
    config = DataConfig.model_validate(source)
    kind = _kind(config)
    records, check = read_records(config, kind)
    check.enforce(1.0, source)
    sample = _spread(records, _SAMPLE)
    with quiet_transformers():  # its warning of texts beyond the context: here they are only counted
        lengths = [_lengths(renderer, record) for record in sample]
    validation, held_out = _validation(list(dict.fromkeys(map(told_by, records))))
    return SourceFacts(
        name=source,
        kind=kind.name,
        total=check.total,
        usable=check.usable,
        unusable=check.unusable,
        chat=any(not isinstance(record.prompt, str) for record in sample),
        gives_prompts=all(record.prompt for record in records) and _reads_as_prompts(config),
        validation=validation,
        held_out=held_out,
        prompt_lengths=tuple(prompt for prompt, _ in lengths),
        response_lengths=tuple(length for _, responses in lengths for length in responses),
        row_lengths=tuple(prompt + max(responses, default=0) for prompt, responses in lengths),
    )


def _kind(config: DataConfig) -> Kind[Any]:
    """What a stage reads the source as: by the first row that fits any kind."""
    rows = [row.value for row in islice(read_rows(config), _GUESSED_FROM) if row.value is not None]
    if not rows:
        raise UserError(f"{config.name} holds no row that can be read; `keel data check {config.name}` says why")
    kind = next((kind for kind in (guess_kind(row, config) for row in rows) if kind is not None), None)
    if kind is None:
        raise UserError(
            f"{config.name} has the columns {', '.join(rows[0]) or '(none)'}, which fit no kind of record; name them "
            f"with `keel data convert {config.name} --field prompt=… --field response=… --out NEW.jsonl`"
        )
    if kind is RATINGS:
        raise UserError(
            f"{config.name} holds ratings, from which no stage learns yet; a function of yours can make "
            "comparisons of them (keel data convert --map my_rules:pairs --kind comparisons)"
        )
    if kind is RANKINGS:
        return COMPARISONS
    return DEMONSTRATIONS if kind is LABELS else kind


def _reads_as_prompts(config: DataConfig) -> bool:
    _, check = read_records(config, PROMPTS)
    return check.usable > 0 and check.unusable_share <= config.max_unusable


def _lengths(renderer: Renderer, record: Record) -> tuple[int, list[int]]:
    """Tokens of the prompt and of each response."""
    if isinstance(record, Prompt):
        return renderer.length(record), []
    if isinstance(record, Demonstration):
        prompt, response = renderer.lengths(record)
        return prompt, [response]
    rows = renderer.comparison(record)
    return rows[0].prompt_length, [row.response_length for row in rows]


def _spread(rows: tuple[R, ...], count: int) -> list[R]:
    """At most `count` rows, evenly from the first to the last."""
    step = max(1.0, len(rows) / count)
    return [rows[int(index * step)] for index in range(min(count, len(rows)))]


def _validation(prompts: list[Any]) -> tuple[float, int]:
    """The smallest share that holds out enough prompts (else the largest), and how many it does."""
    counts = {share: sum(in_validation(prompt, share) for prompt in prompts) for share in _SHARES}
    return next(((share, count) for share, count in counts.items() if count >= _HELD_OUT), list(counts.items())[-1])
