"""Access tokens: valid only as we made them, and no longer than they say."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.identity.keyring import KeyRing
from infra.identity.tokens import LEEWAY_SECONDS, LIFE_SECONDS, TokenError, Tokens

ISSUER, AUDIENCE = "https://millrace.example", "millrace"


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    ring = KeyRing(tmp_path / "tokens")
    ring.add()
    return ring


@pytest.fixture
def tokens(keys: KeyRing) -> Tokens:
    return Tokens(keys, ISSUER, AUDIENCE)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_token_says_whose_it_is(tokens: Tokens) -> None:
    """A token that was issued verifies, again from memory, and names its subject; each has its own id."""
    one, other = tokens.issue("anna"), tokens.issue("anna")
    assert tokens.verify(one).subject == "anna" and tokens.verify(one) == tokens.verify(one)
    assert tokens.verify(one).token_id != tokens.verify(other).token_id


def test_it_expires_also_from_memory(tokens: Tokens) -> None:
    """Beyond its life and the leeway it is refused, whether it was seen before or not."""
    seen, unseen = tokens.issue("anna"), tokens.issue("anna")
    tokens.verify(seen)
    with time_machine.travel(time.time() + LIFE_SECONDS + LEEWAY_SECONDS + 1):
        for token in (seen, unseen):
            with pytest.raises(TokenError, match="xpired"):
                tokens.verify(token)


def test_forged_tokens_are_refused(tokens: Tokens, keys: KeyRing) -> None:
    """No algorithm, ours as a shared secret, another's key, changed claims, another kind: none is valid."""
    kid, key = keys.signing()
    token = tokens.issue("anna")
    header, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    other = Ed25519PrivateKey.generate()
    named: dict[str, Any] = {"headers": {"kid": kid, "typ": "at+jwt"}}
    head = {"alg": "none", "typ": "at+jwt", "kid": kid}
    confused = {"alg": "HS256", "typ": "at+jwt", "kid": kid}
    by_public = jwt.PyJWS(options={"enforce_minimum_key_length": False})
    forged = {
        "no algorithm": f"{part(head)}.{body}.",
        "no signature": f"{header}.{body}.",
        "public key as secret": by_public.encode(
            json.dumps(claims).encode(), raw, "HS256", headers={k: confused[k] for k in ("kid", "typ")}
        ),
        "another key": jwt.encode(claims, other, "EdDSA", **named),
        "unknown key id": jwt.encode(claims, other, "EdDSA", headers={"kid": "0" * 16, "typ": "at+jwt"}),
        "key id as path": jwt.encode(claims, other, "EdDSA", headers={"kid": "../../x", "typ": "at+jwt"}),
        "changed claims": f"{header}.{part({**claims, 'sub': 'admin'})}.{signature}",
        "another kind": jwt.encode(claims, key, "EdDSA", headers={"kid": kid, "typ": "JWT"}),
        "not a token": "x.y.z",
        "nothing": "",
        "endless": token + "A" * 5000,
    }
    assert public not in forged["public key as secret"].encode()
    for what, fake in forged.items():
        with pytest.raises(TokenError):
            tokens.verify(fake)
            pytest.fail(what)


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "another"},
        {"iss": "https://elsewhere.example"},
        {"nbf": int(time.time()) + 3600},
        *({missing: None} for missing in ("sub", "jti", "aud", "iss", "iat", "nbf", "exp")),
    ],
    ids=lambda change: " ".join(change),  # without values: the clock stands in one
)
def test_every_claim_is_required_and_checked(tokens: Tokens, keys: KeyRing, change: dict[str, Any]) -> None:
    """A token for another audience, of another issuer, for later, or that lacks a claim is invalid."""
    kid, key = keys.signing()
    claims = jwt.decode(tokens.issue("anna"), options={"verify_signature": False}) | change
    token = jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key,
        "EdDSA",
        headers={"kid": kid, "typ": "at+jwt"},
    )
    with pytest.raises(TokenError):
        tokens.verify(token)


def test_keys_rotate_under_running_processes(tokens: Tokens, keys: KeyRing, tmp_path: Path) -> None:
    """Another process's new key signs and verifies here; the old one verifies until it is dropped."""
    before = tokens.issue("anna")
    elsewhere = KeyRing(tmp_path / "tokens")
    kid = elsewhere.add()
    after = Tokens(elsewhere, ISSUER, AUDIENCE).issue("bert")
    assert jwt.get_unverified_header(tokens.issue("anna"))["kid"] == kid
    assert tokens.verify(after).subject == "bert" and tokens.verify(before).subject == "anna"
    assert elsewhere.drop(older_than_s=LIFE_SECONDS) == []
    with time_machine.travel(time.time() + LIFE_SECONDS + 1):
        dropped = elsewhere.drop(older_than_s=LIFE_SECONDS)
    assert dropped == [jwt.get_unverified_header(before)["kid"]]
    assert [key["kid"] for key in keys.jwks()["keys"]] == [kid]
    with pytest.raises(TokenError, match="not ours"):
        Tokens(keys, ISSUER, AUDIENCE).verify(before)


def test_the_key_set_verifies_and_holds_no_secret(tokens: Tokens, keys: KeyRing) -> None:
    """Anybody verifies a token with the published key set, which has no private part."""
    token = tokens.issue("anna")
    published = keys.jwks()["keys"]
    assert all("d" not in key for key in published)
    found = jwt.PyJWKSet.from_dict({"keys": published})[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, found, algorithms=["EdDSA"], audience=AUDIENCE)["sub"] == "anna"


def test_keys_are_their_owners_alone(keys: KeyRing, tmp_path: Path) -> None:
    """Nobody else on the machine may read a signing key or see the folder."""
    folder = tmp_path / "tokens"
    assert folder.stat().st_mode & 0o077 == 0
    assert [file.stat().st_mode & 0o077 for file in folder.iterdir()] == [0]


def test_without_a_key_the_remedy_is_named(tmp_path: Path) -> None:
    """Before there is a key nothing is signed, and the message says what makes one."""
    with pytest.raises(LookupError, match="`millrace up` makes one"):
        Tokens(KeyRing(tmp_path / "none"), ISSUER, AUDIENCE).issue("anna")
