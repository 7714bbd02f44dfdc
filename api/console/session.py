"""The session of a browser: an access and a refresh token in cookies that no script can read.

The access token is renewed by the refresh token as requests come. Several tabs may do so at the same time:
within `GRACE_S` of its use a refresh token still tells whose session it is. Later it was stolen, and the
session ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import Response

from infra.audit.log import AuditLog
from infra.identity import oauth, refresh
from infra.identity.authenticator import Authenticator
from infra.identity.principal import Principal
from infra.identity.tokens import LIFE_SECONDS
from infra.limits.web import address_of
from infra.postgres import Connection
from infra.problems import Problem

ACCESS, REFRESH = "millrace_access", "millrace_refresh"
PATH = "/console"
GRACE_S = 10.0
_PROOFS = ("authorization", "x-api-key")
_NEXT = re.compile(r"/console(?:/[A-Za-z0-9._~%@:+-]+)*(?:\?[A-Za-z0-9._~%@:+*=&/,-]*)?")
"""What a sign-in may lead to: a page of the console, in the plainest of forms."""


class SignInFirst(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a login has given; without a refresh token where another tab has got the next one."""

    access: str
    refresh: str | None

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Session:
        return cls(answer["access_token"], answer.get("refresh_token"))


async def principal(request: Request) -> Principal:
    """Who asks: by a token or key in the headers, as everywhere, or else by the session in the cookies.

    Raises `SignInFirst`; `Problem` 401 for a proof in the headers that is none, 503 where nobody can tell.
    """
    authenticator: Authenticator = request.app.state.authenticator
    if any(name in request.headers for name in _PROOFS):
        request.state.proof = request.headers
        return await authenticator.principal(request.headers)
    found = await _by_access(request, request.cookies.get(ACCESS, ""))
    if found is None and request.cookies.get(REFRESH):
        found = await _renewed(request, request.cookies[REFRESH])
    if found is None:
        if ACCESS in request.cookies or REFRESH in request.cookies:
            _tell_refused(request)
        raise SignInFirst
    return found


def is_of(request: Request, principal: Principal) -> bool:
    """Whether a person asks by the session in their cookies, and not by a token or key."""
    return principal.kind == "person" and not any(name in request.headers for name in _PROOFS)


async def again(request: Request) -> Principal:
    """Who asked, as of now. Raises `Problem`: 401 where the proof proves nothing any more, 503."""
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.principal(request.state.proof)


async def begin(request: Request, name: str, password: str) -> Principal:
    """Sign in; a session that the browser had ends. Raises `oauth.Refused`."""
    logins: oauth.Logins = request.app.state.logins
    old, login = request.cookies.get(REFRESH), oauth.by_password(request.app.state.tokens, name, password)

    def exchange(connection: Connection) -> dict[str, Any]:
        answer = login(connection)
        if old:
            refresh.end(connection, old)
        return answer

    made = Session.of(await logins.make(exchange))
    found = await _by_access(request, made.access)
    if found is None:  # disabled in between
        raise oauth.Refused("invalid_grant", "The session was ended at once.")
    request.state.session = made
    return found


async def end(request: Request) -> None:
    """Sign out: the login and all that followed from it ends. Raises `oauth.Refused` where nobody can."""
    held = request.cookies.get(REFRESH)
    try:
        request.state.asking = await _by_access(request, request.cookies.get(ACCESS, ""))
    except Problem:
        pass  # for the audit alone
    if held:
        logins: oauth.Logins = request.app.state.logins

        def revoke(connection: Connection) -> dict[str, Any]:
            refresh.end(connection, held)
            return {}

        await logins.make(revoke)


def keep(request: Request, response: Response) -> None:
    """Give the browser what was renewed while its request was answered."""
    made = getattr(request.state, "session", None)
    if isinstance(made, Session):
        _set(request, response, ACCESS, made.access, LIFE_SECONDS)
        if made.refresh is not None:
            _set(request, response, REFRESH, made.refresh, refresh.LIFE_SECONDS)


def forget(request: Request, response: Response) -> None:
    """Take the session from the browser."""
    for name in (ACCESS, REFRESH):
        if name in request.cookies:
            _set(request, response, name, "", 0)


def safe(path: str) -> str | None:
    """A page of the console that a sign-in may lead to, or None: never another site, nor a loop."""
    ours = len(path) <= 1000 and _NEXT.fullmatch(path) is not None and ".." not in path
    parts = urlsplit(path).path.split("/")
    return path if ours and not {"sign-in", "sign-out", "live", "static"} & set(parts[2:3]) else None


async def _by_access(request: Request, token: str) -> Principal | None:
    # A key is no session: it is sent in a header, by a program.
    if not token or token.startswith("mk_"):
        return None
    authenticator: Authenticator = request.app.state.authenticator
    try:
        proof = Headers({"authorization": f"Bearer {token}"})
        found = await authenticator.principal(proof)
    except Problem as problem:
        if problem.status_code == 401:
            return None
        raise
    request.state.proof = proof
    return found


async def _renewed(request: Request, token: str) -> Principal | None:
    logins: oauth.Logins = request.app.state.logins
    try:
        answer = await logins.make(oauth.by_refresh(request.app.state.tokens, token, GRACE_S))
    except oauth.Refused as refused:
        if refused.status == 400:
            return None
        raise Problem(refused.status, "Not now", refused.description, headers=refused.headers) from None
    request.state.session = made = Session.of(answer)
    return await _by_access(request, made.access)


def _tell_refused(request: Request) -> None:
    audit: AuditLog = request.app.state.audit
    told = {"reason": "the session is not valid, or not any more", "address": address_of(request.scope)}
    audit.record(None, "denied", f"{request.method} {request.url.path}", "denied", told)


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
