"""All of the console as one router, and its files of style and script."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.console import (
    account,
    audit,
    decisions,
    events,
    joblog,
    keys,
    letters,
    models,
    nowhere,
    overview,
    replays,
    rule_editor,
    rule_lists,
    rule_sets,
    rules,
    schemas,
    signing_in,
    site,
    trace,
    users,
    webhooks,
)
from infra.settings import Settings
from schemas.declare import Pipelines

ROUTERS: tuple[APIRouter, ...] = (
    overview.router,
    events.router,
    trace.router,
    letters.router,
    replays.router,
    schemas.router,
    joblog.router,
    users.router,
    keys.router,
    audit.router,
    signing_in.router,
    account.router,
    rules.router,
    rule_editor.router,
    rule_sets.router,
    rule_lists.router,
    decisions.router,
    models.router,
    webhooks.router,
    nowhere.router,
)


class _Files(StaticFiles):
    """Files whose address names their content (see `site.static`)."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer


def install(app: FastAPI, settings: Settings, pipelines: Pipelines) -> site.Console:
    """Give `app` the console; `site.lifespan` is to be part of its own."""
    made = site.install(app, settings, pipelines)
    app.mount("/console/static", _Files(directory=site.HERE / "static"))
    for router in ROUTERS:
        app.include_router(router)
    return made
