"""Schemas: released versions with what changed between them, whom a change concerns, and the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import needs
from api.console.parts import Part, Trouble
from infra.problems import Problem
from infra.schema_versions import Registered, registered
from schemas.avro import Field, parse
from schemas.declare import Pipelines
from schemas.difference import Difference, differences
from schemas.released import Affected, Declared, Verdict, affected, declared, judge, roll_out

router: APIRouter = site.router()


@dataclass(frozen=True)
class Step:
    """What changed from one version to the next; `version` is None for the working tree's."""

    version: int | None
    before: int | None
    changes: Sequence[Difference]


@dataclass(frozen=True)
class Line:
    """A schema in the list."""

    schema: Declared
    verdict: Verdict
    who: Affected

    @property
    def state(self) -> str:
        return "bad" if self.verdict.breaking else "late" if self.verdict.unreleased else "good"

    @property
    def words(self) -> str:
        if self.verdict.breaking:
            return "breaks what was released"
        if self.verdict.unreleased:
            return "changed, may be released" if self.schema.releases else "never released"
        return "as released"


@router.get("/schemas", dependencies=[needs("ops:read", "schema.list")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def look() -> list[Line]:
        return [_line(console.pipelines, s) for s in declared(console.pipelines)]

    return site.page(request, "schemas.html", active="schemas", lines=await console.apart(look))


@router.get("/schemas/{name}", dependencies=[needs("ops:read", "schema.show")])
async def show(request: Request, name: str) -> Response:
    console = site.console(request)
    schema = next((s for s in declared(console.pipelines) if s.name == name), None)
    if schema is None:
        raise Problem(404, "No such schema", f"There is no schema {name!r}; the list shows those there are.")

    def look() -> tuple[Line, list[Step], list[Registered] | None, Trouble | None]:
        def ask() -> list[Registered]:
            console.require(Part.REGISTRY)
            return registered(console.settings.schema_registry_url, [schema])

        found, trouble = site.attempt(ask)
        return _line(console.pipelines, schema), _steps(schema), found, trouble

    line, steps, found, trouble = await console.apart(look)
    return site.page(
        request,
        "schema.html",
        active="schemas",
        line=line,
        schema=schema,
        fields=[(f.name, str(f.schema), f.doc or "", _default(f)) for f in parse(schema.schema).fields],
        about=schema.schema.get("doc", ""),
        steps=steps,
        registered=found,
        trouble=trouble,
        roll_out=roll_out(line.verdict, line.who),
    )


def _line(pipelines: Pipelines, schema: Declared) -> Line:
    return Line(schema, judge(schema), affected(pipelines, schema.topics))


def _steps(schema: Declared) -> list[Step]:
    """The newest first; the working tree only where it differs."""
    found = []
    before = None
    for release in schema.releases:
        changes: list[Difference] = differences(before.schema, release.schema) if before else []
        found.append(Step(release.version, before.version if before else None, changes))
        before = release
    now = differences(before.schema, schema.schema) if before else []
    if now or before is None:
        found.append(Step(None, before.version if before else None, now))
    return found[::-1]


def _default(field: Field) -> str:
    return "" if not field.has_default else repr(field.default) if field.default is not None else "null"
