"""Whether what a recipe names is there: the first rows of its data, its models, its functions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from keel.adapter_config import adapter_base, members_of
from keel.config.data import DataConfig
from keel.config.recipe import Recipe
from keel.config.rewards import OWN_WAYS, RewardSource
from keel.data.convert import COMPARISONS, DEMONSTRATIONS, KINDS, PROMPTS, Kind, convert
from keel.data.held_out import without_held_out
from keel.data.load import labels_or_comparisons
from keel.data.read import read_rows
from keel.data.reasons import Check
from keel.doctor.finding import Finding, bad, good, note
from keel.errors import UserError
from keel.inputs import Inputs, stage_inputs
from keel.models.load import context_length, resolve_device
from keel.references import resolve
from keel.runs.layout import STAGES
from keel.text.judging import ChatText
from keel.text.templates import install_template
from keel.text.tokenizers import load_codec, load_tokenizer

_MODEL_MEND = "name a directory, or a hub name that can be reached from here"
_ROWS = 100  # read of each source
KindOf = Kind[Any] | Callable[[DataConfig], Kind[Any]]
_KINDS: dict[str, Kind[Any]] = {"sft.data": DEMONSTRATIONS, "direct.data": COMPARISONS,
                                "evaluate.demonstrations": DEMONSTRATIONS}  # fmt: skip


def check_recipe(recipe: Recipe, out: Path) -> list[Finding]:
    """One finding for each thing that the stages read; what an earlier stage in `out` makes is taken for granted."""
    findings = [_tried("device", lambda: str(resolve_device(recipe.device)), "set device: auto")]
    for stage in STAGES:
        if getattr(recipe, stage) is None:
            continue
        try:
            inputs = stage_inputs(recipe, out, stage)
        except UserError as error:
            findings.append(bad(stage, str(error), f"mend the recipe's `{stage}:`"))
        else:
            findings += _check_inputs(stage, inputs, recipe, out)
    findings += _check_held_out(recipe)
    return list(dict.fromkeys(findings))


def _check_inputs(stage: str, inputs: Inputs, recipe: Recipe, out: Path) -> list[Finding]:
    findings = [
        check_data(key, data, _kind_of(key.partition("[")[0], recipe))
        for key, data in inputs.data.items()
        if not (data.path and Path(data.path).is_relative_to(out))
    ]
    tokenizer = inputs.models.get("tokenizer")
    if tokenizer:
        findings.append(check_tokenizer(tokenizer))
    policies = [source for key, source in inputs.models.items() if key != "tokenizer"]
    model = recipe.model
    trust = model.trust_remote_code
    for source in dict.fromkeys(policies):
        if not Path(source).is_relative_to(out):
            findings.append(check_model(source, model.chat_template, trust_remote_code=trust))
    for reward in inputs.rewards:
        if reward.model and reward.model not in policies and not Path(reward.model).is_relative_to(out):
            findings.append(check_judge(reward, trust_remote_code=trust))
    functions = [*inputs.functions.values(), *(reward.function for reward in inputs.rewards if reward.function)]
    findings += [check_function(reference) for reference in dict.fromkeys(functions)]
    return findings


def _check_held_out(recipe: Recipe) -> list[Finding]:
    try:
        found = without_held_out(recipe)
    except UserError:  # as the check of the data says
        return []
    return [] if found is None else [bad("ppo, held-out prompts", found.said, found.mend)]


def _kind_of(key: str, recipe: Recipe) -> KindOf:
    """What an input holds, or how to see that."""
    if key == "direct.data" and recipe.direct and not recipe.direct.method.pairs:
        return labels_or_comparisons
    if key == "reward.data" and recipe.reward:
        return KINDS[recipe.reward.reads]
    return _KINDS.get(key, PROMPTS)


def check_data(key: str, data: DataConfig, kind_of: KindOf) -> Finding:
    """The first rows of a source as records of the kind."""
    try:
        kind = kind_of if isinstance(kind_of, Kind) else kind_of(data)
        rows = list(islice(read_rows(data), _ROWS))
        converted = [one for row in rows for one in convert(row, kind, data)]
        usable = sum(one.record is not None for one in converted)
        check = Check(len(converted), usable, tuple(finding for one in converted for finding in one.findings))
        check.enforce(1.0, data.name)
    except UserError as error:
        others = f"at {key}" if key.endswith("]") else f"with --set {key}=FILE"  # which replaces no item of a list
        return bad(key, str(error), f"mend the rows, or name others {others}")
    said = f"{data.name}: the first {len(rows)} rows read as {kind.name}"
    if check.unusable_share > data.max_unusable:
        return note(key, f"{said}, {check.unusable} of them cannot be used; `keel data check {data.name}` says why")
    return good(key, said)


def check_model(source: str, chat_template: str, *, trust_remote_code: bool) -> Finding:
    """Its configuration, tokenizer and template can be read, and its weights are there as safetensors."""

    def look() -> str:
        context = context_length(source, trust_remote_code=trust_remote_code)
        install_template(load_codec(source, trust_remote_code=trust_remote_code), chat_template)
        _require_safetensors(source)
        return f"context {context:,}" if context else "no stated context"

    return _tried(f"model {source}", look, _MODEL_MEND)


def check_judge(reward: RewardSource, *, trust_remote_code: bool) -> Finding:
    """As `check_model`, for a reward model: its tokenizer need know no end token, as an encoder's does not."""
    source = str(reward.model)

    def look() -> str:
        members = members_of(source)
        context = context_length(members[0], trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(members[0], trust_remote_code=trust_remote_code)
        if reward.template not in OWN_WAYS:
            install_template(ChatText(tokenizer), reward.template, f"template of the reward {reward.logged_as}")
        for member in members:
            _require_safetensors(member)
        return f"reads {context:,} tokens" if context else "no stated context"

    return _tried(f"reward model {source}", look, _MODEL_MEND)


def _require_safetensors(source: str) -> None:
    for folder in map(Path, filter(None, (source, adapter_base(source)))):
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            raise UserError(f"{folder} holds no safetensors weights (others are never read); convert them first")


def check_tokenizer(source: str) -> Finding:
    """Of a model from nothing whose tokenizer is given."""
    return _tried(f"tokenizer {source}", lambda: f"{len(load_codec(source).hf):,} tokens", _MODEL_MEND)


def check_function(reference: str) -> Finding:
    def look() -> str:
        resolve(reference)
        return "is there"

    return _tried(f"function {reference}", look, "name a function that is there; its module may lie in this directory")


def _tried(what: str, look: Callable[[], str], mend: str) -> Finding:
    try:
        return good(what, look())
    except UserError as error:
        return bad(what, str(error), mend)
