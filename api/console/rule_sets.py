"""Versions of the whole set of rules: what each changed, who published it, and the way back to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import Acting, needs
from infra import versions
from infra.versions import Published
from models.rules import store
from models.rules.store import KIND, PIPELINE
from schemas.fraud import FRAUD_SCORING

router: APIRouter = site.router()

SHOWN = 25


@dataclass(frozen=True, slots=True)
class Step:
    """A version, what it changed against the one before, and in which partitions it is in force now."""

    published: Published
    changes: tuple[str, ...]
    partitions: tuple[int, ...]


@router.get("/rule-sets", dependencies=[needs("scoring:read", "rules.sets")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def find() -> list[Step]:
        with console.database() as connection:
            found = versions.published(connection, PIPELINE, KIND, SHOWN + 1)
            applied = versions.applied(connection, FRAUD_SCORING.name, KIND)
        older = [*found[1:], None]
        return [
            Step(
                now,
                tuple(differences(before.body if before else None, now.body)),
                tuple(a.partition for a in applied if a.version == now.version),
            )
            for now, before in zip(found, older, strict=True)
        ][:SHOWN]

    steps = await console.apart(find)
    return site.page(request, "rule_sets.html", active="rules", steps=steps)


@router.post("/rule-sets/{number}/restore", dependencies=[needs("scoring:write", "rules.rollback")])
async def restore(
    request: Request, number: Annotated[int, Path(ge=1, le=2**31 - 1)], actor: Acting
) -> Response:
    """Put all rules back as they were in a version."""
    console = site.console(request)

    def act() -> None:
        with console.database(reading=False) as connection:
            store.roll_back_to(connection, number, actor.subject)

    await console.apart(act)
    return site.to("/console/rule-sets")


def differences(before: Any, now: Any) -> Iterator[str]:
    """What a published set changed, a sentence each. A list is a set of before there were texts."""
    old, new = _standings(before), _standings(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key, 'not in force')} → {new.get(key, 'not in force')}"
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted(before["lists"].keys() | now["lists"].keys()):
            was, is_ = (len(body["lists"].get(name, ())) for body in (before, now))
            if before["lists"].get(name) != now["lists"].get(name):
                yield f"list {name}: {was} → {is_} entries"
        if before["currency"] != now["currency"]:
            yield f"rates of {now['currency']['as_of']}"
        if added := now["windows"][len(before["windows"]) :]:
            yield f"kept from here on: {', '.join(added)}"


def _standings(body: Any) -> dict[str, str]:
    if not isinstance(body, Mapping):
        return {str(rule["id"]): "active" for rule in body or ()}
    return {f"{rule['id']}@{rule['version']}": _standing(rule) for rule in body["rules"]}


def _standing(rule: Mapping[str, Any]) -> str:
    share = f", {rule['share']:.3g} of the cards" if rule["share"] < 1 else ""
    return f"{rule['stage']}{share}{'' if rule['cap'] is None else ', cap {:.3g}'.format(rule['cap'])}"
