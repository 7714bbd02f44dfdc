"""Replays step by step: plan, run, compare, then swap or abort.

Planning and writing a run down are the functions of `millrace replay`; what runs a replay's stages is that
command itself (`infra.jobs`), which the API only starts and watches.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import anyio
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console import joblog, site, stream, words
from api.console.actions import Acting, needs
from api.console.parts import Part
from infra import jobs
from infra.identity.principal import Principal
from infra.replay import runs
from infra.replay.places import RangeRefused, bound, resolve
from infra.replay.plan import Plan, plan
from infra.replay.runs import Run
from schemas.declare import Pipeline

router: APIRouter = site.router()

POLL_S = 0.7
SAMPLES = 5
CLOCKS = timedelta(minutes=1)
"""How far the clocks of this machine and of the database may lie apart."""
STEPS = ("Plan", "Run", "Compare", "Swap")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody wants to replay, as the fields of the form say it."""

    pipeline: str = ""
    since: str = ""
    until: str = ""
    event_time: str = ""
    in_place: str = ""
    versions: str = runs.CURRENT
    rate: str = ""

    @classmethod
    def of(cls, given: Any) -> Asked:
        said = {f.name: str(given.get(f.name, "")).strip() for f in fields(cls)}
        return cls(**{**said, "versions": said["versions"] or runs.CURRENT})

    @property
    def given(self) -> dict[str, str]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    @property
    def per_s(self) -> float | None:
        """Records a second to read at most. Raises `RangeRefused`."""
        if not self.rate:
            return None
        try:
            value = float(self.rate)
        except ValueError:
            value = 0.0
        if not 1 <= value < 1e9:
            raise RangeRefused(f"{self.rate!r} is no rate; give records a second, at least 1, or nothing")
        return value

    def command(self, verb: str) -> str:
        """As one would type it."""
        parts = ["millrace replay", verb, self.pipeline]
        parts += [f"--from {self.since}"] if self.since else []
        parts += [f"--to {self.until}"] if self.until else []
        parts += ["--event-time"] if self.event_time else []
        parts += ["--in-place"] if self.in_place else []
        if verb == "run":
            parts += [f"--versions {self.versions}"] if self.versions != runs.CURRENT else []
            parts += [f"--rate {self.rate}"] if self.rate else []
        return " ".join(parts)


@dataclass(frozen=True)
class Standing:
    """A run at one moment: its row, whether somebody works on it, and the command that does or did."""

    run: Run
    working: bool
    job: joblog.Standing | None

    @property
    def words(self) -> str:
        if self.run.status == "running" and not self.working:
            return "ended early" if self.job is None or self.job.code is not None else "starting"
        return self.run.status

    @property
    def state(self) -> str:
        return {"ready": "good", "swapped": "good", "aborted": "unknown", "ended early": "bad"}.get(
            self.words, "late"
        )

    @property
    def share(self) -> float:
        """How much of it is read, from 0 to 1."""
        return min(1.0, self.run.records_done / self.run.records_all) if self.run.records_all else 0.0

    @property
    def step(self) -> int:
        """Which of `STEPS` is next."""
        return {"running": 1, "ready": 2, "swapped": 4}.get(self.run.status, 3)

    @property
    def busy(self) -> bool:
        return self.working or (self.job is not None and self.job.code is None)


@router.get("/replays", dependencies=[needs("ops:read", "replay.list")])
async def list_(request: Request) -> Response:
    console = site.console(request)
    found, trouble = await console.apart(site.attempt, lambda: _listed(console))
    return site.page(
        request,
        "replays.html",
        active="replays",
        standings=found or [],
        trouble=trouble,
        pipelines=list(console.pipelines),
        asked=Asked.of(request.query_params),
        steps=STEPS,
    )


@router.get("/replays/plan", dependencies=[needs("ops:read", "replay.plan")])
async def planned(request: Request) -> Response:
    """What the replay asked for would read and could change."""
    console = site.console(request)
    asked = Asked.of(request.query_params)
    declared = _pipeline(console, asked.pipeline)

    def look() -> Plan:
        _ = asked.per_s
        console.require(Part.BROKER, Part.DATABASE, Part.REGISTRY)
        with console.database() as connection:
            connection.execute("SET statement_timeout TO '60s'")  # counts the rows of every table
            in_place = bool(asked.in_place)
            places = resolve(
                console.settings,
                console.codec,
                declared,
                bound(asked.since or None, "from"),
                bound(asked.until or None, "to"),
                event_time=bool(asked.event_time),
                in_place=in_place,
            )
            return plan(console.settings, connection, console.codec, declared, places, in_place=in_place)

    found, trouble = await console.apart(site.attempt, look)
    return site.page(
        request,
        "replay_plan.html",
        trouble.status if trouble else 200,
        active="replays",
        asked=asked,
        plan=found,
        trouble=trouble,
        pipelines=list(console.pipelines),
        steps=STEPS,
        step=0,
    )


@router.post("/replays", dependencies=[needs("ops:write", "replay.run")])
async def begin(request: Request, actor: Acting) -> Response:
    """Write the run down, and start the command that works on it."""
    console = site.console(request)
    asked = Asked.of(site.texts(await request.form()))
    declared = _pipeline(console, asked.pipeline)
    if asked.versions not in (runs.CURRENT, runs.AS_DECIDED):
        raise RangeRefused(f"versions are current or as-decided, not {asked.versions!r}")

    def create() -> Run:
        rate, in_place = asked.per_s, bool(asked.in_place)
        console.require(Part.BROKER, Part.DATABASE, Part.REGISTRY)
        places = resolve(
            console.settings,
            console.codec,
            declared,
            bound(asked.since or None, "from"),
            bound(asked.until or None, "to"),
            event_time=bool(asked.event_time),
            in_place=in_place,
        )
        options = {
            "from": asked.since or None,
            "to": asked.until or None,
            "event_time": bool(asked.event_time),
            "versions": asked.versions,
            "rate": rate,
        }
        with console.database(reading=False) as connection:
            return runs.create(
                console.operating,
                connection,
                declared,
                places,
                options,
                in_place=in_place,
                by=actor.subject,
            )

    run = await console.apart(create)
    request.state.object = f"{run.run_id} of {run.pipeline}"
    await console.apart(_start, console, run.run_id, actor, "run", "--resume", str(run.run_id))
    return site.to(f"/console/replays/{run.run_id}")


@router.get("/replays/{id}", dependencies=[needs("ops:read", "replay.show")])
async def show(request: Request, id: int) -> Response:
    console = site.console(request)

    def look() -> tuple[Standing, dict[str, Any] | None, jobs.Job | None]:
        with console.database() as connection:
            run = runs.find(connection, id)
            found = _standing(console, connection, run)
        compared = next((j for j in _jobs(console, run) if j.arguments[:2] == ("replay", "diff")), None)
        return found, _differences(compared), compared

    found, differences, compared = await console.apart(look)
    return site.page(
        request,
        "replay.html",
        active="replays",
        standing=found,
        run=found.run,
        values=_values(found),
        differences=differences,
        compared=compared,
        steps=STEPS,
        step=found.step,
        live=f"/console/live/replays/{id}" if found.busy else None,
        append_only=_append_only(console, found.run),
    )


@router.get(
    "/live/replays/{id}", dependencies=[needs("ops:read", "replay.show")], response_class=stream.Events
)
async def watch(request: Request, id: int) -> Response:
    console = site.console(request)
    console.streams.require()
    return stream.answer(request, _progress(console, id))


async def _progress(console: site.Console, id_: int) -> AsyncGenerator[bytes]:
    before: dict[str, str] = {}
    status: str | None = None
    with console.streams.taken():
        while not console.ending.is_set():
            found, trouble = await console.apart(site.attempt, lambda: _find(console, id_))
            if found is None:
                assert trouble is not None
                yield stream.event({"sentence": trouble.sentence}, "trouble")
                await anyio.sleep(5 * POLL_S)
                continue
            values = _values(found)
            if changed := {k: v for k, v in values.items() if before.get(k) != v}:
                yield stream.event(changed)
            before = values
            if not found.busy or (status is not None and status != found.run.status):
                yield stream.event({}, "reload")  # what may be done next has changed
                return
            status = found.run.status
            await anyio.sleep(POLL_S)


def _resume(id_: int, form: dict[str, str]) -> list[str]:
    return ["run", "--resume", str(id_)]


def _compare(id_: int, form: dict[str, str]) -> list[str]:
    return ["diff", str(id_), "--json", "--samples", str(SAMPLES)]


def _swap(id_: int, form: dict[str, str]) -> list[str]:
    _confirmed(form, f"swap {id_}")
    return ["swap", str(id_), *(f"--{name}" for name in ("stopped", "incomplete") if form.get(name))]


def _abort(id_: int, form: dict[str, str]) -> list[str]:
    _confirmed(form, f"abort {id_}")
    return ["abort", str(id_)]


def _by_command(verb: str, arguments: Callable[[int, dict[str, str]], list[str]]) -> None:
    """A route that starts `millrace replay ...` for a run."""

    async def act(request: Request, id: int, actor: Acting) -> Response:
        console = site.console(request)
        form = site.texts(await request.form())
        await console.apart(_find, console, id)
        await console.apart(_start, console, id, actor, *arguments(id, form))
        return site.to(f"/console/replays/{id}")

    allowed = [needs("ops:write", f"replay.{verb}")]
    router.add_api_route(f"/replays/{{id}}/{verb}", act, methods=["POST"], name=verb, dependencies=allowed)


for _verb, _arguments in (("resume", _resume), ("diff", _compare), ("swap", _swap), ("abort", _abort)):
    _by_command(_verb, _arguments)


@router.post("/replays/{id}/stop", dependencies=[needs("ops:write", "replay.stop")])
async def stop(request: Request, id: int) -> Response:
    """End the command that works on a run; it can be resumed."""
    console = site.console(request)
    for job in (await console.apart(jobs.listed, console.settings, _job_name(id)))[:1]:
        await console.apart(job.stop)
    return site.to(f"/console/replays/{id}")


def _start(console: site.Console, id_: int, actor: Principal, *arguments: str) -> None:
    jobs.start(console.settings, _job_name(id_), ["replay", *arguments], actor)


def _jobs(console: site.Console, run: Run) -> list[jobs.Job]:
    """The commands that worked on a run, the newest first; not those of another database."""
    found = jobs.listed(console.settings, _job_name(run.run_id))
    return [job for job in found if job.started_at > run.started_at - CLOCKS]


def _job_name(id_: int) -> str:
    return f"replay-{id_}"


def _confirmed(form: dict[str, str], word: str) -> None:
    """A swap or an abort is not done by one slip: it is said in words."""
    if form.get("confirm", "").strip().lower() != word:
        raise runs.RunRefused(f"to confirm, write {word!r} into the field; nothing was done")


def _pipeline(console: site.Console, name: str) -> Pipeline:
    if name not in console.pipelines.by_name:
        known = ", ".join(console.pipelines.by_name)
        raise RangeRefused(f"choose a pipeline: {known}")
    return console.pipelines[name]


def _append_only(console: site.Console, run: Run) -> list[str]:
    declared = console.pipelines.by_name.get(run.pipeline)
    return [t.name for t in declared.tables if t.append_only] if declared else []


def _listed(console: site.Console) -> list[Standing]:
    with console.database() as connection:
        return [_standing(console, connection, run) for run in runs.listed(connection)[:50]]


def _find(console: site.Console, id_: int) -> Standing:
    with console.database() as connection:
        return _standing(console, connection, runs.find(connection, id_))


def _standing(console: site.Console, connection: Any, run: Run) -> Standing:
    found = _jobs(console, run)
    return Standing(run, runs.worked_on(connection, run.run_id), joblog.standing(found[0]) if found else None)


def _values(found: Standing) -> dict[str, str]:
    run = found.run
    values = {
        "run|words": found.words,
        "run|state": found.state,
        "run|done": words.number(run.records_done),
        "run|all": words.number(run.records_all),
        "run|share": f"{found.share:.3f}",
        "run|percent": f"{100 * found.share:.0f} %",
    }
    return values | (joblog.values_of(found.job) if found.job else {})


def _differences(job: jobs.Job | None) -> dict[str, Any] | None:
    """What the last comparison printed, if it went well."""
    if job is None or job.code != 0:
        return None
    try:
        answer: dict[str, Any] = json.loads(job.output)
    except json.JSONDecodeError:
        return None
    return answer
