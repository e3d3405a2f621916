"""Whether a process is at work on a run, as the system tells anybody: the lock itself is left alone."""

from __future__ import annotations

import os
from pathlib import Path

from keel.feedback.watch.tail import open_regular

_LOCKS = Path("/proc/locks")
_NUMBER = 32  # bytes


def is_held(lock: Path) -> bool:
    """Whether a process of this machine holds it, by a lock of `flock` and its number in the file.

    False where the system does not say, and where the process is another machine's.
    """
    file = open_regular(lock)
    if file is None:
        return False
    with file:
        node, holder = str(os.fstat(file.fileno()).st_ino), file.read(_NUMBER).decode(errors="replace").strip()
    try:
        locks = [line.split() for line in _LOCKS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return False
    # 1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF
    return any(
        len(one) > 5 and one[1] == "FLOCK" and one[4] == holder and one[5].rpartition(":")[2] == node for one in locks
    )
