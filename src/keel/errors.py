"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: bad data, a contradictory recipe, a missing file.

    Its message is one or two plain sentences that name the file, the row or the key, and the mend.
    The command line prints the message alone and exits with code 2; library users catch it as an exception.
    """


def wants_code(error: Exception) -> str:
    """How a sentence goes on where a library refused to run the code that comes with a model; else nothing."""
    asked = "custom code" in str(error) or "trust_remote_code" in str(error)
    return "; give model.trust_remote_code: true in a recipe if you trust that code" if asked else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, to be quoted in a sentence of our own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
