"""Running an HTTP service: finding its routers by name, and serving it until told to stop."""

from __future__ import annotations

import importlib
import logging
import resource
import socket
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts

from infra import tls
from infra.prompt_http import PromptHttp
from infra.secret_strength import refuse_weak
from infra.settings import SettingError, Settings

log = logging.getLogger(__name__)

DID_NOT_START = 3
"""Exit code, as uvicorn's own."""


def routers(modules: Iterable[str]) -> Iterator[APIRouter]:
    """The `router` of each module, in order; a module that does not exist is left out.

    A module that exists but fails to import, or has no `router`, raises: half a service must not start.
    """
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise
        router = getattr(module, "router", None)
        if not isinstance(router, APIRouter):
            raise TypeError(f"{name}.router is {router!r}; make it a fastapi.APIRouter")
        yield router


_OF_A_ROUTE = (
    "response_model",
    "status_code",
    "tags",
    "dependencies",
    "summary",
    "description",
    "response_description",
    "responses",
    "deprecated",
    "methods",
    "operation_id",
    "response_model_include",
    "response_model_exclude",
    "response_model_by_alias",
    "response_model_exclude_unset",
    "response_model_exclude_defaults",
    "response_model_exclude_none",
    "include_in_schema",
    "response_class",
    "name",
    "callbacks",
    "openapi_extra",
    "generate_unique_id_function",
    "strict_content_type",
    "max_body_size",
)


def include(app: FastAPI, router: APIRouter) -> None:
    """As `app.include_router(router)`, with the router's routes made the application's own.

    FastAPI looks for a request's route in each router that it was given, and once more in the one that has
    it, and so on inwards: by then a request has cost as much as its answer takes. Raises TypeError for what
    is neither a route nor a WebSocket's.
    """
    app.include_router(router)  # for its lifespan
    included = app.router.routes.pop()
    for found in iter_route_contexts([included]):
        route = found.original_route
        if isinstance(route, APIRoute) and found.path and found.endpoint:
            told = {name: getattr(found, name) for name in _OF_A_ROUTE}
            app.router.add_api_route(found.path, found.endpoint, route_class_override=type(route), **told)
        elif isinstance(route, APIWebSocketRoute) and found.path and found.endpoint:
            app.router.add_api_websocket_route(
                found.path, found.endpoint, found.name, dependencies=found.dependencies
            )
        else:
            raise TypeError(f"{route!r} cannot be included; make it a route of a SecuredRouter")


def operation_id(route: APIRoute) -> str:
    """What generated clients call a route's function: as it is called here. FastAPI warns of two alike."""
    return route.name


def run(app: FastAPI, url: str, drain_s: float) -> None:
    """Serve `app` at the host and port of `url` until SIGTERM or SIGINT, by TLS where the settings say so.

    With another port as MILLRACE_METRICS_PORT this is one of several processes that share the `url`'s: Linux
    deals out connections among them. It serves the same at its own port, where its metrics and its health can
    be asked for. Requests under way at the end have `drain_s` seconds to be answered. Exits where a secret is
    none, or a port is taken.
    """
    settings = Settings.load()
    try:
        refuse_weak(settings)
        certificate, key = tls.files(settings) or (None, None)
    except SettingError as error:
        log.critical(str(error))
        raise SystemExit(1) from None
    at = urlsplit(url)
    trusted = settings.text("trusted_proxies")
    config = uvicorn.Config(
        app,
        host=at.hostname or "127.0.0.1",
        port=at.port or 80,
        loop="uvloop",
        http=PromptHttp,
        log_config=None,
        access_log=False,
        server_header=False,
        # Otherwise whoever connects from this machine says which address they come from.
        proxy_headers=bool(trusted),
        forwarded_allow_ips=trusted or None,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ciphers=tls.CIPHERS,
        ws_max_size=settings.number("max_json_bytes"),
        timeout_graceful_shutdown=max(1, int(drain_s)),
    )
    _make_room()
    server = _Server(config)
    own = settings.number("metrics_port") if settings.text("metrics_port") else config.port
    server.run(None if own == config.port else [_shared(config.host, config.port), _shared("127.0.0.1", own)])
    if not server.started:
        sys.exit(DID_NOT_START)


def _shared(host: str, port: int) -> socket.socket:
    """A socket at a port that other processes of this user may have as well. It does not listen yet."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        log.critical(f"{host}:{port} cannot be served ({error}); stop what uses it, or choose other ports")
        sys.exit(DID_NOT_START)
    return made


def _make_room() -> None:
    """Take connections up to the system's limit: each is a file, and many systems give 1,024 at first."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Tells answers that have no end (`app.state.ending`, an Event) to come to one: it waits for them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        ending = getattr(getattr(self.config.app, "state", None), "ending", None)
        if ending is not None:
            ending.set()
        super().handle_exit(sig, frame)
