"""The audit log: its entries, how far its heads are signed, and whether it is what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import joblog, site, stream
from api.console.actions import Acting, needs
from infra import jobs
from infra.audit.heads import BadLine
from infra.audit.log import open_heads
from infra.audit.read import Told, Wanted, entries
from infra.moments import moment

router: APIRouter = site.router()

SHOWN = 100
VERIFY = "verify-audit"
OUTCOMES = ("done", "denied", "failed")

Place = Annotated[str, Query(pattern=r"^(\d{4}-[0-9T:.+-]{10,30}/[0-9a-f-]{36}/\d{1,18})?$")]


@dataclass(frozen=True, slots=True)
class Signed:
    """How far the heads are signed."""

    chains: int
    heads: int
    newest: str | None
    bad: list[BadLine]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which entries somebody asks for, as the fields of the form say it."""

    subject: str = ""
    action: str = ""
    outcome: str = ""
    match: str = ""
    since: str = ""
    until: str = ""
    own: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Asked:
        return cls(**{f.name: given.get(f.name, "").strip()[:200] for f in fields(cls)})

    @property
    def given(self) -> dict[str, str]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    def wanted(self) -> Wanted:
        """Raises `MomentError`."""
        now = datetime.now(UTC)
        return Wanted(
            subject=self.subject,
            action=self.action,
            outcome=self.outcome,
            match=self.match,
            since=moment(self.since, now) if self.since else None,
            until=moment(self.until, now) if self.until else None,
            own=bool(self.own),
        )


@router.get("/audit", dependencies=[needs("audit:read", "audit.list")])
async def list_(request: Request, after: Place = "") -> Response:
    console = site.console(request)
    asked = Asked.of(request.query_params)

    def find() -> tuple[list[Told], Signed, list[jobs.Job]]:
        wanted = asked.wanted()
        with console.database(reading=False) as connection:
            connection.execute("SET default_transaction_read_only TO on")
            found = entries(connection, wanted, SHOWN + 1, after)
        heads, bad = open_heads(console.settings).read()
        newest = max((head.at for chain in heads.values() for head in chain), default=None)
        signed = Signed(len(heads), sum(map(len, heads.values())), newest, bad)
        return found, signed, jobs.listed(console.settings, VERIFY)

    found, signed, runs = await console.apart(find)
    request.state.rows = min(len(found), SHOWN)
    standing = await console.apart(joblog.standing, runs[0]) if runs else None
    return site.page(
        request,
        "audit.html",
        active="audit",
        asked=asked,
        entries=found[:SHOWN],
        more=site.query(**asked.given, after=found[SHOWN - 1].place) if len(found) > SHOWN else None,
        first=not after,
        outcomes=OUTCOMES,
        signed=signed,
        standing=standing,
        account=await console.apart(_account, runs[0]) if runs else None,
        live="/console/live/audit" if standing is not None and standing.code is None else None,
    )


@router.post("/audit/verify", dependencies=[needs("audit:read", "audit.verify")])
async def verify(request: Request, actor: Acting) -> Response:
    """Walk the chains, by the command: of many entries it takes a while."""
    console = site.console(request)
    await console.apart(jobs.start, console.settings, VERIFY, ["verify", "audit", "--json"], actor)
    return site.to("/console/audit")


@router.get("/live/audit", dependencies=[needs("audit:read", "audit.verify")], response_class=stream.Events)
async def watch(request: Request) -> Response:
    """How the verification that runs stands."""
    console = site.console(request)
    console.streams.require()
    return stream.answer(request, joblog.told(console, VERIFY))


def _account(job: jobs.Job) -> dict[str, Any] | None:
    """What the last verification printed; None while it runs, or where it could not be made."""
    try:
        answer: dict[str, Any] = json.loads(job.output)
    except json.JSONDecodeError:
        return None
    return answer
