"""Access tokens: JSON Web Tokens (RFC 7519, RFC 9068), signed with Ed25519, short-lived.

What a token says is who its subject is, and as of which version; what that subject may do is asked of the
database, so that a grant that was taken away is gone within seconds and not when the token expires.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jwt

from infra.identity.keyring import KeyRing

ALGORITHM = "EdDSA"
LIFE_SECONDS = 15 * 60
LEEWAY_SECONDS = 10
REQUIRED = ("sub", "jti", "ver", "aud", "iss", "iat", "nbf", "exp")
BYTES_MAX = 4096
REMEMBERED = 10_000


class TokenError(ValueError):
    """A token that proves nothing. The message is for the log: who sent it learns only that it is invalid."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    subject: str
    token_id: str
    version: int
    """Of the subject, when the token was issued."""
    expires_at: int
    """Seconds since 1970."""


class Tokens:
    """Issues and verifies tokens of one issuer for one audience. Used from any thread."""

    def __init__(self, keys: KeyRing, issuer: str, audience: str) -> None:
        self._keys, self._issuer, self._audience = keys, issuer, audience
        # Verifying takes 100 us; a client sends the same token again and again.
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()

    def issue(self, subject: str, version: int = 1, life_s: float = LIFE_SECONDS) -> str:
        """A token for this version of a subject. Raises LookupError where there is no key."""
        kid, key = self._keys.signing()
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": subject,
            "jti": uuid.uuid4().hex,
            "ver": version,
            "iat": now,
            "nbf": now,
            "exp": now + int(life_s),
        }
        return jwt.encode(claims, key, ALGORITHM, headers={"kid": kid, "typ": "at+jwt"})

    def verify(self, token: str) -> Claims:
        """What the token says. Raises `TokenError`."""
        if len(token) > BYTES_MAX:
            raise TokenError(f"it has more than {BYTES_MAX} bytes")
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._read(token)
            self._verified[digest] = claims
            while len(self._verified) > REMEMBERED:
                self._verified.popitem(last=False)
        elif time.time() >= claims.expires_at + LEEWAY_SECONDS:
            self._verified.pop(digest, None)
            raise TokenError("it has expired")
        return claims

    def _read(self, token: str) -> Claims:
        try:
            header = jwt.get_unverified_header(token)
            # Never by what the token asks for: the algorithm is ours, the key one of ours.
            if header.get("alg") != ALGORITHM or header.get("typ") != "at+jwt":
                raise TokenError(f"it is {header.get('typ')!r}, {header.get('alg')!r}")
            key = self._keys.verifying(str(header.get("kid")))
            if key is None:
                raise TokenError("it names a key that is not ours")
            body: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED)},
            )
        except jwt.InvalidTokenError as error:
            raise TokenError(f"{type(error).__name__}: {error}") from error
        version = body["ver"]
        if not isinstance(version, int):
            raise TokenError(f"its version is {version!r}")
        return Claims(str(body["sub"]), str(body["jti"]), version, int(body["exp"]))
