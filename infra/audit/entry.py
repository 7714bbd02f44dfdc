"""One entry of the audit log, and the hash that chains it to the one before.

The hash of an entry is SHA-256 of, in this order: `millrace-audit-1` and a newline; the 32 bytes of the
entry before (of the first: zeros); and each of chain, sequence, time (microseconds since 1970), subject,
tenant, proof, action, object, outcome and details as a netstring: length in bytes, `:`, UTF-8, `,`. Lengths
make it unambiguous: no two different entries have the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import orjson

Outcome = Literal["done", "denied", "failed"]

Details = Mapping[str, str | int | float | bool | None]
"""What else is told of an action: flat, and never the data itself."""

GENESIS = bytes(32)
"""What stands before the first entry of a chain."""
_FORMAT = b"millrace-audit-1\n"

NAME_MOST, TEXT_MOST, DETAILS_MOST = 200, 1000, 8000
"""Most characters of names, of objects and of all details together: what comes from outside is cut."""


class Entry(NamedTuple):
    """One entry, in the order of the table's columns; `details` is JSON."""

    chain: str
    sequence: int
    at_us: int
    """Microseconds since 1970."""
    subject: str
    tenant: str
    proof: str
    action: str
    object: str
    outcome: str
    details: str

    def digest(self, before: bytes) -> bytes:
        """The hash of this entry after the one whose hash is `before`."""
        parts = [str(value).encode() for value in self]
        return hashlib.sha256(
            _FORMAT + before + b"".join(b"%d:%b," % (len(part), part) for part in parts)
        ).digest()


def text(value: str, most: int = TEXT_MOST) -> str:
    """`value` as the database can hold it, cut to `most` characters."""
    if value.isascii() and len(value) <= most and "\0" not in value:  # as nearly all are
        return value
    return value[:most].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def details(told: Details) -> str:
    """As JSON, with its keys in order; too much of it is replaced by its length."""
    clean = {text(key, NAME_MOST): _value(value) for key, value in told.items()}
    document = orjson.dumps(clean, option=orjson.OPT_SORT_KEYS).decode()
    return document if len(document) <= DETAILS_MOST else f'{{"too_long":{len(document)}}}'


def _value(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return text(str(value))
