"""What may be read: the directories that were named, and nothing outside of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from keel.errors import UserError
from keel.runs.layout import RUN

_DEPTH = 3  # directories between one that was named and a run in it
_MOST_FOLDERS = 5000  # that are searched below each


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
            for path in _runs_below(root):
                found.setdefault(path, "/".join((root.name, *path.relative_to(root).parts)))
        return [(name, path) for path, name in found.items()]


def _runs_below(root: Path) -> Iterator[Path]:
    """Those that are nearer first; what lies in a run is none."""
    waiting = deque([(root, 0)])
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        if os.path.isfile(folder / RUN):
            yield folder
        elif depth < _DEPTH:
            waiting.extend((folder / name, depth + 1) for name in _folders(folder))


def _folders(folder: Path) -> list[str]:
    """Not hidden, no links."""
    try:
        with os.scandir(folder) as entries:
            return sorted(one.name for one in entries if one.is_dir(follow_symlinks=False) and one.name[0] != ".")
    except OSError:  # it is gone, or not ours to read
        return []
