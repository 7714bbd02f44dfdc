"""Ids that are derived from a client's `Idempotency-Key`, so that a repeat is the same transaction."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import orjson

from infra.problems import Problem

HEADER = "Idempotency-Key"
KEY_MAX = 255


def given_key(header: str | None) -> str | None:
    """The key of a request, as it was sent; None without one. Raises `Problem` 422."""
    if header is None:
        return None
    if not 1 <= len(header) <= KEY_MAX or not header.isascii() or not header.isprintable():
        raise Problem(
            422,
            "Invalid request",
            f"The key must have 1 to {KEY_MAX} printable ASCII characters; send such a one, as a UUID.",
            field=HEADER,
        )
    return header


def derived_id(tenant: str, sender: str, key: str, card: str, number: int | None = None) -> str:
    """The id of a sender's transaction on a card: a UUID of version 8. `number`: its place in a batch."""
    named = hashlib.sha256(orjson.dumps([tenant, sender, key, card, number])).digest()
    value = int.from_bytes(named[:16], "big")
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=value))


def claim_name(tenant: str, sender: str, key: str) -> str:
    """What a sender's key is claimed by; it does not tell the key."""
    return hashlib.sha256(orjson.dumps([tenant, sender, key])).hexdigest()


def fingerprint(body: Any) -> str:
    """The same for bodies that mean the same, whatever their order and white space."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
