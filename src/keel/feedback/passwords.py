"""Passwords: what is allowed, and argon2id hashes of them."""

from __future__ import annotations

import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from keel.feedback.refused import Refused
from keel.feedback.tables import name_key

SHORTEST, LONGEST = 10, 1024
_AT_ONCE = 4  # each takes 64 MiB by argon2's defaults


class Passwords:
    """Hashes and checks, with argon2's own parameters unless a hasher has others."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        self._nobodys = self._hasher.hash(secrets.token_hex())

    def new(self, password: str, *, name: str, field: str = "password") -> str:
        """The hash of a password that somebody called `name` may have. Raises Refused where it will not do."""
        if len(password) < SHORTEST:
            raise Refused("invalid", f"a password has at least {SHORTEST} characters", field=field)
        if len(password) > LONGEST:
            raise Refused("invalid", f"a password has at most {LONGEST} characters", field=field)
        if name_key(password) == name_key(name):
            raise Refused("invalid", "the password is the name; choose another", field=field)
        return self.hash(password)

    def hash(self, password: str) -> str:
        with self._turn:
            return self._hasher.hash(_normal(password))

    def fits(self, password: str, hashed: str | None) -> bool:
        """Whether the hash is of that password; takes as long where there is no hash, which nothing fits."""
        with self._turn:
            try:
                return self._hasher.verify(hashed or self._nobodys, _normal(password)) and hashed is not None
            except (Argon2Error, InvalidHashError):
                return False

    def outdated(self, hashed: str) -> bool:
        """Whether the hash was made with other parameters."""
        return self._hasher.check_needs_rehash(hashed)


def _normal(password: str) -> bytes:
    """The same bytes on every keyboard; what is longer than any password is cut, so that it costs nothing."""
    return unicodedata.normalize("NFKC", password[: LONGEST + 1]).encode("utf-8", "surrogatepass")
