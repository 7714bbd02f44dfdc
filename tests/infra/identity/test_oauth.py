"""Logging in over HTTP: token endpoint, revocation, key set; what forged and stolen proofs are worth."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient

from api.app import create_app
from infra.identity import api_keys, oauth, subjects
from infra.identity.authenticator import FRESH_SECONDS
from infra.identity.keyring import KeyRing
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.signed_in import signed_in, unlimited

PASSWORD = "four words of a person"
SECRET = "s3cret: of a program + more%"


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    """A database in which there are anna, a person, and the program till-7, each of whom runs pipelines."""
    signed_in(database)
    with connect(database.database_url) as made:
        made.execute("DELETE FROM identity.subjects WHERE subject IN ('anna', 'till-7')")
        subjects.create(made, "anna", "person", "default", PASSWORD, ["operator"])
        subjects.create(made, "till-7", "program", "default", SECRET, ["operator"])
        yield made


@pytest.fixture
def api(database: Settings, connection: Connection) -> Iterator[TestClient]:
    with TestClient(create_app(unlimited(database))) as client:
        yield client


def ask(api: TestClient, **form: str) -> Any:
    return api.post("/v1/oauth/token", data=form)


def login(api: TestClient) -> dict[str, Any]:
    answer = ask(api, grant_type="password", username="anna", password=PASSWORD)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def status(api: TestClient, token: str, header: str = "Authorization") -> int:
    value = f"Bearer {token}" if header == "Authorization" else token
    return int(api.get("/v1/pipelines", headers={header: value}).status_code)


def becomes(api: TestClient, token: str, wanted: int) -> float:
    """The seconds until a token is answered with this status."""
    began = time.monotonic()
    while status(api, token) != wanted:
        assert time.monotonic() < began + 2 * FRESH_SECONDS, f"never became {wanted}"
        time.sleep(0.1)
    return time.monotonic() - began


def test_a_person_logs_in(api: TestClient) -> None:
    """A password gives an access token that opens routes, its scopes, and a refresh token; none is cached."""
    answer = ask(api, grant_type="password", username="anna", password=PASSWORD)
    found = answer.json()
    assert (found["token_type"], found["expires_in"]) == ("Bearer", 900)
    assert "ops:read" in found["scope"].split()
    assert answer.headers["cache-control"] == "no-store"
    assert status(api, found["access_token"]) == 200
    assert status(api, found["refresh_token"]) == 401
    assert status(api, found["access_token"], "X-API-Key") == 401


@pytest.mark.parametrize("way", ["header", "body"])
def test_a_program_logs_in(api: TestClient, way: str) -> None:
    """A client's secret gives an access token and nothing to refresh, by HTTP Basic or in the body."""
    form = {"grant_type": "client_credentials"}
    if way == "header":
        basic = b64encode(f"till-7:{quote(SECRET, safe='')}".encode()).decode()
        answer = api.post("/v1/oauth/token", data=form, headers={"Authorization": f"Basic {basic}"})
    else:
        answer = ask(api, **form, client_id="till-7", client_secret=SECRET)
    assert answer.status_code == 200, answer.text
    assert "refresh_token" not in answer.json()
    assert status(api, answer.json()["access_token"]) == 200


def test_a_refresh_token_is_good_once(api: TestClient) -> None:
    """Each use gives the next one; a second use, by whomever, ends the login that it follows from."""
    first = login(api)
    second = ask(api, grant_type="refresh_token", refresh_token=first["refresh_token"]).json()
    assert status(api, second["access_token"]) == 200
    other = login(api)
    replayed = ask(api, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (replayed.status_code, replayed.json()["error"]) == (400, "invalid_grant")
    ended = ask(api, grant_type="refresh_token", refresh_token=second["refresh_token"])
    assert (ended.status_code, ended.json()["error"]) == (400, "invalid_grant")
    assert ask(api, grant_type="refresh_token", refresh_token=other["refresh_token"]).status_code == 200


def test_a_login_is_revoked(api: TestClient) -> None:
    """Revoking a refresh token ends its login; an unknown one is as good as revoked; an access token ends
    by itself."""
    found = login(api)
    for token in (found["refresh_token"], "nobody's"):
        assert api.post("/v1/oauth/revoke", data={"token": token}).status_code == 200
    assert ask(api, grant_type="refresh_token", refresh_token=found["refresh_token"]).status_code == 400
    answer = api.post("/v1/oauth/revoke", data={"token": found["access_token"]})
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_token_type")


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "password", "username": "anna"}, "invalid_request"),
        ({"grant_type": "password", "username": "anna", "password": "a\0b"}, "invalid_request"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "anna", "password": "wrong"}, "invalid_grant"),
        ({"grant_type": "password", "username": "nobody", "password": PASSWORD}, "invalid_grant"),
        ({"grant_type": "password", "username": "till-7", "password": SECRET}, "invalid_grant"),
        ({"grant_type": "password", "username": "' OR 1=1 --", "password": "x"}, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "never issued"}, "invalid_grant"),
    ],
)
def test_errors_are_those_of_the_standard(api: TestClient, form: dict[str, str], error: str) -> None:
    """RFC 6749, 5.2: status 400 with the error's name, and nothing about whether there is such a subject."""
    answer = ask(api, **form)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.headers["cache-control"] == "no-store"
    assert "nobody" not in answer.text and "anna" not in answer.text


def test_a_wrong_client_is_told_how_to_authenticate(api: TestClient) -> None:
    """invalid_client is 401, with a challenge for whoever used the header; two ways at once are refused."""
    form = {"grant_type": "client_credentials"}
    wrong = {"Authorization": "Basic " + b64encode(b"till-7:wrong").decode()}
    answer = api.post("/v1/oauth/token", data=form, headers=wrong)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic")
    answer = api.post("/v1/oauth/token", data={**form, "client_secret": "x"}, headers=wrong)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    broken = api.post("/v1/oauth/token", data=form, headers={"Authorization": "Basic !!!"})
    assert broken.json()["error"] == "invalid_request"


def test_only_a_form_is_taken(api: TestClient) -> None:
    """JSON, a parameter given twice, bytes that are no text, and a body without end are refused."""
    head = {"Content-Type": "application/x-www-form-urlencoded"}
    assert api.post("/v1/oauth/token", json={"grant_type": "password"}).json()["error"] == "invalid_request"
    for body in (b"grant_type=password&grant_type=refresh_token", b"grant_type=%ff", b"\xff"):
        assert api.post("/v1/oauth/token", content=body, headers=head).json()["error"] == "invalid_request"
    endless = api.post("/v1/oauth/token", content=b"a=" + b"b" * 10_000, headers=head)
    assert endless.status_code == 413


def test_the_right_password_helps_nobody_who_is_locked_out(api: TestClient, connection: Connection) -> None:
    """After five wrong ones the account is locked, and the answer is the same as to a wrong password."""
    wrong = [ask(api, grant_type="password", username="anna", password=f"wrong {n}") for n in range(5)]
    right = ask(api, grant_type="password", username="anna", password=PASSWORD)
    assert {(a.status_code, a.text) for a in (*wrong, right)} == {(400, right.text)}
    connection.execute("UPDATE identity.subjects SET locked_until = now() WHERE subject = 'anna'")
    assert ask(api, grant_type="password", username="anna", password=PASSWORD).status_code == 200


def test_too_many_logins_at_once_are_told_to_come_back(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond those that may wait a login is 429, before a password is hashed for it."""
    monkeypatch.setattr(oauth, "LOGINS_WAITING_MAX", 0)
    answer = ask(api, grant_type="password", username="anna", password=PASSWORD)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0


def test_forged_tokens_open_nothing(api: TestClient, database: Settings) -> None:
    """No algorithm, our public key as a secret, expired, another audience or issuer, an unknown key, changed
    claims: each is 401, with no word about why."""
    token = login(api)["access_token"]
    kid, key = KeyRing(database.signing_keys).signing()
    header, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    named: dict[str, Any] = {"headers": {"kid": kid, "typ": "at+jwt"}}

    def part(value: Any) -> str:
        return str(jwt.utils.base64url_encode(json.dumps(value).encode()).decode())

    def signed(change: dict[str, Any]) -> str:
        return jwt.encode(claims | change, key, "EdDSA", **named)

    assert status(api, signed({})) == 200
    by_public = jwt.PyJWS(options={"enforce_minimum_key_length": False})
    forged = {
        "none": f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': kid})}.{body}.",
        "no signature": f"{header}.{body}.",
        "HS256": by_public.encode(json.dumps(claims).encode(), raw, "HS256", headers=named["headers"]),
        "expired": signed({"exp": int(time.time()) - 60}),
        "audience": signed({"aud": "another"}),
        "issuer": signed({"iss": "https://elsewhere.example"}),
        "version": signed({"ver": claims["ver"] + 1}),
        "nobody": signed({"sub": "nobody"}),
        "unknown key": jwt.encode(
            claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": "0" * 16, "typ": "at+jwt"}
        ),
        "another key": jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", **named),
        "changed": f"{header}.{part({**claims, 'sub': 'admin'})}.{signature}",
        "nothing": "",
        "text": "let-me-in",
        "key": "mk_aaaaaaaaaaaa_" + "a" * 43,
    }
    bodies = set()
    for what, fake in forged.items():
        answer = api.get("/v1/pipelines", headers={"Authorization": f"Bearer {fake}"})
        assert answer.status_code == 401, what
        assert answer.headers["www-authenticate"].startswith("Bearer"), what
        bodies.add(answer.text)
    assert len(bodies) == 1


def test_proofs_are_one(api: TestClient, connection: Connection) -> None:
    """No proof, another scheme, or two proofs are 401; a key is taken in either header."""
    key = api_keys.create(connection, "anna", "a test", ["operator"], 1)
    assert status(api, key) == status(api, key, "X-API-Key") == 200
    for headers in (
        {},
        {"Authorization": f"Basic {key}"},
        {"Authorization": key},
        {"Authorization": f"Bearer {key}", "X-API-Key": key},
    ):
        assert api.get("/v1/pipelines", headers=headers).status_code == 401


def test_what_is_taken_away_is_gone_within_seconds(api: TestClient, connection: Connection) -> None:
    """A grant, a password, a key, or the subject itself: tokens that are out lose with it, and gain again."""
    token = login(api)["access_token"]
    key = api_keys.create(connection, "anna", "a test", ["operator"], 1)
    assert status(api, token) == status(api, key) == 200
    subjects.change(connection, "anna", grants=["viewer:fraud"])
    becomes(api, token, 403)
    becomes(api, key, 403)
    subjects.change(connection, "anna", grants=["operator"])
    becomes(api, token, 200)
    becomes(api, key, 200)
    api_keys.revoke(connection, key.split("_")[1])
    becomes(api, key, 401)
    subjects.change(connection, "anna", password=PASSWORD + "!")
    becomes(api, token, 401)
    answer = ask(api, grant_type="password", username="anna", password=PASSWORD + "!")
    token = answer.json()["access_token"]
    assert status(api, token) == 200
    subjects.change(connection, "anna", disabled=True)
    becomes(api, token, 401)
    again = ask(api, grant_type="refresh_token", refresh_token=answer.json()["refresh_token"])
    assert again.json()["error"] == "invalid_grant"


def test_the_key_set_is_published(api: TestClient) -> None:
    """Anybody verifies a token of ours with the published keys, which have no private part."""
    found = api.get("/.well-known/jwks.json").json()["keys"]
    token = login(api)["access_token"]
    key = jwt.PyJWKSet.from_dict({"keys": found})[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["EdDSA"], audience="millrace")["sub"] == "anna"
    assert all("d" not in each for each in found)
