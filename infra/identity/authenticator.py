"""From a request's headers to its principal, the same on every server: a bearer token, an API key,
or the token of a webhook's endpoint.

A principal is remembered for seconds, so that asking who somebody is costs a busy client nothing; a grant,
a key or a subject that was taken away is gone after `FRESH_SECONDS`. While the database is away, whoever
was known goes on for `STALE_SECONDS` at most: ingestion must outlive Postgres, and nobody can be revoked
where nothing can be written. Who was not known before is told to come back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.datastructures import Headers

from infra.identity import api_keys, receivers
from infra.identity.database import Identities, IdentitiesAway
from infra.identity.keyring import KeyRing
from infra.identity.principal import Principal
from infra.identity.subjects import NotAuthenticated, SubjectError, find
from infra.identity.tokens import Claims, TokenError, Tokens
from infra.postgres import Connection
from infra.problems import Problem
from infra.settings import Settings

log = logging.getLogger(__name__)

FRESH_SECONDS = 2.0
STALE_SECONDS = 15 * 60.0
AWAY_SECONDS = 1.0
"""While the database is away it is asked once in so long, not by each request."""
REMEMBERED = 10_000
RETRY_AFTER = {"Retry-After": "2"}


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    asked_at: float


class Authenticator:
    """Tells whose a request is. Used on one event loop."""

    def __init__(self, tokens: Tokens, identities: Identities) -> None:
        self._tokens = tokens
        self._identities = identities
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal]] = {}
        self._away_until = 0.0

    async def principal(self, headers: Headers) -> Principal:
        """Who is asking. Raises `Problem`: 401 without a valid proof, 503 where nobody can tell now."""
        credential = _credential(headers)
        if credential is None:
            raise _unauthenticated("Send a bearer token or an API key; see /docs for how to get one.")
        try:
            return await self._of(credential)
        except (NotAuthenticated, TokenError) as error:
            log.info("not authenticated", extra={"reason": str(error)})
            raise _unauthenticated(
                "The token or key is not valid, or not any more; get a new one.", invalid=True
            ) from None
        except IdentitiesAway as error:
            log.warning("the identities are away", extra={"reason": str(error)})
            raise Problem(
                503, "Identities are away", "Nobody can tell now who you are; ask again later.",
                headers=RETRY_AFTER,
            ) from None  # fmt: skip

    async def _of(self, credential: str) -> Principal:
        # A token each time anew, as its end comes also where the principal is remembered.
        ask: Callable[[Connection], Principal]
        if credential.startswith("mk_"):
            ask = _Key(credential)
        elif credential.startswith(receivers.PREFIX):
            ask = _Receiver(credential)
        else:
            ask = _Token(self._tokens.verify(credential))
        digest = hashlib.sha256(credential.encode()).digest()
        known = self._known.get(digest)
        now = time.monotonic()
        if known is not None and now < known.asked_at + FRESH_SECONDS:
            return known.principal
        if now >= self._away_until:
            try:
                return await self._ask(digest, ask)
            except IdentitiesAway:
                self._away_until = time.monotonic() + AWAY_SECONDS
                if known is None:
                    raise
        if known is None:
            raise IdentitiesAway("the database did not answer a moment ago")
        if now >= known.asked_at + STALE_SECONDS:
            raise IdentitiesAway("the database has not answered for too long")
        return known.principal

    async def _ask(self, digest: bytes, ask: Callable[[Connection], Principal]) -> Principal:
        # Of many requests with one credential, one asks for all.
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._look(digest, ask))
            task.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(task)

    def _asked(self, digest: bytes, done: asyncio.Task[Principal]) -> None:
        self._asking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # seen, also where everybody who waited has gone

    async def _look(self, digest: bytes, ask: Callable[[Connection], Principal]) -> Principal:
        asked_at = time.monotonic()
        try:
            principal = await self._identities.ask(ask)
        except NotAuthenticated:
            self._known.pop(digest, None)
            raise
        self._known[digest] = _Known(principal, asked_at)
        self._known.move_to_end(digest)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return principal


@asynccontextmanager
async def authenticating(
    app: FastAPI, settings: Settings, url: Callable[[], str], application: str
) -> AsyncIterator[None]:
    """Give `app` its authenticator (and `tokens`) for its lifespan. `url`: the database as its role reads
    identities."""
    keys = KeyRing(settings.signing_keys)
    tokens = Tokens(keys, settings.text("token_issuer"), settings.text("token_audience"))
    identities = Identities(url, application)
    app.state.keys, app.state.tokens = keys, tokens
    app.state.authenticator = Authenticator(tokens, identities)
    try:
        yield
    finally:
        await asyncio.to_thread(identities.close)


@dataclass(frozen=True, slots=True)
class _Key:
    key: str

    def __call__(self, connection: Connection) -> Principal:
        return api_keys.principal_of(connection, self.key)


@dataclass(frozen=True, slots=True)
class _Receiver:
    token: str

    def __call__(self, connection: Connection) -> Principal:
        return receivers.principal_of(connection, self.token)


@dataclass(frozen=True, slots=True)
class _Token:
    claims: Claims

    def __call__(self, connection: Connection) -> Principal:
        try:
            subject = find(connection, self.claims.subject)
        except SubjectError as error:
            raise NotAuthenticated(str(error)) from error
        if subject.version != self.claims.version:
            raise NotAuthenticated(f"the sessions of {subject.subject} were ended")
        return subject.principal(f"token:{self.claims.token_id}")


def _credential(headers: Headers) -> str | None:
    """The token or key that a request brings. Raises `Problem` 401 where it brings two."""
    keys = headers.getlist("x-api-key")
    sent = headers.getlist("authorization")
    if len(keys) + len(sent) > 1:
        raise _unauthenticated("Send one token or key, not several.")
    if keys:
        # An access token has another header: what is taken there must not be taken here.
        return keys[0] if keys[0].startswith("mk_") else "mk_"
    if sent:
        scheme, _, credential = sent[0].partition(" ")
        return credential.strip() if scheme.lower() == "bearer" else None
    return None


def _unauthenticated(detail: str, *, invalid: bool = False) -> Problem:
    error = ', error="invalid_token"' if invalid else ""
    return Problem(
        401,
        "Not authenticated",
        detail,
        headers={"WWW-Authenticate": f'Bearer realm="millrace"{error}', "Cache-Control": "no-store"},
    )
