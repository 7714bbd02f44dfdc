"""The HTTP gateway: every domain's way in over HTTP, answered only once the broker has the event."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from connectors.publish import Publisher
from infra import hardening, problems, web
from infra.codec import Codec
from infra.identity import secured
from infra.identity.authenticator import authenticating
from infra.settings import Settings
from infra.telemetry import web as telemetry
from infra.telemetry.health import Health
from schemas.pipelines import PIPELINES

DESCRIPTION = """
Every answer `202` means: the broker has the event on all its in-sync replicas, at the partition and offset
given. An event that is sent again with the same event id takes effect once, so after a `503` or a lost
connection simply send it again. A card transaction is answered with its decision, `200`, unless that takes
longer than usual or is not wanted (`Prefer: respond-async`).

Send a bearer token (the API's `POST /v1/oauth/token` gives one) or an API key with each request:
`Authorization: Bearer …` or `X-API-Key: mk_…`. Each operation names the scope that it needs. An event is of
the sender's tenant; one that names another is refused with `403`, as is one about an object (merchant, fleet,
customer, patient) that the sender may not speak for.

Errors are problem documents (RFC 9457): `422` names each field and the reason, `413` is too large a body,
`503` says whether the event was surely not accepted or whether that is unknown.
"""


def create_app(settings: Settings) -> FastAPI:
    """The gateway with the router of each declared pipeline, `connectors/<domain>/http.py`."""
    health = Health("broker", "registry")

    def on_fatal(reason: str) -> None:
        health.failing("producer", reason)
        # Ends this server in good order; the supervisor starts it again with a fresh producer.
        os.kill(os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Also of what was added since: no route without a scope is ever served.
        secured.require_scopes(app)
        codec = Codec(settings.schema_registry_url)
        publisher = Publisher(
            settings.kafka,
            codec,
            name="gateway",
            timeout_s=settings.number("publish_timeout_ms") / 1000,
            on_fatal=on_fatal,
        )
        app.state.publisher = publisher
        try:
            async with authenticating(
                app, settings, lambda: settings.database_gateway_url, "millrace-gateway"
            ):
                yield
        finally:
            await publisher.close()
            codec.close()

    async def check() -> Mapping[str, str | None]:
        publisher: Publisher = app.state.publisher
        return {
            "broker": await publisher.unreachable(),
            "registry": await _registry_unreachable(settings.schema_registry_url),
        }

    app = FastAPI(
        title="Millrace gateway",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=telemetry.FRAMEWORKS_OWN,
        generate_unique_id_function=web.operation_id,
    )
    app.state.settings = settings
    for router in web.routers(f"connectors.{pipeline.name}.http" for pipeline in PIPELINES):
        web.include(app, router)
    problems.install(app)
    telemetry.install(app, "gateway", health, check)
    hardening.install(app, settings, "gateway", health)
    secured.install(app)
    return app


async def _registry_unreachable(url: str) -> str | None:
    try:
        async with httpx.AsyncClient(timeout=2.0) as client:
            (await client.get(f"{url.rstrip('/')}/subjects")).raise_for_status()
    except httpx.HTTPError as error:
        return f"the registry does not answer ({type(error).__name__}); look at `millrace status`"
    return None
