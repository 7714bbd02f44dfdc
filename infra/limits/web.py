"""Limits of an HTTP service: what is beyond them is refused before it costs anything."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from functools import lru_cache

from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.identity.principal import Principal
from infra.limits.rates import is_login
from infra.limits.tokens import Tokens, Verdict
from infra.problems import Problem
from infra.telemetry.metrics import LIMITED

EXEMPT = ("/health/", "/metrics")
"""Whoever looks whether the service lives must not be turned away because it is busy."""
BLOCKED_MOST = 10_000
_VERDICT = "millrace.limit"
_STARTS = frozenset({"http.response.start", "websocket.http.response.start"})
"""Messages that an answer begins with, also one that refuses a WebSocket."""


async def charge(connection: HTTPConnection, principal: Principal, route_class: str) -> None:
    """Take one of the principal's tokens for this request. Raises `Problem` 429."""
    tokens: Tokens = connection.app.state.limits
    verdict = await tokens.take(f"subject:{principal.subject}", route_class)
    connection.scope.setdefault(_VERDICT, []).append(verdict)
    if not verdict.allowed:
        raise _too_many(verdict)


def address_of(scope: Scope) -> str:
    """Who is asking where nobody says who they are: the address; of IPv6 the /64, which is one customer's."""
    return _address(str((scope.get("client") or ("unknown", 0))[0]))


@lru_cache(maxsize=BLOCKED_MOST)
def _address(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class Limits:
    """Sheds what is beyond `under_way`; charges logins and refused proofs to the address that they come from.

    An answer 401 takes one of the address's tokens; without any left, it is turned away unheard for a while.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, under_way: int) -> None:
        self._app, self._tokens, self._most = app, tokens, under_way
        self._under_way = 0
        self._blocked: OrderedDict[str, float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(EXEMPT):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        verdicts: list[Verdict] = scope.setdefault(_VERDICT, [])
        if refusal is None and is_login(scope):
            verdicts.append(await self._tokens.take(f"address:{address_of(scope)}", "login"))
            if not verdicts[-1].allowed:
                refusal = _too_many(verdicts[-1])
        if refusal is not None:
            await refusal.response(scope["path"])(scope, receive, _with_headers(send, verdicts))
            return
        await self._counted(scope, receive, send, verdicts)

    def _refusal(self, scope: Scope) -> Problem | None:
        if self._blocked:
            address = address_of(scope)
            left_s = self._blocked.get(address, 0.0) - time.monotonic()
            if left_s > 0:
                return _turned_away(math.ceil(left_s))
            self._blocked.pop(address, None)
        if self._under_way >= self._most:
            LIMITED.labels("any", "shed").inc()
            # Not all at the same time again.
            retry_s = 1 + time.monotonic_ns() // 1000 % 3
            return Problem(
                503,
                "Overloaded",
                f"This service works on {self._most} requests already; send it again after {retry_s} s.",
                headers={"Retry-After": str(retry_s)},
            )
        return None

    async def _counted(self, scope: Scope, receive: Receive, send: Send, verdicts: list[Verdict]) -> None:
        counted = True
        self._under_way += 1

        def release() -> None:
            nonlocal counted
            self._under_way -= counted
            counted = False

        with_headers = _with_headers(send, verdicts)

        async def watched(message: Message) -> None:
            if message["type"] in _STARTS:
                if message["status"] == 401:
                    await self._failed(address_of(scope))
                if b"text/event-stream" in dict(message["headers"]).get(b"content-type", b""):
                    release()  # it has begun, and may stay open for hours
            elif message["type"] == "websocket.accept":
                release()
            await with_headers(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            release()

    async def _failed(self, address: str) -> None:
        verdict = await self._tokens.take(f"address:{address}", "anonymous")
        if not verdict.allowed:
            self._blocked[address] = time.monotonic() + verdict.retry_after_s
            while len(self._blocked) > BLOCKED_MOST:
                self._blocked.popitem(last=False)


def install(app: FastAPI, tokens: Tokens, under_way: int) -> None:
    """Limit `app`, whose routes then `charge` their principals. Close the tokens when the app ends."""
    app.state.limits = tokens
    app.add_middleware(Limits, tokens=tokens, under_way=under_way)


def _with_headers(send: Send, verdicts: list[Verdict]) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] in _STARTS and verdicts:
            # Of several the one that is nearest to its end.
            tightest = min(verdicts, key=lambda verdict: verdict.tokens / verdict.rate.burst)
            told = ((n.lower().encode(), v.encode()) for n, v in tightest.headers.items())
            message["headers"] = [*message["headers"], *told]
        await send(message)

    return with_headers


def _too_many(verdict: Verdict) -> Problem:
    return _turned_away(verdict.retry_after_s, verdict.rate.burst)


def _turned_away(retry_after_s: int, burst: int | None = None) -> Problem:
    at_once = f" (up to {burst} at once are taken)" if burst else ""
    return Problem(
        429,
        "Too many requests",
        f"More requests came from you than are taken{at_once}; send it again after {retry_after_s} s.",
        headers={"Retry-After": str(retry_after_s)},
    )
