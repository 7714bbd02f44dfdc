"""Running an HTTP service: finding its routers by name, and serving it until told to stop."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from fastapi import APIRouter, FastAPI

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


def run(app: FastAPI, url: str, drain_s: float) -> None:
    """Serve `app` at the host and port of `url` until SIGTERM or SIGINT.

    Requests under way then have `drain_s` seconds to be answered.
    """
    at = urlsplit(url)
    config = uvicorn.Config(
        app,
        host=at.hostname or "127.0.0.1",
        port=at.port or 80,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(drain_s)),
    )
    server = _Server(config)
    server.run()
    if not server.started:
        sys.exit(DID_NOT_START)


class _Server(uvicorn.Server):
    """Tells answers that have no end (`app.state.ending`, an Event) to come to one: it waits for them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        ending = getattr(getattr(self.config.app, "state", None), "ending", None)
        if ending is not None:
            ending.set()
        super().handle_exit(sig, frame)
