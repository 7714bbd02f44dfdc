"""Models: what is in force, in which partitions, and every version that was published. Read only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console import site, words
from api.console.actions import needs
from infra import versions
from infra.dlq.edits import to_json
from infra.versions import Published
from schemas.fraud import FRAUD_SCORING, PIPELINE

router: APIRouter = site.router()

SHOWN = 50
KIND = "model"


@dataclass(frozen=True, slots=True)
class Version:
    """A published version, in which partitions it decides now, and what is told of it, by name."""

    published: Published
    partitions: tuple[int, ...]
    card: list[tuple[str, str]]

    @property
    def about(self) -> str:
        body: Any = self.published.body
        return str(body.get("kind", "")) if isinstance(body, dict) else ""


@router.get("/models", dependencies=[needs("scoring:read", "models.list")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def find() -> list[Version]:
        with console.database() as connection:
            found = versions.published(connection, PIPELINE.name, KIND, SHOWN)
            applied = versions.applied(connection, FRAUD_SCORING.name, KIND)
        return [
            Version(
                one,
                tuple(a.partition for a in applied if a.version == one.version),
                _card(one.body),
            )
            for one in found
        ]

    found = await console.apart(find)
    return site.page(request, "models.html", active="models", versions=found, domain=PIPELINE.name)


def _card(body: Any) -> list[tuple[str, str]]:
    """What is told of a model, each value in one line of text."""
    told = words.plain(body)
    if not isinstance(told, dict):
        return [("body", to_json(told))]
    return [(name, v if isinstance(v, str) else " ".join(to_json(v).split())) for name, v in told.items()]
