"""A model out of a run, ready to be given away: merged or as its adapter alone, with a model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from keel.adapter_config import CONFIG_FILE, ENSEMBLE_FILE, adapter_base, members_of, read_adapter_config
from keel.build.shelf import ADAPTER
from keel.errors import UserError
from keel.models.adapters import WEIGHTS_FILE
from keel.models.export import NORMALISATION_FILE
from keel.models.load import load_causal_lm, load_classifier
from keel.models.quiet import quiet_transformers
from keel.report.card import model_card
from keel.runs import files
from keel.runs.layout import RUN
from keel.runs.read import read_run
from keel.text.tokenizers import load_codec

_GIVEN_AWAY = ("ppo", "direct", "sft", "reward")  # the first of them that is finished


def export_model(
    source: Path, out: Path, *, stage: str | None = None, adapter_only: bool = False, dtype: str | None = None
) -> Path:
    """Write a run's model (of `stage`, or its last one), or a directory's adapter merged into its base, to `out`.

    `dtype` (float32, bfloat16) converts the weights. Raises UserError where there is no such model, or `out` is not
    empty. Nothing stands under `out` before all of it is written.
    """
    if adapter_only and dtype is not None:
        raise UserError("--dtype converts a whole model; leave it out with --adapter-only")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; give a directory that is not, or an empty one")
    run = read_run(source) if (source / RUN).exists() else None
    if run is None and stage is not None:
        raise UserError(f"--stage {stage} belongs to a run, and {source} is none")
    folder, card = source, ""
    if run is not None:
        finished = [name for name in _GIVEN_AWAY if (view := run.stages.get(name)) and view.finished]
        if not finished or stage not in (None, *finished):
            known = ", ".join(finished) or "none"
            raise UserError(
                f"{source} has no finished {stage or 'sft, reward, direct or ppo'} stage to export (finished: {known})"
            )
        stage = stage or finished[0]
        folder = run.path / stage / (ADAPTER if adapter_only else "model")
        card = model_card(run, stage, adapter=adapter_only)
    members = [Path(member) for member in members_of(str(folder))]  # the folder itself where it is no ensemble
    if adapter_only and not (members[0] / CONFIG_FILE).is_file():
        raise UserError(f"{source} holds no adapter, for it was trained with tune: full; leave --adapter-only out")
    work = out.with_name(f".{out.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for member in members:
        place = member.relative_to(folder)
        (work / place).mkdir(exist_ok=True)
        if adapter_only:
            _copy_adapter(member, work / place, out / place)
        elif dtype is not None or adapter_base(str(member)) is not None:
            _convert(member, work / place, dtype)
        else:
            shutil.copytree(member, work / place, dirs_exist_ok=True)
    if len(members) > 1:
        shutil.copy2(folder / ENSEMBLE_FILE, work)
    if card:
        (work / "README.md").write_text(card, encoding="utf-8")
    files.sync_tree(work)
    if out.exists():
        out.rmdir()
    files.move(work, out)
    return out


def _copy_adapter(folder: Path, work: Path, out: Path) -> None:
    """The adapter's two files; a base that lies on this disk is named from where they will lie."""
    shutil.copy2(folder / WEIGHTS_FILE, work)
    config, base = read_adapter_config(folder), adapter_base(str(folder))
    if base is not None and Path(base).is_dir():
        config["base_model_name_or_path"] = os.path.relpath(base, out)
    (work / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _convert(folder: Path, work: Path, dtype: str | None) -> None:
    """The whole model in another precision, or an adapter merged into its base in the base's own."""
    config: dict[str, Any] = files.read_json(folder / "config.json") or {}
    kinds = " ".join(config.get("architectures") or ())
    load = load_classifier if "ForSequenceClassification" in kinds else load_causal_lm
    model = load(str(folder), dtype="auto" if dtype is None else getattr(torch, dtype))
    with quiet_transformers():
        model.save_pretrained(work)  # type: ignore[operator]  # nn.Module's attributes are untyped
    load_codec(str(folder)).save(work)
    if (folder / NORMALISATION_FILE).is_file():
        shutil.copy2(folder / NORMALISATION_FILE, work)
