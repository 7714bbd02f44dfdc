"""Passwords and client secrets: Argon2id, and what is too weak to be taken."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher, profiles
from argon2.exceptions import InvalidHashError, VerificationError

from schemas.roles import Refusal

LENGTH_MIN, LENGTH_MAX = 12, 256
KINDS_MIN = 6
"""Different characters that a password has at least."""
AT_ONCE = 2
"""Hashes made at the same time: each takes 64 MiB and a core, and logins must not starve the rest."""

_hasher = PasswordHasher.from_parameters(profiles.RFC_9106_LOW_MEMORY)
_turns = threading.BoundedSemaphore(AT_ONCE)


class WeakPassword(Refusal):
    """A password that is not taken; the message gives reason and remedy."""


def hashed(password: str) -> str:
    """The password's hash with its parameters, to be stored. Raises `WeakPassword`."""
    if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
        raise WeakPassword(
            f"the password has {len(password)} characters; give it {LENGTH_MIN} to {LENGTH_MAX},"
            " as four words do"
        )
    if len(set(password)) < KINDS_MIN:
        raise WeakPassword(f"the password repeats itself; give it at least {KINDS_MIN} different characters")
    with _turns:
        return _hasher.hash(password)


_NOBODYS = "$argon2id$v=19$m={0.memory_cost},t={0.time_cost},p={0.parallelism}${1}${2}".format(
    _hasher, "A" * 22, "A" * 43
)
"""What is compared where there is no subject: 16 bytes of salt and 32 of a hash that no password has."""


def matches(stored: str | None, password: str) -> bool:
    """Whether this is the password of the stored hash; as slow where there is none: time must not tell."""
    with _turns:
        try:
            _hasher.verify(stored or _NOBODYS, password[: LENGTH_MAX + 1])
        except (VerificationError, InvalidHashError):
            return False
    return stored is not None


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's: make it anew at the next login."""
    return _hasher.check_needs_rehash(stored)
