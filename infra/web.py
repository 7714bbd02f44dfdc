"""Running an HTTP service: finding its routers by name, and serving it until told to stop."""

from __future__ import annotations

import importlib
import logging
import resource
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

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


def operation_id(route: APIRoute) -> str:
    """What generated clients call a route's function: as it is called here. FastAPI warns of two alike."""
    return route.name


def run(app: FastAPI, url: str, drain_s: float) -> None:
    """Serve `app` at the host and port of `url` until SIGTERM or SIGINT, by TLS where the settings say so.

    Requests under way then have `drain_s` seconds to be answered. Exits where a secret is none.
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
    server.run()
    if not server.started:
        sys.exit(DID_NOT_START)


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
