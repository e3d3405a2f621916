"""Python functions named in a recipe: `module:function`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from keel.errors import UserError


def resolve(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names; the module may lie in the current directory.

    Raises UserError if the reference is malformed, the module or the function is not found, or it cannot be called.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f'"{reference}" does not name a function: write module:function, such as my_rules:polite.')
    module = _module(module_name, reference)
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(f'"{reference}": {module_name} has no function "{attribute}".{_did_you_mean(attribute, names)}')
    function = getattr(module, attribute)
    if not callable(function):
        raise UserError(f'"{reference}" is a {type(function).__name__}, not a function.')
    resolved: Callable[..., Any] = function
    return resolved


def reference_to(function: Callable[..., Any]) -> str:
    """The `module:function` that names a Python function, also one of the script that is running (`__main__`).

    Raises ValueError if it has no name at the top of a module, because then no later process could find it.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(f"{function!r} has no name at the top of a module; define it there with `def`, and give that")
    return f"{module}:{name}"


def _module(name: str, reference: str) -> ModuleType:
    with _current_directory_importable():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that the user's own module imports and lacks is another mistake than a mistyped reference.
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                raise UserError(
                    f'"{reference}": there is no module "{name}", neither in {Path.cwd()} nor installed.'
                    f"{_did_you_mean(name, _modules_beside(name))}"
                ) from error
            raise UserError(f'"{reference}": importing {name} failed: {error}.') from error
        except Exception as error:
            raise UserError(f'"{reference}": importing {name} failed: {type(error).__name__}: {error}') from error


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Puts the current directory first on the path, and takes away that entry alone when done."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # a file written a moment ago must be seen
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _modules_beside(name: str) -> list[str]:
    """Modules in the folder where `name` would lie below the current directory."""
    *packages, _ = name.split(".")
    folder = Path.cwd().joinpath(*packages)
    found = [path.stem for path in folder.glob("*.py")] + [path.parent.name for path in folder.glob("*/__init__.py")]
    return sorted(".".join([*packages, stem]) for stem in found if stem.isidentifier() and stem != "__init__")


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
