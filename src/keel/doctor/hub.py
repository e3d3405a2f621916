"""Whether the hub answers; never waits long. No torch."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request

from huggingface_hub import constants

from keel.doctor.finding import Finding, good, note

_ON_DISK = "only what is on disk can be read"
TIMEOUT = 4.0  # seconds in all; looking a name up has no limit of its own


def check_hub(timeout: float = TIMEOUT) -> Finding:
    """Good where the hub answers; else a note, for models and data on disk need none."""
    if constants.is_offline_mode():
        return note("hub", "offline, as HF_HUB_OFFLINE asks: " + _ON_DISK)
    answers: list[Finding] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT, timeout)), daemon=True)
    asking.start()
    asking.join(timeout)
    return answers[0] if answers else note("hub", f"no answer within {timeout:g} seconds: {_ON_DISK}")


def _ask(address: str, timeout: float) -> Finding:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:  # an answer all the same
        return good("hub", f"answers ({error.code})")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return note("hub", f"cannot be reached ({error}): {_ON_DISK}")
    return good("hub", "answers")
