"""What a directory says of itself that holds an adapter, or an ensemble. No torch: inputs are told apart by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keel.errors import UserError

CONFIG_FILE = "adapter_config.json"
ENSEMBLE_FILE = "ensemble.json"  # names the members of an ensemble, each a reward model in a folder beside it
_TOKENIZER_CONFIG = "tokenizer_config.json"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's own description. Raises UserError where it is none."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, RecursionError, AssertionError):
        raise UserError(f"{folder / CONFIG_FILE} cannot be read as an adapter's description") from None
    return config


def adapter_base(source: str) -> str | None:
    """The model that a directory's adapter belongs on; None where the directory holds a whole model.

    A relative path starts at the adapter's own directory, or where there is nothing, at the working directory.
    Raises UserError for an adapter that belongs, by one or several others, on itself.
    """
    chain = [source]
    while (base := _named_base(chain[-1])) is not None:
        if Path(base).resolve() in (Path(known).resolve() for known in chain):
            raise UserError(f"the adapter {source} belongs on itself ({CONFIG_FILE} names {base}); name its model")
        chain.append(base)
    return chain[1] if len(chain) > 1 else None


def _named_base(source: str) -> str | None:
    folder = Path(source)
    if not (folder / CONFIG_FILE).is_file():
        return None
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"{folder / CONFIG_FILE} does not name the model the adapter belongs on")
    beside = folder / base
    return str(beside) if beside.is_dir() else base


def whole_model(source: str) -> str:
    """The model below a directory's adapter, or adapters; the source itself where it is no adapter."""
    while (base := adapter_base(source)) is not None:
        source = base
    return source


def tokenizer_source(source: str) -> str:
    """Where the tokenizer of a model stands: an adapter may come with one, or use its base's."""
    while (base := adapter_base(source)) is not None and not (Path(source) / _TOKENIZER_CONFIG).is_file():
        source = base
    return source


def members_of(source: str) -> tuple[str, ...]:
    """The reward models that a directory's ensemble is made of; the source alone where it is one model."""
    file = Path(source) / ENSEMBLE_FILE
    if not file.is_file():
        return (source,)
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["members"]
        assert len(names) > 1
        assert all(name == Path(name).name != ".." for name in names)  # beside it, and nowhere else
        return tuple(str(Path(source) / name) for name in names)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, AssertionError):
        raise UserError(f"{file} does not list the members of an ensemble") from None
