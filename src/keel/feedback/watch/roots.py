"""What may be read: the directories that were named, and nothing outside of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from keel.errors import UserError
from keel.runs.layout import RUN

_DEPTH = 3  # directories between one that was named and a run in it
_MOST_RUNS = 1000


class Roots:
    """The named directories: each a run, or one with runs below it. Links are followed within them only."""

    def __init__(self, named: Sequence[Path]) -> None:
        """Raises UserError for what is no directory."""
        for path in named:
            if not path.is_dir():
                raise UserError(f"{path} is no directory; name a run's, or one that runs lie in.")
        self._named = list(dict.fromkeys(path.resolve() for path in named))

    def holds(self, path: Path) -> bool:
        """Whether a path leads into a named directory, links followed to their end."""
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a circle of links
            return False
        return any(target.is_relative_to(root) for root in self._named)

    def runs(self) -> list[tuple[str, Path]]:
        """Every run that is there now: what it is called here, and its directory."""
        found: dict[Path, str] = {}
        for root in self._named:
            for path in islice(_runs_below(root, _DEPTH), _MOST_RUNS):
                found.setdefault(path, "/".join((root.name, *path.relative_to(root).parts)))
        return [(name, path) for path, name in found.items()]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RUN).is_file():
        yield folder
        return
    if not depth:
        return
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
            )
    except OSError:  # it is gone, or not ours to read
        return
    for name in names:
        yield from _runs_below(folder / name, depth - 1)
