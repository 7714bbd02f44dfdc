"""Signed requests: proof of who sends them, once, and of every byte that matters."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from infra import problems, quick_redis, signed_requests
from infra.identity import api_keys, subjects
from infra.identity.principal import Principal
from infra.identity.subjects import NotAuthenticated
from infra.postgres import Connection, connect
from infra.problems import Problem
from infra.quick_redis import QuickRedis
from infra.settings import Settings
from infra.signed_requests import (
    Nonces,
    Proof,
    Signed,
    SignedRequests,
    canonical,
    of_prefix,
    signature,
    signing_secret,
)
from tests.infra.conftest import OwnRedis

MASTER = "the secret of this instance"
KEY = "abcdefghij01"
SECRET = signing_secret(MASTER, KEY)
NOWHERE = "redis://127.0.0.1:1/0"


class Service:
    """One process that takes signed requests, and clients of it."""

    def __init__(self, url: str = NOWHERE, master: str = MASTER) -> None:
        self.redis = QuickRedis(url)
        self.nonces = Nonces(self.redis)
        signed = SignedRequests(lambda: master, self.nonces, self._principal)
        self.app = FastAPI()

        @self.app.post("/v1/events/{name:path}")
        async def events(request: Request, name: str) -> dict[str, str]:
            try:
                principal = await signed.principal(request)
            except NotAuthenticated as error:
                raise Problem(401, "Not authenticated", str(error)) from None
            return {"subject": principal.subject, "body": (await request.body()).decode()}

        problems.install(self.app)

    @staticmethod
    async def _principal(prefix: str) -> Principal:
        return Principal(prefix, "program", "acme", frozenset(), {}, f"signed:{prefix}")

    @asynccontextmanager
    async def client(self, auth: httpx.Auth | None = None) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://Test", auth=auth) as client:
            yield client
        await self.redis.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_redis, "ANSWER_S", 2.0)
    monkeypatch.setattr(quick_redis, "LOOK_AGAIN_S", 0.05)


def test_what_is_signed_is_what_is_documented() -> None:
    """Secret, string and signature are those that infra/signed_requests.py describes."""
    derived = hmac.new(MASTER.encode(), b"millrace signed requests 1:" + KEY.encode(), hashlib.sha256)
    assert len(SECRET) == 43 and hmac.compare_digest(_unpadded(SECRET), derived.digest())
    what = canonical("post", "Host:1", "/v1/a%20b", "x=1&y=%C3%A4", 17, "n" * 16, "text/plain", b"body")
    body = hashlib.sha256(b"body").hexdigest()
    assert what == (
        b"millrace-hmac-sha256-1\nPOST\nhost:1\n/v1/a%20b\nx=1&y=%C3%A4\n17\nnnnnnnnnnnnnnnnn\ntext/plain\n"
        + body.encode()
    )
    assert signature(SECRET, what) == hmac.new(SECRET.encode(), what, hashlib.sha256).hexdigest()


def test_a_signed_request_is_its_senders() -> None:
    """Our client's requests are taken, with any path, query and body, which the handler still reads."""

    async def run() -> None:
        async with Service().client(Signed(KEY, SECRET)) as client:
            for url, body in (("/v1/events/a", b""), ("/v1/events/%C3%A4%2Fb?x=1&y=%20ä", b'{"amount":1}')):
                answer = await client.post(url, content=body, headers={"content-type": "application/json"})
                assert answer.status_code == 200, answer.text
                assert answer.json() == {"subject": KEY, "body": body.decode()}

    asyncio.run(run())


def header(
    at: int,
    nonce: str = "n" * 22,
    key: str = KEY,
    secret: str = SECRET,
    body: bytes = b"body",
    path: str = "/v1/events/a",
) -> dict[str, str]:
    """The headers of a request, as anybody could compute them by hand."""
    what = canonical("POST", "test", path, "x=1", at, nonce, "text/plain", body)
    text = f"Millrace-HMAC-SHA256 key={key}, time={at}, nonce={nonce}, signature={signature(secret, what)}"
    return {"authorization": text, "content-type": "text/plain"}


async def send(client: httpx.AsyncClient, headers: dict[str, str], **changed: object) -> httpx.Response:
    asked = {"method": "POST", "url": "/v1/events/a?x=1", "content": b"body", **changed}
    return await client.request(**asked, headers=headers)  # type: ignore[arg-type]


def test_nothing_of_a_signed_request_can_be_changed() -> None:
    """Path, query, host, type, body, time, nonce and key are all signed; none can be another one."""

    async def run() -> None:
        now = int(time.time())
        async with Service().client() as client:
            right = header(now)
            for changed in (
                {"url": "/v1/events/b?x=1"},
                {"url": "/v1/events/a?x=2"},
                {"url": "/v1/events/a"},
                {"url": "/v1/events/%61?x=1"},
                {"content": b"bodY"},
            ):
                assert (await send(client, right, **changed)).status_code == 401, changed
            for name, value in (("host", "other"), ("content-type", "application/json")):
                assert (await send(client, {**right, name: value})).status_code == 401, name
            for part, value in (
                (f"time={now}", f"time={now - 1}"),
                ("nonce=n", "nonce=m"),
                (f"key={KEY}", "key=abcdefghij02"),
                (right["authorization"][-64:], "0" * 64),
            ):
                wrong = {**right, "authorization": right["authorization"].replace(part, value)}
                assert wrong != right and (await send(client, wrong)).status_code == 401, part
            assert (await send(client, right)).status_code == 200, "and unchanged it is still taken"

    asyncio.run(run())


@given(st.text(max_size=200))
def test_what_is_no_proof_is_refused(text: str) -> None:
    """Whatever stands in the header, it is refused in good order."""
    for header_text in (text, f"Millrace-HMAC-SHA256 {text}", f"Millrace-HMAC-SHA256 key={KEY}, time={text}"):
        with pytest.raises(NotAuthenticated):
            Proof.parse(header_text)


def test_a_clock_may_be_off_by_so_much(own_redis: OwnRedis) -> None:
    """A minute with Redis, ten seconds without; beyond that a request is not taken, however well signed."""

    async def run() -> None:
        now = int(time.time())
        async with Service(own_redis.url).client() as client:
            for n, (off, status) in enumerate(((-55, 200), (55, 200), (-65, 401), (65, 401), (10**11, 401))):
                assert (await send(client, header(now + off, f"{n:022}"))).status_code == status, off
        service = Service()
        async with service.client() as client:
            await send(client, header(now, "first" * 4))  # finds out that Redis is away
            for n, (off, status) in enumerate(((-8, 200), (8, 200), (-15, 401), (15, 401))):
                assert (await send(client, header(now + off, f"{n:022}"))).status_code == status, off

    asyncio.run(run())


def test_a_request_is_taken_once(own_redis: OwnRedis) -> None:
    """Sent again it is refused: by the same process, by another one, and with Redis away or back again."""

    async def run() -> None:
        now = int(time.time())
        a, b = Service(own_redis.url), Service(own_redis.url)
        async with a.client() as to_a, b.client() as to_b:
            first = header(now, "first-" * 4)
            assert (await send(to_a, first)).status_code == 200
            assert (await send(to_a, first)).status_code == 401
            assert (await send(to_b, first)).status_code == 401
            own_redis.kill()
            assert (await send(to_a, first)).status_code == 401
            second = header(now, "second" * 4)
            assert (await send(to_a, second)).status_code == 200
            assert (await send(to_a, second)).status_code == 401
            own_redis.start()
            end = time.monotonic() + 10
            while a.redis.away:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert (await send(to_a, header(now, "third-" * 4))).status_code == 200
            assert (await send(to_b, second)).status_code == 401, "it was told when Redis came back"

    asyncio.run(run())


def test_a_redis_that_goes_away_narrows_the_window_at_once() -> None:
    """The first request that finds Redis away is held to the narrow window as well."""

    async def run() -> None:
        async with Service().client() as client:
            assert (await send(client, header(int(time.time()) - 30))).status_code == 401

    asyncio.run(run())


def test_more_nonces_than_can_be_remembered_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than forget one that could come again, the service answers 503."""
    monkeypatch.setattr(signed_requests, "NONCES_MOST", 3)

    async def run() -> None:
        now = int(time.time())
        async with Service().client() as client:
            answers = [await send(client, header(now, f"{n:022}")) for n in range(4)]
            assert [a.status_code for a in answers] == [200, 200, 200, 503]
            assert "retry-after" in answers[-1].headers

    asyncio.run(run())


def test_an_instance_without_its_secret_takes_nothing() -> None:
    """Before `millrace up` made the secret no signature is right, also not one under an empty secret."""

    async def run() -> None:
        derived = hmac.new(b"", b"millrace signed requests 1:" + KEY.encode(), hashlib.sha256).digest()
        forged = header(int(time.time()), secret=base64.urlsafe_b64encode(derived).rstrip(b"=").decode())
        async with Service(master="").client() as client:
            assert (await send(client, forged)).status_code == 401

    asyncio.run(run())
    with pytest.raises(LookupError, match="millrace up"):
        signing_secret("", KEY)


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url) as made:
        made.execute("TRUNCATE identity.subjects CASCADE")
        yield made


def test_the_key_says_whose_it_is_until_it_ends(connection: Connection) -> None:
    """A signature is as good as its API key: grants as the key's, nothing once it is revoked or expired."""
    subjects.create(
        connection,
        "truck-gateway",
        "program",
        "acme",
        "four words of a program",
        ["producer:fleet", "viewer:fleet"],
    )
    key = api_keys.create(connection, "truck-gateway", "trucks", ["producer:fleet"], 30)
    prefix = key.split("_")[1]
    principal = of_prefix(connection, prefix)
    assert (principal.subject, principal.scopes, principal.proof) == (
        "truck-gateway",
        {"fleet:write"},
        f"signed:{prefix}",
    )
    connection.execute("UPDATE identity.api_keys SET expires_at = now()")
    with pytest.raises(NotAuthenticated, match="has expired"):
        of_prefix(connection, prefix)
    api_keys.revoke(connection, prefix)
    with pytest.raises(NotAuthenticated, match="was revoked"):
        of_prefix(connection, prefix)
    with pytest.raises(NotAuthenticated, match="there is no API key"):
        of_prefix(connection, "000000000000")


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=")
