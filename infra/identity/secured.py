"""Routes that say which scope they need, or do not come to be; whatever is not declared is denied.

A router of `SecuredRouter` takes no route without `scope=`: its module fails to import. `require_scopes`
then walks an application and refuses one with any other route that is not in `PUBLIC`. Who asks is
established, and what they may do is checked, before a byte of the body is read.

Where a request says what it wants to read, and that decides the scope, the route declares `scope=OneOf(...)`:
its door opens to whoever has one of them, and its handler asks `authorise` for the one that it needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from infra import entity_tags
from infra.hardening import admit
from infra.identity.authenticator import Authenticator
from infra.identity.principal import Principal
from infra.problems import Problem
from schemas.roles import RECEIVER_SCOPE
from schemas.roles import SCOPES as GRANTED

Handler = TypeVar("Handler", bound=Callable[..., Any])

SCOPES = GRANTED | {RECEIVER_SCOPE}
"""What a route may need."""
DECLARED = "x-millrace-scope"
"""Where an operation of the OpenAPI description says which scope it needs."""

PUBLIC = frozenset(
    {
        "/health/live",
        "/health/ready",
        "/metrics",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
        "/.well-known/jwks.json",
        "/v1/oauth/token",
        "/v1/oauth/revoke",
        "/console/sign-in",
        "/console/sign-out",
        "/console/static",
    }
)
"""The paths that anybody may ask for."""

TENANT_HEADER = "millrace-tenant"

SECURITY_SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "token": {
        "type": "oauth2",
        "flows": {
            "password": {"tokenUrl": "/v1/oauth/token", "scopes": {s: s for s in sorted(GRANTED)}},
            "clientCredentials": {"tokenUrl": "/v1/oauth/token", "scopes": {s: s for s in sorted(GRANTED)}},
        },
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "receiver": {
        "type": "http",
        "scheme": "bearer",
        "description": "The token (`whev_…`) that came with a webhook's endpoint, for its own events alone.",
    },
}


class Unsecured(TypeError):
    """A route without a scope that exists; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """The scope of a route whose request says which of these it needs. For reading alone."""

    scopes: frozenset[str]

    def __str__(self) -> str:
        return " ".join(sorted(self.scopes))


Needed = str | OneOf


@dataclass(frozen=True, slots=True)
class Declared:
    """A route of an application, and the scope that it needs; None for a public one."""

    methods: frozenset[str]
    path: str
    scope: Needed | None


class SecuredRoute(APIRoute):
    """A route that answers only whom it may."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        needed = _scope_of(self)
        if needed is None:
            raise Unsecured(f"{self.path} declares no scope; give its route scope=")

        is_tagged = (self.openapi_extra or {}).get(entity_tags.DECLARED, False)

        async def secured(request: Request) -> Response:
            await authorise(request, needed)
            answer = await handle(request)
            return entity_tags.tagged(request, answer) if is_tagged else answer

        return secured


class SecuredRouter(APIRouter):
    """A router whose routes declare `scope=`, one of `schemas.roles.SCOPES`.

    `tagged=True` gives the answers of a single resource their entity tags.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=SecuredRoute, **options)

    def get(  # type: ignore[override]
        self, path: str, *, scope: Needed, tagged: bool = False, **options: Any
    ) -> Callable[[Handler], Handler]:
        if tagged:
            options["openapi_extra"] = {**options.get("openapi_extra", {}), **entity_tags.DOCUMENTED}
        return self._route("GET", path, scope, options)

    def post(self, path: str, *, scope: Needed, **options: Any) -> Callable[[Handler], Handler]:  # type: ignore[override]
        return self._route("POST", path, scope, options)

    def put(self, path: str, *, scope: str, **options: Any) -> Callable[[Handler], Handler]:  # type: ignore[override]
        return self._route("PUT", path, scope, options)

    def patch(self, path: str, *, scope: str, **options: Any) -> Callable[[Handler], Handler]:  # type: ignore[override]
        return self._route("PATCH", path, scope, options)

    def delete(self, path: str, *, scope: str, **options: Any) -> Callable[[Handler], Handler]:  # type: ignore[override]
        return self._route("DELETE", path, scope, options)

    def websocket(  # type: ignore[override]
        self, path: str, *, scope: Needed, **options: Any
    ) -> Callable[[Handler], Handler]:
        _require_known(path, scope)
        needs = Depends(_needs(scope))
        decorate: Callable[[Handler], Handler] = super().websocket(path, dependencies=[needs], **options)
        return decorate

    def _route(
        self, method: str, path: str, scope: Needed, options: dict[str, Any]
    ) -> Callable[[Handler], Handler]:
        _require_known(path, scope)
        ways = sorted(scope.scopes) if isinstance(scope, OneOf) else [scope]
        extra = {
            **options.pop("openapi_extra", {}),
            DECLARED: ways if isinstance(scope, OneOf) else scope,
            "security": [*({"token": [way]} for way in ways), {"key": []}],
        }
        return self.api_route(path, methods=[method], openapi_extra=extra, **options)


def _needs(scope: Needed) -> Callable[[HTTPConnection], Awaitable[None]]:
    """The dependency of a WebSocket's route: it is opened only to whom it may."""

    async def check(connection: HTTPConnection) -> None:
        await authorise(connection, scope)

    setattr(check, DECLARED, scope)
    return check


async def authorise(connection: HTTPConnection, scope: Needed, *, again: bool = False) -> Principal:
    """Who is asking, where they have the scope. Raises `Problem`: 401, 403, 429 or 503.

    `again`: within what was let in already, as a stream that goes on. That is neither charged nor told anew.
    """
    authenticator: Authenticator = connection.app.state.authenticator
    principal = await authenticator.principal(connection.headers)
    ways = scope.scopes if isinstance(scope, OneOf) else frozenset({scope})
    if not again:
        await admit(connection, principal, min(ways))
    if not ways & principal.scopes:
        challenge = f'Bearer realm="millrace", error="insufficient_scope", scope="{scope}"'
        what = (
            f"one of the scopes {scope}, of which"
            if isinstance(scope, OneOf)
            else f"the scope {scope}, which"
        )
        raise Problem(
            403,
            "Not allowed",
            f"This needs {what} you have not been granted.",
            headers={"WWW-Authenticate": challenge},
        )
    # Not left out in silence: who names another tenant must not take the answer for that one's.
    for given in (*connection.query_params.getlist("tenant"), *connection.headers.getlist(TENANT_HEADER)):
        require_tenant(principal, given)
    if isinstance(scope, str):
        # Of `OneOf` nobody knows yet whether they have the right one: the handler gets no principal by it.
        connection.state.principal = principal
    return principal


def require_tenant(principal: Principal, given: str | None) -> None:
    """Raises `Problem` 403 where a request names a tenant that is not its principal's."""
    if given is not None and given != principal.tenant:
        raise Problem(
            403, "Not allowed", "That tenant is not yours; leave it out, or name your own.", field="tenant"
        )


async def principal(connection: HTTPConnection) -> Principal:
    """Who is asking, for `Annotated[Principal, Depends(secured.principal)]` on a secured route."""
    found = connection.state.principal
    assert isinstance(found, Principal)
    return found


def declared(app: FastAPI) -> Iterator[Declared]:
    """Every route of the application with its scope."""
    for context in iter_route_contexts(app.routes):
        yield Declared(frozenset(context.methods or ()), context.path or "", _scope_of(context))


def require_scopes(app: FastAPI) -> None:
    """Raises `Unsecured` where a route declares no scope and is not among the public ones.

    Call it when everything is added: an application with such a route must not start.
    """
    for route in declared(app):
        if route.scope is None and route.path not in PUBLIC:
            raise Unsecured(
                f"{' '.join(sorted(route.methods))} {route.path} declares no scope; make it a route of a"
                " SecuredRouter, or name it in infra/identity/secured.py as public"
            )


def install(app: FastAPI) -> None:
    """Let the OpenAPI description of `app` say how to authenticate, and refuse routes without a scope.

    Call it when everything is added.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemes = {name: dict(scheme) for name, scheme in SECURITY_SCHEMES.items()}
        schema.setdefault("components", {})["securitySchemes"] = schemes
        for operations in schema["paths"].values():
            for operation in operations.values():
                if operation.get(DECLARED) == RECEIVER_SCOPE:
                    operation["security"] = [{"receiver": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    require_scopes(app)


def _scope_of(route: Any) -> Needed | None:
    for dependency in getattr(route, "dependencies", None) or ():
        needed = getattr(dependency.dependency, DECLARED, None)
        if isinstance(needed, Needed):
            return needed
    # That it is written down is not enough: the route must be of the kind that checks it.
    if not isinstance(getattr(route, "original_route", route), SecuredRoute):
        return None
    scope = (route.openapi_extra or {}).get(DECLARED)
    if isinstance(scope, list):
        return OneOf(frozenset(scope))
    return scope if isinstance(scope, str) else None


def _require_known(path: str, scope: Needed) -> None:
    ways = scope.scopes if isinstance(scope, OneOf) else {scope}
    if not ways <= SCOPES or not ways:
        raise Unsecured(
            f"{path} needs scope {str(scope)!r}, which no role has; declare it in schemas/roles.py"
        )
    if isinstance(scope, OneOf) and not all(way.endswith(":read") for way in ways):
        raise Unsecured(f"{path} does something by one of {scope}; declare the one scope that this needs")
