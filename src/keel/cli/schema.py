"""`keel schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[Path | None, typer.Option(help="Write it to this file, replacing it; printed unless given.")] = None,
) -> None:
    """Print the JSON Schema of recipes, with which editors complete keys and mark mistakes.

    A recipe names it in its first line: `# yaml-language-server: $schema=recipe.schema.json`

    **Example:** `keel schema --out recipe.schema.json`
    """
    from keel.config.json_schema import schema_text
    from keel.runs.files import write_bytes

    if out is None:
        print(schema_text(), end="")
        return
    write_bytes(out, schema_text().encode())
    print(f"Schema: {out}")
