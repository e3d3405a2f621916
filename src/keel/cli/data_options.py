"""The assignments of `keel data`: --field OURS=THEIRS, --outcome VALUE=OUTCOME."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import typer

from keel.config.data import FieldName, Outcome


def fields_of(assignments: list[str]) -> dict[str, Any]:
    """From `--field ours=theirs`; `responses` may name several columns."""
    known = [str(name) for name in get_args(FieldName)]
    mapping: dict[str, Any] = {}
    for assignment in assignments:
        ours, _, theirs = assignment.partition("=")
        if not theirs:
            raise typer.BadParameter(f"{assignment!r} should look like chosen=better.", param_hint="--field")
        if ours not in known:
            close = difflib.get_close_matches(ours, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise typer.BadParameter(f"{ours!r} is no field; {hint}", param_hint="--field")
        several = ours == "responses" and "," in theirs
        mapping[ours] = tuple(name.strip() for name in theirs.split(",")) if several else theirs
    return mapping


def outcomes_of(assignments: list[str]) -> dict[str, str]:
    """From `--outcome value=first`."""
    known = [str(name) for name in get_args(Outcome)]
    outcomes = {}
    for assignment in assignments:
        value, _, outcome = assignment.rpartition("=")
        if not value or outcome not in known:
            raise typer.BadParameter(f"{assignment!r} should look like 1=first, 2=second or 0=tie.")
        outcomes[value] = outcome
    return outcomes
