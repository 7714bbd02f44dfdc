"""The keys that access tokens are signed with: Ed25519, a file each; the newest signs, all verify."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm

KID_CHARACTERS = 16
LOOK_AGAIN_SECONDS = 1.0


class KeyRing:
    """The keys in a folder. Other processes may rotate them: a key that is not known is looked for again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[str, Ed25519PrivateKey] = {}
        self._looked_at = 0.0
        self._look()

    def signing(self) -> tuple[str, Ed25519PrivateKey]:
        """Id and key to sign with: the newest. Raises LookupError where there is none."""
        self._look()
        if not self._keys:
            raise LookupError(f"{self._folder} holds no signing key; `millrace up` makes one")
        return next(reversed(self._keys.items()))

    def verifying(self, kid: str) -> Ed25519PublicKey | None:
        """The public key of this id, or None."""
        # An id is only ever compared, never made a path: it comes from whoever asks.
        if kid not in self._keys and time.monotonic() >= self._looked_at + LOOK_AGAIN_SECONDS:
            self._look()
        key = self._keys.get(kid)
        return None if key is None else key.public_key()

    def jwks(self) -> Mapping[str, list[dict[str, Any]]]:
        """The public keys as a JSON Web Key Set (RFC 7517)."""
        self._look()
        return {
            "keys": [
                {
                    **OKPAlgorithm.to_jwk(key.public_key(), as_dict=True),
                    "kid": kid,
                    "use": "sig",
                    "alg": "EdDSA",
                }
                for kid, key in self._keys.items()
            ]
        }

    def add(self) -> str:
        """Make a key, which signs from now on; returns its id."""
        key = Ed25519PrivateKey.generate()
        kid = _kid(key)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._folder / f".{kid}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        # In the order of their names the newest comes last.
        part.replace(self._folder / f"{time.time_ns():020}-{kid}.pem")
        self._look()
        return kid

    def drop(self, older_than_s: float) -> list[str]:
        """Delete keys that have not signed for so long; returns their ids.

        Tokens that they signed must have expired: give at least the life of a token.
        """
        files = sorted(self._folder.glob("*.pem"))
        born_before = time.time_ns() - int(older_than_s * 1e9)
        # A key signed until the next one was made.
        old = [file for file, heir in pairwise(files) if _made_ns(heir) <= born_before]
        for file in old:
            file.unlink()
        self._look()
        return [file.stem.partition("-")[2] for file in old]

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        self._keys = dict(self._read())

    def _read(self) -> Iterator[tuple[str, Ed25519PrivateKey]]:
        for file in sorted(self._folder.glob("*.pem")):
            try:
                key = load_pem_private_key(file.read_bytes(), password=None)
            except FileNotFoundError:
                continue  # dropped meanwhile
            if not isinstance(key, Ed25519PrivateKey):
                raise TypeError(
                    f"{file} is no Ed25519 key; delete it, and let `millrace keys rotate` make one"
                )
            yield _kid(key), key


def _kid(key: Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(public).hexdigest()[:KID_CHARACTERS]


def _made_ns(file: Path) -> int:
    return int(file.stem.partition("-")[0])
