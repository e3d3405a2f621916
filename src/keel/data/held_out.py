"""Whether ppo will have prompts to be measured on: known from its data alone, before any stage has done a thing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keel.config.data import DataConfig, sources_of
from keel.config.recipe import Recipe
from keel.config.yaml_text import read_yaml
from keel.data.convert import PROMPTS
from keel.data.load import told_by
from keel.data.reading import Reading
from keel.data.split import in_validation
from keel.errors import UserError
from keel.schema import Prompt

_PLAIN = re.compile(r"[\w./][\w./:~ -]*[\w./]")
_SHARES = (0.1, 0.2, 0.3, 0.5)  # the least that holds a prompt out is proposed


@dataclass(frozen=True)
class NoneHeldOut:
    """What is wrong, and what mends it."""

    said: str
    mend: str

    def __str__(self) -> str:
        return f"ppo has no held-out prompts: {self.said}; {self.mend}"


def require_held_out(recipe: Recipe) -> None:
    """Raises UserError where ppo would find no held-out prompts, or its prompts cannot be read."""
    found = without_held_out(recipe)
    if found is not None:
        raise UserError(str(found))


def without_held_out(recipe: Recipe) -> NoneHeldOut | None:
    """None where a prompt is held out: then nothing after it is read. Raises UserError for what cannot be read."""
    if recipe.ppo is None or recipe.ppo.evaluate.prompts is not None:
        return None
    read: list[tuple[DataConfig, list[Prompt]]] = []
    for data in sources_of(recipe.ppo.prompts):
        reading, prompts = Reading(data, PROMPTS), list[Prompt]()
        for prompt in reading:
            if _holds_out(data, prompt, data.validation):
                return None
            prompts.append(prompt)
        reading.check.enforce(data.max_unusable, data.name)
        read.append((data, prompts))
    return none_held_out(read)


def none_held_out(read: Sequence[tuple[DataConfig, Sequence[Prompt]]]) -> NoneHeldOut:
    """Of the sources of ppo.prompts and what was read of each."""
    count, names = sum(len(prompts) for _, prompts in read), ", ".join(data.name for data, _ in read)
    shares = " and ".join(dict.fromkeys(f"{data.validation:g}" for data, _ in read))
    said = f"none of the {count:,} in {names} falls into the share that is held out ({shares})"
    others = "name others with --set ppo.evaluate.prompts=FILE"
    for number, (data, prompts) in enumerate(read):
        share = next((one for one in _SHARES if one > data.validation and _divides(data, prompts, one)), None)
        if share is not None and len(read) > 1:
            return NoneHeldOut(said, f"raise `validation` of source {number} of ppo.prompts to {share:g}, or {others}")
        if share is not None:
            return NoneHeldOut(said, f"hold some out with --set {_setting(data, share)}, or {others}")
    return NoneHeldOut(said, f"give more prompts, or {others}")


def _divides(data: DataConfig, prompts: Sequence[Prompt], share: float) -> bool:
    """Whether some are held out, and some are not."""
    return len({_holds_out(data, prompt, share) for prompt in prompts}) == 2


def _holds_out(data: DataConfig, prompt: Prompt, share: float) -> bool:
    return in_validation(told_by(prompt, data.system), share, data.together)


def _setting(data: DataConfig, share: float) -> str:
    """The source with that share, as the shell takes it: whole, for the recipe may give the path alone."""
    whole = data.model_dump(mode="json", exclude_defaults=True) | {"validation": share}
    text = ", ".join(f"{key}: {_as_yaml(value)}" for key, value in whole.items())
    return shlex.quote(f"ppo.prompts={{{text}}}")


def _as_yaml(value: Any) -> str:
    """Of what JSON has: as JSON, which is YAML too, but for texts that need no quotes."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and read_yaml(value) == value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)
