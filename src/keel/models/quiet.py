"""transformers without its progress bars and its warning that a new head is new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as untyped_logging

_logging: Any = untyped_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only, while the context lasts."""
    level, bars = _logging.get_verbosity(), _logging.is_progress_bar_enabled()
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(level)
        if bars:
            _logging.enable_progress_bar()
