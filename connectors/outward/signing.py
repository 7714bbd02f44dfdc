"""Signatures of Standard Webhooks, and how secrets lie in the database.

Signed is `id.timestamp.body`: `v1` by HMAC-SHA256 with `whsec_…`, `v1a` by Ed25519 with the key of which the
receiver has `whpk_…`. The header names each signature, separated by blanks: during a rotation several.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Kind = Literal["v1", "v1a"]

SYMMETRIC, PUBLIC = "whsec_", "whpk_"
SECRET_BYTES = 32
TOLERANCE_S = 300
"""How far a receiver lets the timestamp be off."""
_NONCE_BYTES = 12


class Unsealable(RuntimeError):
    """A secret of the database that this instance's key does not open."""


class Unverified(ValueError):
    """A message that whoever it claims to be from has not signed, or not lately."""


@dataclass(frozen=True)
class Secret:
    """What messages are signed with: 32 bytes, an HMAC key or an Ed25519 private key."""

    kind: Kind
    raw: bytes

    @classmethod
    def new(cls, kind: Kind) -> Secret:
        return cls(kind, os.urandom(SECRET_BYTES))

    @property
    def shown(self) -> str:
        """What the receiver verifies with: `whsec_…` is a secret, `whpk_…` is public."""
        if self.kind == "v1":
            return SYMMETRIC + base64.b64encode(self.raw).decode()
        public = Ed25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw()
        return PUBLIC + base64.b64encode(public).decode()

    def sign(self, content: bytes) -> str:
        if self.kind == "v1":
            signature = hmac.digest(self.raw, content, "sha256")
        else:
            signature = Ed25519PrivateKey.from_private_bytes(self.raw).sign(content)
        return f"{self.kind},{base64.b64encode(signature).decode()}"


def headers(secrets: Iterable[Secret], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a message."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(secret.sign(content) for secret in secrets),
    }


def verify(shown: str, received: Mapping[str, str], body: bytes, now: float) -> None:
    """As a receiver does, with `whsec_…` or `whpk_…`. Raises `Unverified`."""
    try:
        message_id, timestamp = received["webhook-id"], int(received["webhook-timestamp"])
        signatures = received["webhook-signature"].split(" ")
    except (KeyError, ValueError):
        raise Unverified("a header webhook-id, -timestamp or -signature is missing or malformed") from None
    if abs(now - timestamp) > TOLERANCE_S:
        raise Unverified(f"the timestamp is off by {abs(now - timestamp):.0f} s")
    content = f"{message_id}.{timestamp}.".encode() + body
    prefix = next((p for p in (SYMMETRIC, PUBLIC) if shown.startswith(p)), None)
    if prefix is None:
        raise Unverified("the key is neither whsec_… nor whpk_…")
    key = base64.b64decode(shown[len(prefix) :])
    for signature in signatures:
        version, _, text = signature.partition(",")
        given = base64.b64decode(text)
        if prefix == SYMMETRIC and version == "v1":
            if hmac.compare_digest(hmac.digest(key, content, "sha256"), given):
                return
        elif prefix == PUBLIC and version == "v1a":
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(given, content)
            except InvalidSignature:
                continue
            return
    raise Unverified("no signature is one of this key")


class Vault:
    """Seals secrets with the instance's own key, each bound to its endpoint."""

    def __init__(self, instance_secret: str) -> None:
        if not instance_secret:
            raise Unsealable("secrets/webhooks is empty or missing; `millrace up` makes it")
        self._key = AESGCM(hashlib.sha256(b"millrace-webhooks-1\n" + instance_secret.encode()).digest())

    def seal(self, secret: Secret, endpoint_id: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._key.encrypt(nonce, secret.raw, f"{secret.kind}:{endpoint_id}".encode())

    def open(self, kind: Kind, sealed: bytes, endpoint_id: str) -> Secret:
        """Raises `Unsealable`."""
        try:
            raw = self._key.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{kind}:{endpoint_id}".encode()
            )
        except (InvalidTag, ValueError):
            raise Unsealable(
                f"a secret of {endpoint_id} was sealed with another secrets/webhooks; put that file back, or"
                f" run `millrace webhooks rotate {endpoint_id} --overlap 0`"
            ) from None
        return Secret(kind, raw)
