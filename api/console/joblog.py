"""Commands that run for the console, as pages show them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from api.console import site, stream
from api.console.actions import needs
from infra import jobs
from infra.jobs import Job
from infra.problems import Problem

router: APIRouter = site.router()

LINES = 12
"""How much of what a running command tells is shown."""
POLL_S = 0.7

Name = Annotated[str, Path(pattern=r"^(dlq|replay)-[a-z0-9-]{1,60}$")]
"""Jobs of operators; others are shown where they belong."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A job at one moment."""

    job: Job
    code: int | None
    told: tuple[str, ...]

    @property
    def state(self) -> str:
        return "late" if self.code is None else "good" if self.code == 0 else "bad"

    @property
    def words(self) -> str:
        if self.code is None:
            return "runs"
        return {0: "done", -1: "was ended from outside"}.get(self.code, f"failed with exit code {self.code}")


def standing(job: Job) -> Standing:
    """How a job stands. Reads files."""
    code = job.code
    return Standing(job, code, tuple(job.told[-LINES:]))


@router.get("/jobs/{name}", dependencies=[needs("ops:read", "jobs.show")])
async def show(request: Request, name: Name) -> Response:
    """The jobs of a name, the newest first."""
    console = site.console(request)
    found = await console.apart(lambda: [standing(j) for j in jobs.listed(console.settings, name)])
    if not found:
        raise Problem(404, "No such job", f"No command of the name {name!r} was started here.")
    return site.page(request, "job.html", active=None, name=name, newest=found[0], earlier=found[1:],
                     output=await console.apart(lambda: found[0].job.output),
                     live=f"/console/live/jobs/{name}" if found[0].code is None else None)  # fmt: skip


@router.post("/jobs/{name}/stop", dependencies=[needs("ops:write", "jobs.stop")])
async def stop(request: Request, name: Name) -> Response:
    """End the newest job of a name."""
    console = site.console(request)
    found = await console.apart(jobs.listed, console.settings, name)
    for job in found[:1]:
        await console.apart(job.stop)
    return site.to(f"/console/jobs/{name}")


@router.get("/live/jobs/{name}", dependencies=[needs("ops:read", "jobs.show")], response_class=stream.Events)
async def watch(request: Request, name: Name) -> Response:
    console = site.console(request)
    console.streams.require()
    return stream.answer(request, told(console, name))


async def told(console: site.Console, name: str) -> AsyncGenerator[bytes]:
    before: dict[str, str] = {}
    with console.streams.taken():
        while not console.ending.is_set():
            found = await console.apart(
                lambda: [standing(j) for j in jobs.listed(console.settings, name)[:1]]
            )
            values = values_of(found[0]) if found else {}
            if values != before:
                before = values
                yield stream.event(values)
            if not found or found[0].code is not None:
                yield stream.event({}, "reload")  # its end changes more than a line
                return
            await anyio.sleep(POLL_S)


def values_of(standing: Standing) -> dict[str, str]:
    """What changes of a job while it runs."""
    return {"job|words": standing.words, "job|state": standing.state, "job|told": "\n".join(standing.told)}
