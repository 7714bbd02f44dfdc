"""The query API: every domain's router over one read-only pool."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from api import database, pipelines, streams, webhooks
from api.console import routes as console
from api.console.site import lifespan as console_lifespan
from api.graphql import routes as graphql
from infra import hardening, problems, web
from infra.identity import oauth, secured
from infra.identity.authenticator import authenticating
from infra.settings import Settings
from infra.telemetry import web as telemetry
from infra.telemetry.health import Health
from schemas.pipelines import PIPELINES

DESCRIPTION = """
Reads what the sinks have stored; nothing is written here. Events go in at the gateway.

- **Who asks** is told by a bearer token, which `POST /v1/oauth/token` gives for a password or a client's
  secret, or by an API key: `Authorization: Bearer …` or `X-API-Key: mk_…`. Each operation names the scope
  that it needs; answers hold rows of the asker's tenant, and of the objects that they may see.
- **GraphQL** at `/v1/graphql` reads with one query what several routes hold, for whom and as far as they do.
- **Lists** are paged: `limit` items, and `next_cursor` to be given as `cursor` for the next page.
- **Times** are ISO 8601 in UTC; **money** is integer minor units with its currency.
- **Errors** are problem documents (RFC 9457): `422` names each field and the reason; `503` means that the
  database is away or not set up: ask again after `Retry-After` seconds.
- **Where is my event?** `/v1/pipelines/{name}/positions` says how far each consumer is, and
  `/v1/dead-letters?input_id=…` whether the event was refused, and why.
"""

_MISSING_TABLES = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL"


def create_app(settings: Settings) -> FastAPI:
    """The API with the router of each declared pipeline, `api/<domain>.py`."""
    health = Health("database")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Also of what was added since: no route without a scope is ever served.
        secured.require_scopes(app)
        async with (
            database.pool(settings) as pool,
            authenticating(app, settings, lambda: settings.database_identity_url, "millrace-api-identity"),
            oauth.issuing(app, settings),
            console_lifespan(app),
            streams.live(app),
        ):
            app.state.database = pool
            yield

    async def check() -> Mapping[str, str | None]:
        pool: database.Pool = app.state.database
        away = await database.unreachable(pool)
        if away:
            return {"database": away, **{p.name: "its tables are in the database" for p in PIPELINES}}
        missing = {
            r["name"]
            for r in await pool.fetch(_MISSING_TABLES, [t.name for p in PIPELINES for t in p.tables])
        }
        found: dict[str, str | None] = {"database": None}
        for pipeline in PIPELINES:
            lacking = sorted(missing & {t.name for t in pipeline.tables})
            found[pipeline.name] = (
                f"the database lacks {', '.join(lacking)}; `millrace up` creates it" if lacking else None
            )
        return found

    app = FastAPI(
        title="Millrace API",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=telemetry.FRAMEWORKS_OWN,
        generate_unique_id_function=web.operation_id,
    )
    app.state.settings = settings
    # Set as soon as the server is told to end (`infra.web`): answers that have no end wait for it.
    app.state.ending = threading.Event()
    web.include(app, oauth.router)
    web.include(app, pipelines.router)
    web.include(app, streams.router)
    web.include(app, webhooks.router)
    for router in web.routers(f"api.{pipeline.name}" for pipeline in PIPELINES):
        web.include(app, router)
    web.include(app, graphql.router)
    console.install(app, settings, PIPELINES)
    app.add_middleware(GZipMiddleware, minimum_size=1024)
    database.install(app)
    problems.install(app)
    telemetry.install(app, "api", health, check)
    hardening.install(app, settings, "api", health)
    secured.install(app)
    return app
