"""A file of signed heads: how far each chain of a log had come, told outside the database.

A line is a JSON object: `chain`, `sequence`, `hash` (hex), `n` (which head of its chain this is, from 1),
`at`, `last` (the chain ended here), `key` (the id of the signing key) and `signature`: Ed25519, in base64, of
`millrace-audit-head-1` (or `millrace-ledger-head-1`: a head of one log is none of another, whoever's key it
is signed by), a newline, and the object without its signature, with keys in order and no blanks.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidSignature

from infra.audit.entry import GENESIS
from infra.identity.keyring import KeyRing


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain had come: up to `sequence`, whose hash (hex) was `hash`."""

    chain: str
    sequence: int
    hash: str
    n: int
    at: str
    """ISO 8601 in UTC."""
    last: bool = False


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of the file that is no head, or one that may not stand there."""

    line: int
    chain: str | None
    reason: str


class Heads:
    """The file. Several processes append to it. `log` is part of what is signed: `audit`, or `ledger`."""

    def __init__(self, path: Path, keys: KeyRing, log: str = "audit") -> None:
        self.path = path
        self._keys = keys
        self._format = f"millrace-{log}-head-1\n".encode()

    def append(self, head: Head) -> None:
        """Sign it, and have it on the disk. Raises OSError; LookupError where there is no key."""
        kid, key = self._keys.signing()
        told = {**asdict(head), "key": kid}
        signature = base64.b64encode(key.sign(self._format + _canonical(told))).decode()
        line = orjson.dumps({**told, "signature": signature}) + b"\n"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # what a power cut left of another's line must not spoil this one
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, "only a part of the head could be written", str(self.path))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def read(self) -> tuple[dict[str, list[Head]], list[BadLine]]:
        """The heads of each chain in their order, and what is wrong with the file. No file: no heads."""
        heads: dict[str, list[Head]] = {}
        bad: list[BadLine] = []
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            found = self._head(line)
            if isinstance(found, str):
                bad.append(BadLine(number, None, found))
                continue
            before = heads.setdefault(found.chain, [])
            reason = _does_not_follow(before, found)
            if reason:
                bad.append(BadLine(number, found.chain, reason))
            before.append(found)
        return heads, bad

    def covering(self, chain: str, sequence: int) -> Head | None:
        """The chain's first head at or behind a place whose signature is its own; None where none is there.

        Looks at one signature, not at all of the file: whether the heads themselves are whole, `read` says.
        """
        named = orjson.dumps(chain)
        if not self.path.exists():
            return None
        with self.path.open("rb") as lines:
            for line in lines:
                if named not in line:
                    continue
                found = self._head(line)
                if isinstance(found, Head) and found.chain == chain and found.sequence >= sequence:
                    return found
        return None

    def _head(self, line: bytes) -> Head | str:
        """The head in this line, or why there is none."""
        try:
            told = orjson.loads(line)
            signature = base64.b64decode(told.pop("signature"), validate=True)
            kid = told["key"]
            head = Head(**{name: value for name, value in told.items() if name != "key"})
            well_typed = (
                isinstance(head.sequence, int)
                and isinstance(head.n, int)
                and isinstance(head.last, bool)
                and all(isinstance(value, str) for value in (head.chain, head.hash, head.at, kid))
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return "is no signed head"
        if not well_typed:
            return "is no signed head"
        key = self._keys.verifying(kid)
        if key is None:
            return f"is signed by key {kid}, which is not ours"
        try:
            key.verify(signature, self._format + _canonical(told))
        except InvalidSignature:
            return "has a signature that is not its own"
        return head


def _does_not_follow(before: list[Head], head: Head) -> str | None:
    if not before:
        fits = head.n == 1 and head.sequence == 0 and head.hash == GENESIS.hex()
        return None if fits else f"is head {head.n} of its chain, and head 1 is missing"
    if head.n != before[-1].n + 1:
        return f"is head {head.n} of its chain, after head {before[-1].n}"
    if before[-1].last:
        return "comes after the head that was said to be the chain's last"
    if head.sequence < before[-1].sequence:
        return f"goes back from entry {before[-1].sequence} to {head.sequence}"
    return None


def _canonical(told: dict[str, object]) -> bytes:
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
