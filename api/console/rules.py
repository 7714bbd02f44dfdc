"""Fraud rules on their way into force and back: `millrace rules` as pages.

Who acts is the rule's author or mover by the name of their session, so that two people are two people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.console import bars, joblog, site, stream
from api.console.actions import Acting, needs
from infra import jobs, versions
from infra.identity.principal import Principal
from infra.moments import moment
from models.rules import store
from models.rules.lately import Change, Lately, changes, lately
from models.rules.lifecycle import CANARY_CAP, COMMANDS, NEXT, Stage
from models.rules.problem import RuleError
from models.rules.store import KIND, NAME, NAME_MAX, PIPELINE, Event, Stored
from schemas.fraud import FRAUD_SCORING

router: APIRouter = site.router()

Id = Annotated[str, Path(pattern=f"^{NAME.pattern}$", max_length=NAME_MAX)]
Version = Annotated[int, Path(ge=1, le=1_000_000)]
GROUPS: tuple[tuple[str, tuple[Stage, ...]], ...] = (
    ("In force", (Stage.ACTIVE, Stage.CANARY, Stage.SHADOW)),
    ("On their way", (Stage.APPROVED, Stage.BACKTESTED, Stage.DRAFT)),
    ("Retired", (Stage.RETIRED,)),
)
WAY = (Stage.DRAFT, Stage.BACKTESTED, Stage.APPROVED, Stage.SHADOW, Stage.CANARY, Stage.ACTIVE)
SHARE = 0.1
PERIOD = "30d"
SAID = {
    "draft": "Stored as a draft.",
    "same": "This text was stored before; it stands where it stood.",
    "moved": "Done. What changed in force applies from each partition's next batch on.",
    "back": "Rolled back. It applies from each partition's next batch on.",
    "began": "The backtest runs; its report will stand here.",
}

Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class InForce:
    """The newest version of the set, and how many partitions decide by it already."""

    version: int
    partitions: int
    reached: int


@dataclass(frozen=True)
class Shown:
    """A rule with all that its page shows; `rule` is the version that was asked for, or the newest one."""

    rule: Stored
    versions: Sequence[Stored]
    events: Sequence[Event]
    report: Mapping[str, Any] | None
    lately: Lately
    changes: Sequence[Change]
    in_force: InForce


@router.get("/rules", dependencies=[needs("scoring:read", "rules.list")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def find() -> tuple[list[Stored], Lately, InForce]:
        with console.database() as connection:
            return store.stored(connection), lately(connection), _in_force(connection)

    found, counted, in_force = await console.apart(find)
    request.state.rows = len(found)
    return site.page(
        request,
        "rules.html",
        active="rules",
        groups=[
            (title, [rule for stage in stages for rule in found if rule.stage is stage])
            for title, stages in GROUPS
        ],
        lately=counted,
        in_force=in_force,
        standing=standing,
        state=state,
    )


@router.get("/rules/{id}", dependencies=[needs("scoring:read", "rules.show")])
async def show(
    request: Request,
    id: Id,
    version: Annotated[int | None, Query(ge=1)] = None,
    said: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    console = site.console(request)
    wanted = id if version is None else f"{id}@{version}"

    def find() -> tuple[Shown, joblog.Standing | None]:
        with console.database() as connection:
            rule = store.find(connection, wanted)
            of_id = [r for r in store.stored(connection) if r.id == id]
            shown = Shown(
                rule,
                of_id[::-1],
                store.events(connection, id)[::-1],
                store.last_backtest(connection, rule),
                lately(connection),
                changes(connection, rule.key) if rule.stage in (Stage.SHADOW, Stage.CANARY) else [],
                _in_force(connection),
            )
        runs = jobs.listed(console.settings, _job(rule.id, rule.version))
        return shown, joblog.standing(runs[0]) if runs else None

    shown, job = await console.apart(find)
    report = shown.report
    return site.page(
        request,
        "rule.html",
        active="rules",
        shown=shown,
        rule=shown.rule,
        report=report,
        drawn=None if report is None else _drawn(report),
        job=job,
        live=f"/console/live/rules/{id}/{shown.rule.version}/backtest" if job and job.code is None else None,
        said=SAID.get(said),
        standing=standing,
        state=state,
        way=[str(stage) for stage in WAY],
        step=WAY.index(shown.rule.stage) if shown.rule.stage in WAY else len(WAY),
        next=[str(stage) for stage in NEXT[shown.rule.stage]],
        is_live=any(r.stage.is_in_force for r in shown.versions),
        share=SHARE,
        cap=CANARY_CAP,
        period=PERIOD,
        bars=bars,
    )


# Into force, and back


def _mover(stage: Stage) -> Handler:
    """The handler of a step."""

    async def handler(request: Request, id: Id, version: Version, actor: Acting) -> Response:
        console = site.console(request)
        form = site.texts(await request.form())
        more: dict[str, Any] = {"note": form.get("note", "").strip()[:500]}
        if stage is Stage.CANARY:
            more["share"] = _share(form, "share", SHARE)
        if stage in (Stage.CANARY, Stage.ACTIVE):
            lifted = stage is Stage.ACTIVE and "no_cap" in form
            more["cap"] = None if lifted else _share(form, "cap", CANARY_CAP)

        def act() -> Stored:
            with console.database(reading=False) as connection:
                return store.move(connection, f"{id}@{version}", stage, actor.subject, **more)[0]

        moved = await console.apart(act)
        return site.to(f"/console/rules/{id}{site.query(version=moved.version, said='moved')}")

    return handler


for _stage, _command in COMMANDS.items():
    if _stage is not Stage.BACKTESTED:
        router.post(
            f"/rules/{{id}}/{{version}}/{_command}",
            dependencies=[needs("scoring:write", f"rules.{_command}")],
        )(_mover(_stage))


@router.post("/rules/{id}/rollback", dependencies=[needs("scoring:write", "rules.rollback")])
async def roll_back(request: Request, id: Id, actor: Acting) -> Response:
    """Take back the last step in force."""
    console = site.console(request)

    def act() -> Stored | None:
        with console.database(reading=False) as connection:
            return store.roll_back(connection, id, actor.subject)[0]

    before = await console.apart(act)
    return site.to(
        f"/console/rules/{id}{site.query(version=before.version if before else None, said='back')}"
    )


# Backtests


@router.post("/rules/{id}/{version}/backtest", dependencies=[needs("scoring:write", "rules.backtest")])
async def backtest(request: Request, id: Id, version: Version, actor: Acting) -> Response:
    """Try it on the ledger, by the command: a month of transactions takes a while."""
    console = site.console(request)
    form = site.texts(await request.form())
    now = datetime.now(UTC)
    since = moment(form.get("since", "").strip() or PERIOD, now)
    until = moment(form["until"].strip(), now) if form.get("until", "").strip() else now
    await console.apart(_begin, console, id, version, since, until, actor)
    return site.to(f"/console/rules/{id}?version={version}&said=began")


def _begin(
    console: site.Console, id_: str, version: int, since: datetime, until: datetime, actor: Principal
) -> None:
    with console.database() as connection:
        rule = store.find(connection, f"{id_}@{version}")
    if not since < until:
        raise RuleError(f"nothing lies from {since:%Y-%m-%d %H:%M} up to {until:%Y-%m-%d %H:%M}; swap them")
    period = [f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}" for at in (since, until)]
    arguments = ["rules", "backtest", rule.key, "--from", period[0], "--to", period[1]]
    jobs.start(console.settings, _job(id_, version), [*arguments, "--as", actor.subject], actor)


@router.get(
    "/live/rules/{id}/{version}/backtest",
    dependencies=[needs("scoring:read", "rules.show")],
    response_class=stream.Events,
)
async def watch(request: Request, id: Id, version: Version) -> Response:
    """How the backtest that runs stands."""
    console = site.console(request)
    console.streams.require()
    return stream.answer(request, joblog.told(console, _job(id, version)))


def _job(id_: str, version: int) -> str:
    return f"rules-backtest-{id_}-{version}"


def _drawn(report: Mapping[str, Any]) -> bars.Bars:
    since, until = (datetime.fromisoformat(report[name]) for name in ("since", "until"))
    # The end is the first moment that is not part of it.
    first, last = since.date(), (until - timedelta(microseconds=1)).date()
    days: dict[str, int] = report["alerts_by_day"]
    if days and (last - first).days >= bars.DAYS_MOST:
        last = max(map(date.fromisoformat, days))
    return bars.by_day(days, first, last)


# Words


def standing(rule: Stored) -> str:
    """Where a rule stands, with a canary's share and with its cap."""
    found = [str(rule.stage)]
    found += [f"{rule.share:.3g} of the cards"] if rule.share < 1 else []
    found += [f"declines at most {rule.cap:.3g}"] if rule.cap is not None else []
    return ", ".join(found)


def state(rule: Stored) -> str:
    """The sign that goes with it."""
    if rule.stage is Stage.RETIRED or not rule.stage.is_in_force:
        return "unknown"
    return "good" if rule.stage is Stage.ACTIVE else "late"


def _share(form: Mapping[str, str], name: str, default: float) -> float:
    text = form.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RuleError(f"{name} is {text!r}; give a share from 0 to 1, as 0.1")
    return value


def _in_force(connection: Any) -> InForce:
    newest = versions.latest(connection, PIPELINE, [KIND])[KIND]
    applied = versions.applied(connection, FRAUD_SCORING.name, KIND)
    return InForce(newest, len(applied), sum(a.version == newest for a in applied))
