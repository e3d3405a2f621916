"""Which prompts are held out for validation: decided for each by its own hash."""

from __future__ import annotations

import hashlib
import json
import re

from keel.data.dialogues import as_messages
from keel.schema import Dialogue


def in_validation(prompt: Dialogue, share: float, together: str | None = None) -> bool:
    """True for about `share` of all prompts (0 ≤ share < 1), the same ones in any order and among any others.

    Prompts whose first match of the regular expression `together` is the same text fall on one side; one without a
    match stands for itself.

    Equal prompts always fall on one side, in every file; plain text equals a chat whose only message is the user's,
    and white space around a turn does not count.
    """
    if together is not None and (found := re.search(together, as_messages(prompt)[-1].content)):
        prompt = found[0]
    turns = [[message.role, message.content.strip()] for message in as_messages(prompt)]
    digest = hashlib.blake2b(json.dumps(turns).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
