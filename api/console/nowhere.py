"""Addresses below /console at which there is nothing: told on a page, to those who are signed in."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import needs_oneself
from infra.problems import Problem

router: APIRouter = site.router()
"""To be the last one: it answers whatever no other router does."""


@router.get("/{rest:path}", dependencies=[needs_oneself("console.nowhere")])
async def nowhere(request: Request, rest: str) -> Response:
    if not rest:
        return site.to("/console")
    raise Problem(404, "No such page", f"There is no page {request.url.path}; the navigation shows yours.")
