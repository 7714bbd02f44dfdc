"""Signed requests: machine producers prove who they are without a secret on the wire.

    Authorization: Millrace-HMAC-SHA256 key=<prefix>, time=<seconds>, nonce=<nonce>, signature=<hex>

`key` is the prefix of an API key, `time` seconds since 1970, `nonce` 16 to 64 characters of base64url that
are sent once. `signature` is HMAC-SHA256, under the key's signing secret (UTF-8 as it is shown), of these
lines, joined by newlines, without one at the end:

    millrace-hmac-sha256-1
    the method, in capitals
    the header Host, in small letters
    the path as it is sent, percent-encoded
    the query as it is sent, without `?`; empty where there is none
    time
    nonce
    the header Content-Type as it is sent; empty where there is none
    SHA-256 of the body, in hex

The signing secret of a key is derived from the instance's own secret, and stored nowhere: the database, which
says whose key it is and until when, holds nothing to sign with.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass

import httpx
from starlette.requests import Request

from infra.identity.principal import Principal
from infra.identity.subjects import NotAuthenticated, find
from infra.postgres import Connection
from infra.problems import Problem
from infra.quick_redis import QuickRedis, RedisAway

SCHEME = "Millrace-HMAC-SHA256"
SECRET = "signed-requests"  # noqa: S105 - its name
"""The instance's secret that signing secrets are derived from."""
WINDOW_S = 60
"""How far a request's time may be from ours."""
WINDOW_ALONE_S = 10
"""The same while Redis is away: then only this process knows which nonces it has seen."""
NONCES_MOST = 100_000

_FORM = re.compile(
    rf"(?i:{SCHEME}) key=(?P<key>[a-z0-9]{{12}}), ?time=(?P<time>[0-9]{{1,12}}),"
    r" ?nonce=(?P<nonce>[A-Za-z0-9_-]{16,64}), ?signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What the header of a signed request says."""

    key: str
    time: int
    nonce: str
    signature: str

    @classmethod
    def parse(cls, header: str) -> Proof:
        """Raises `NotAuthenticated`."""
        form = _FORM.fullmatch(header)
        if form is None:
            raise NotAuthenticated("the header has not the form of a signed request's")
        return cls(form["key"], int(form["time"]), form["nonce"], form["signature"])


def signing_secret(master: str, key: str) -> str:
    """The secret by which the API key with this prefix signs. `master`: the instance's secret `SECRET`."""
    if not master:
        raise LookupError("this instance signs no requests yet; `millrace up` makes its secret")
    derived = hmac.digest(master.encode(), b"millrace signed requests 1:" + key.encode(), "sha256")
    return base64.urlsafe_b64encode(derived).rstrip(b"=").decode()


def canonical(
    method: str, host: str, path: str, query: str, at: int, nonce: str, content_type: str, body: bytes
) -> bytes:
    """What is signed of a request; see the module's text."""
    lines = (
        "millrace-hmac-sha256-1", method.upper(), host.lower(), path, query, str(at), nonce, content_type,
        hashlib.sha256(body).hexdigest(),
    )  # fmt: skip
    return "\n".join(lines).encode("latin-1")


def signature(secret: str, what: bytes) -> str:
    """In hex."""
    return hmac.digest(secret.encode(), what, "sha256").hex()


class Signed(httpx.Auth):
    """Signs each request of an httpx client: `httpx.Client(auth=Signed(prefix, secret))`."""

    requires_request_body = True

    def __init__(self, key: str, secret: str) -> None:
        self._key, self._secret = key, secret

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        at, nonce = int(time.time()), secrets.token_urlsafe(16)
        path, _, query = request.url.raw_path.decode().partition("?")
        content_type = request.headers.get("content-type", "")
        what = canonical(
            request.method, request.headers["host"], path, query, at, nonce, content_type, request.content
        )
        request.headers["Authorization"] = (
            f"{SCHEME} key={self._key}, time={at}, nonce={nonce}, signature={signature(self._secret, what)}"
        )
        yield request


class Nonces:
    """Which nonces were sent: told by Redis for all processes, and remembered by this one."""

    def __init__(self, redis: QuickRedis) -> None:
        self._redis = redis
        self._own: OrderedDict[str, float] = OrderedDict()
        self._untold: list[str] = []

    @property
    def window_s(self) -> int:
        """How far off a request's time may be now."""
        return WINDOW_ALONE_S if self._redis.away else WINDOW_S

    async def claim(self, key: str, nonce: str) -> bool:
        """Whether it comes for the first time. Raises `RedisAway` where that cannot be told any more."""
        name = f"millrace:nonce:{key}:{nonce}"
        if not self._claim_own(name):
            return False
        untold, self._untold = self._untold, []
        # What was taken while Redis was away is told first, or another process would take it again.
        told = [("SET", taken, 1, "PX", 2 * WINDOW_S * 1000, "NX") for taken in (*untold, name)]
        try:
            return (await self._redis.ask_all(told))[-1] is not None
        except RedisAway:
            self._untold = [*untold, name, *self._untold][-NONCES_MOST:]
            return True

    def _claim_own(self, name: str) -> bool:
        now = time.monotonic()
        while self._own and next(iter(self._own.values())) <= now:
            self._own.popitem(last=False)
        if name in self._own:
            return False
        if len(self._own) >= NONCES_MOST:
            raise RedisAway("too many signed requests within the window to remember their nonces")
        # Only what could be taken while Redis is away needs to be known here.
        self._own[name] = now + 2 * WINDOW_ALONE_S
        return True


class SignedRequests:
    """Tells whose a signed request is. Used on one event loop."""

    def __init__(
        self, master: Callable[[], str], nonces: Nonces, principal_of: Callable[[str], Awaitable[Principal]]
    ) -> None:
        """`master` gives the instance's secret; `principal_of` the principal of a key's prefix, or raises
        `NotAuthenticated`, as `of_prefix` does."""
        self._master, self._nonces, self._principal_of = master, nonces, principal_of

    async def principal(self, request: Request) -> Principal:
        """Whose it is. Reads the body, which handlers may read again. Raises `NotAuthenticated` with a reason
        for the log alone, and `Problem` 503 where it cannot be told whether it was sent before."""
        headers = request.headers.getlist("authorization")
        if len(headers) != 1:
            raise NotAuthenticated(f"there are {len(headers)} Authorization headers")
        proof = Proof.parse(headers[0])
        window_s = self._nonces.window_s
        if abs(time.time() - proof.time) > window_s:
            raise NotAuthenticated(f"its time is not within {window_s} s of ours")
        try:
            secret = signing_secret(self._master(), proof.key)
        except LookupError as error:
            raise NotAuthenticated(str(error)) from error
        path, _, query = request.scope["raw_path"].partition(b"?")
        what = canonical(
            request.method,
            request.headers.get("host", ""),
            path.decode("latin-1"),
            (query or request.scope["query_string"]).decode("latin-1"),
            proof.time,
            proof.nonce,
            request.headers.get("content-type", ""),
            await request.body(),
        )
        if not hmac.compare_digest(signature(secret, what), proof.signature):
            raise NotAuthenticated(f"the signature is not one of key {proof.key}")
        # Only now: who cannot sign is not to fill anybody's memory.
        try:
            if not await self._nonces.claim(proof.key, proof.nonce):
                raise NotAuthenticated(f"key {proof.key} sent this nonce before")
            # Redis may have gone away meanwhile, and the window with it.
            if abs(time.time() - proof.time) > self._nonces.window_s:
                raise NotAuthenticated("its time is not within what can be told without Redis")
        except RedisAway:
            raise Problem(
                503,
                "Cannot be told",
                "It cannot be told now whether this request was sent before; sign it anew and send it later.",
                headers={"Retry-After": "10"},
            ) from None
        return await self._principal_of(proof.key)


def of_prefix(connection: Connection, prefix: str) -> Principal:
    """The principal of the API key with this prefix, proven by a signature. Raises `NotAuthenticated`."""
    row = connection.execute(
        "SELECT subject, grants, expires_at <= now(), revoked_at IS NOT NULL"
        " FROM identity.api_keys WHERE prefix = %s",
        (prefix,),
    ).fetchone()
    if row is None:
        raise NotAuthenticated(f"there is no API key {prefix}")
    subject, grants, expired, revoked = row
    assert isinstance(grants, list)
    if expired or revoked:
        raise NotAuthenticated(f"API key {prefix} {'was revoked' if revoked else 'has expired'}")
    return find(connection, str(subject)).principal(f"signed:{prefix}", [str(grant) for grant in grants])
