"""The token endpoint (RFC 6749: password, client_credentials, refresh_token), revocation (RFC 7009), and the
public keys (RFC 7517).

Whatever is wrong with a login, the answer is the same and takes as long: it must not tell whether there is
such a subject, or whether it is locked.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import orjson
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from infra.identity import refresh, subjects
from infra.identity.database import Identities, IdentitiesAway
from infra.identity.keyring import KeyRing
from infra.identity.subjects import NotAuthenticated, Subject, SubjectError
from infra.identity.tokens import LIFE_SECONDS, Tokens
from infra.postgres import Connection
from infra.settings import Settings
from schemas.roles import scopes_of

log = logging.getLogger(__name__)

router = APIRouter(tags=["identity"])

BODY_BYTES_MAX = 8_192
LOGINS_AT_ONCE = 2
"""As many as passwords are hashed at once; on threads of their own, so that nobody else waits for them."""
LOGINS_WAITING_MAX = 32
"""Beyond these a login is told to come back, rather than to wait for half a minute."""
FORM = "application/x-www-form-urlencoded"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class TokenAnswer(BaseModel):
    """What a login is answered with (RFC 6749, 5.1)."""

    access_token: str = Field(description="To be sent as `Authorization: Bearer …`.")
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(description="Seconds until it must be refreshed.", examples=[LIFE_SECONDS])
    scope: str = Field(description="What its subject may do.", examples=["fraud:read fraud:write"])
    refresh_token: str | None = Field(
        default=None, description="Good for one use, which gives the next one; people's logins alone have it."
    )


class Refused(Exception):
    """An answer of RFC 6749, 5.2."""

    def __init__(
        self, error: str, description: str, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status
        self.headers = dict(headers or {})

    def response(self) -> Response:
        body = {"error": self.error, "error_description": self.description}
        return Response(orjson.dumps(body), self.status, {**NO_STORE, **self.headers}, "application/json")


@dataclass(slots=True)
class Logins:
    """Logins under way, and where they are made."""

    identities: Identities
    waiting: int = 0

    async def make(self, login: Callable[[Connection], dict[str, Any]]) -> dict[str, Any]:
        """What a login is answered. Raises `Refused` where too many wait, or nobody can tell."""
        if self.waiting >= LOGINS_WAITING_MAX:
            raise _away("Too many logins are waiting; try again later.", 429)
        self.waiting += 1
        try:
            return await self.identities.ask(login)
        except IdentitiesAway as error:
            log.warning("the identities are away", extra={"reason": str(error)})
            raise _away("Nobody can tell now who you are; try again later.", 503) from None
        finally:
            self.waiting -= 1


@asynccontextmanager
async def issuing(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Give `app` what its token endpoint needs, for its lifespan. It is to have its authenticator already."""
    identities = Identities(lambda: settings.database_identity_url, "millrace-login", LOGINS_AT_ONCE)
    app.state.logins = Logins(identities)
    try:
        yield
    finally:
        await asyncio.to_thread(identities.close)


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {
                            "type": "string",
                            "enum": ["password", "client_credentials", "refresh_token"],
                        },
                        "username": {"type": "string"},
                        "password": {"type": "string", "format": "password"},
                        "client_id": {"type": "string"},
                        "client_secret": {"type": "string", "format": "password"},
                        "refresh_token": {"type": "string"},
                    },
                }
            }
        },
    }
}
_REVOKED = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["token"],
                    "properties": {"token": {"type": "string"}, "token_type_hint": {"type": "string"}},
                }
            }
        },
    }
}
_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error", "error_description"],
            "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
        }
    }
}
_REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"content": _ERROR}, "5XX": {"content": _ERROR}}


@router.post(
    "/v1/oauth/token",
    openapi_extra=_BODY,
    response_class=Response,
    responses={200: {"model": TokenAnswer}, **_REFUSED},
)
async def token(request: Request) -> Response:
    """Log in, or refresh a login. Errors are those of RFC 6749, 5.2."""
    tokens: Tokens = request.app.state.tokens
    logins: Logins = request.app.state.logins
    try:
        form = await form_of(request)
        answer = await logins.make(_login(form, request, tokens))
    except Refused as refused:
        return refused.response()
    return Response(orjson.dumps(answer), headers=NO_STORE, media_type="application/json")


@router.post("/v1/oauth/revoke", openapi_extra=_REVOKED, response_class=Response, responses=_REFUSED)
async def revoke(request: Request) -> Response:
    """End the login that a refresh token follows from (RFC 7009). One that is not known is ended already."""
    logins: Logins = request.app.state.logins
    try:
        form = await form_of(request)
        proof = _required(form, "token")
        if proof.count(".") == 2:
            raise Refused(
                "unsupported_token_type",
                f"An access token ends by itself, in {LIFE_SECONDS // 60} minutes; revoke the refresh token.",
            )

        def end(connection: Connection) -> dict[str, Any]:
            refresh.end(connection, proof)
            return {}

        await logins.make(end)
    except Refused as refused:
        return refused.response()
    return Response(status_code=200, headers=NO_STORE)


@router.get("/.well-known/jwks.json", response_class=Response)
async def keys(request: Request) -> Response:
    """The public keys that access tokens are verified with, as a JSON Web Key Set."""
    ring: KeyRing = request.app.state.keys
    body = orjson.dumps(await asyncio.to_thread(ring.jwks))
    return Response(body, headers={"Cache-Control": "public, max-age=60"}, media_type="application/json")


def _login(
    form: Mapping[str, str], request: Request, tokens: Tokens
) -> Callable[[Connection], dict[str, Any]]:
    """What asks the database for this login. Raises `Refused`, as what is returned does."""
    match _required(form, "grant_type"):
        case "password":
            name, password = _required(form, "username"), _required(form, "password")

            return by_password(tokens, name, password)
        case "client_credentials":
            client, secret, by_header = _client(form, request)

            def by_secret(connection: Connection) -> dict[str, Any]:
                try:
                    subject = subjects.authenticate(connection, client, secret, "program")
                except NotAuthenticated as error:
                    log.info("not authenticated", extra={"reason": str(error)})
                    headers = {"WWW-Authenticate": 'Basic realm="millrace"'} if by_header else None
                    raise Refused(
                        "invalid_client", "The client's id or secret is not right.", 401, headers
                    ) from None
                return _answer(tokens, subject, None)

            return by_secret
        case "refresh_token":
            return by_refresh(tokens, _required(form, "refresh_token"))
    raise Refused(
        "unsupported_grant_type", "Use the grant type password, client_credentials or refresh_token."
    )


Login = Callable[[Connection], dict[str, Any]]
"""Asks the database for a login and makes its answer. Raises `Refused`."""


def by_password(tokens: Tokens, name: str, password: str) -> Login:
    """The login of a person."""

    def login(connection: Connection) -> dict[str, Any]:
        try:
            subject = subjects.authenticate(connection, name, password, "person")
        except NotAuthenticated as error:
            raise _wrong(error, "The user name or the password is not right.") from None
        return _answer(tokens, subject, refresh.start(connection, subject.subject))

    return login


def by_refresh(tokens: Tokens, used: str, grace_s: float = 0.0) -> Login:
    """The login that follows from an earlier one; `grace_s` as of `refresh.use`."""

    def login(connection: Connection) -> dict[str, Any]:
        try:
            name, heir = refresh.use(connection, used, grace_s)
            subject = subjects.find(connection, name)
            subject.principal("refresh")  # not disabled meanwhile
        except (NotAuthenticated, SubjectError) as error:
            raise _wrong(error, "The refresh token is not valid, or not any more.") from None
        return _answer(tokens, subject, heir)

    return login


def _answer(tokens: Tokens, subject: Subject, refresh_token: str | None) -> dict[str, Any]:
    answer = {
        "access_token": tokens.issue(subject.subject, subject.version),
        "token_type": "Bearer",
        "expires_in": LIFE_SECONDS,
        "scope": " ".join(sorted(scopes_of(subject.grants))),
    }
    return answer if refresh_token is None else {**answer, "refresh_token": refresh_token}


def _client(form: Mapping[str, str], request: Request) -> tuple[str, str, bool]:
    """Id and secret of the client (RFC 6749, 2.3.1), and whether they came in the header."""
    sent = request.headers.get("authorization")
    if sent is None:
        return _required(form, "client_id"), _required(form, "client_secret"), False
    scheme, _, credential = sent.partition(" ")
    if scheme.lower() != "basic" or "client_secret" in form:
        raise Refused("invalid_request", "Authenticate the client once: by HTTP Basic, or in the body.")
    try:
        name, colon, secret = base64.b64decode(credential.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        name, colon, secret = "", "", ""
    if not colon:
        raise Refused("invalid_request", "The Authorization header is not HTTP Basic; send id:secret.")
    return unquote_plus(name), unquote_plus(secret), True


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form-encoded body; empty ones are left out. Raises `Refused`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Refused("invalid_request", f"Send the body as {FORM}.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise Refused(
                "invalid_request", f"The body has more than {BODY_BYTES_MAX} bytes; send less.", 413,
                {"Connection": "close"},
            )  # fmt: skip
    try:
        pairs = parse_qsl(body.decode(), max_num_fields=20, errors="strict")
    except ValueError:
        raise Refused("invalid_request", "The body cannot be read; send it form-encoded, in UTF-8.") from None
    form = dict(pairs)
    if len(form) < len(pairs):
        raise Refused("invalid_request", "A parameter is given twice; give each once.")
    if any("\0" in value for value in form.values()):
        raise Refused("invalid_request", "A parameter has a NUL character, which none may have.")
    return form


def _required(form: Mapping[str, str], name: str) -> str:
    if name not in form:
        raise Refused("invalid_request", f"The parameter {name} is missing; give it.")
    return form[name]


def _wrong(error: Exception, description: str) -> Refused:
    log.info("not authenticated", extra={"reason": str(error)})
    return Refused("invalid_grant", description)


def _away(description: str, status: int) -> Refused:
    return Refused("temporarily_unavailable", description, status, {"Retry-After": "2"})
