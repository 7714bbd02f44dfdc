"""Dead letters: found by cause, shown, corrected in a form, tried, sent again or decided against.

Each action is the function of its command, `millrace dlq ...`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from subprocess import TimeoutExpired
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import forms, site
from api.console.actions import Acting, needs
from api.console.parts import Part, Trouble
from infra import jobs
from infra.codec import Event
from infra.dlq import edits, letters, view
from infra.dlq import redrive as sending
from infra.dlq.letters import OPEN, DlqError, Letter, Selection
from infra.moments import moment
from infra.postgres import Connection
from infra.problems import Problem
from schemas.declare import Topic

router: APIRouter = site.router()

MOST = 50
"""Letters on a page at first; more are asked for."""
LARGEST = 500
PLANNED = 500
"""Letters of a selection that are looked at before it is redriven; the rest is counted."""
RATE = 100.0
TRIAL_S = 60.0

Text = Annotated[str, Query(max_length=300)]


@dataclass(frozen=True)
class Trial:
    """What a processor says to a letter; without a processor, why none could be asked."""

    processor: str | None
    field: str | None
    refused: str | None
    answers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which letters somebody asks for, as the fields of the form say it."""

    pipeline: str = ""
    error_class: str = ""
    topic: str = ""
    consumer: str = ""
    field: str = ""
    tenant: str = ""
    input_id: str = ""
    match: str = ""
    since: str = ""
    until: str = ""
    status: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Wanted:
        return cls(**{f.name: given.get(f.name, "").strip() for f in fields(cls)})

    @property
    def given(self) -> dict[str, str]:
        """The fields that say something."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    @property
    def narrow(self) -> dict[str, str]:
        """As `given`, without the status."""
        return {name: value for name, value in self.given.items() if name != "status"}

    def selection(self) -> Selection:
        """Raises `MomentError`, `DlqError`."""
        now = datetime.now(UTC)
        given: dict[str, Any] = dict(self.narrow)
        for name in ("since", "until"):
            if name in given:
                given[name] = moment(given[name], now)
        if self.status == "all":
            return Selection(statuses=letters.STATUSES, **given)
        if self.status:
            if self.status not in letters.STATUSES:
                raise DlqError(f"there is no status {self.status!r}; choose {', '.join(letters.STATUSES)}")
            return Selection(statuses=(self.status,), **given)
        return Selection(**given)

    def options(self) -> list[str]:
        """As options of `millrace dlq`."""
        names = {"error_class": "class", "input_id": "event-id"}
        return [part for n, v in self.narrow.items() for part in (f"--{names.get(n, n)}", v)]


# Finding


@router.get("/dead-letters", dependencies=[needs("ops:read", "dlq.list")])
async def list_(request: Request, limit: Annotated[int, Query(ge=1, le=LARGEST)] = MOST) -> Response:
    console = site.console(request)
    wanted = Wanted.of(request.query_params)

    def find() -> tuple[list[letters.Cause], list[Letter]]:
        selection = wanted.selection()
        with console.database() as connection:
            return letters.causes(connection, selection), letters.find(connection, selection, limit + 1)

    causes, found = await console.apart(find)
    request.state.rows = min(len(found), limit)
    return site.page(
        request,
        "letters.html",
        active="dead-letters",
        wanted=wanted,
        causes=causes,
        total=sum(c.letters for c in causes),
        letters=found[:limit],
        more=site.query(**wanted.given, limit=min(limit * 2, LARGEST)) if len(found) > limit else None,
        pipelines=list(console.pipelines),
        statuses=letters.STATUSES,
        cause_query=lambda c: site.query(
            pipeline=c.pipeline, consumer=c.consumer, topic=c.topic, error_class=c.error_class, field=c.field
        ),
        selected=site.query(**wanted.narrow),
        command=" ".join(["millrace dlq list", *wanted.options()]),
    )


@router.get("/dead-letters/selected", dependencies=[needs("ops:read", "dlq.plan")])
async def selected(request: Request) -> Response:
    """What would be done with all letters that meet the conditions: nothing is, yet."""
    console = site.console(request)
    wanted = Wanted.of(request.query_params)
    if not wanted.narrow:
        raise DlqError("choose which letters first, by a cause or the filter")

    def plan() -> tuple[int, list[sending.Plan]]:
        now = datetime.now(UTC)
        with console.database() as connection:
            ids = letters.ids_of(connection, replace(wanted.selection(), statuses=(OPEN,)))
            some = letters.load(connection, ids[:PLANNED])
        return len(ids), [sending.plan(console.codec, console.pipelines, x, now) for x in some]

    console.require(Part.REGISTRY)
    total, plans = await console.apart(plan)
    held = Counter(p.problem for p in plans if p.topic is None)
    return site.page(
        request,
        "letters_selected.html",
        active="dead-letters",
        wanted=wanted,
        total=total,
        looked_at=len(plans),
        sent=Counter(p.topic.name for p in plans if p.topic is not None),
        edited=sum(p.letter.edited for p in plans if p.topic is not None),
        held=held.most_common(10),
        held_total=sum(held.values()),
        rate=RATE,
        query=site.query(**wanted.narrow),
        command=" ".join(["millrace dlq redrive", *wanted.options()]),
    )


@router.post("/dead-letters/selected/redrive", dependencies=[needs("ops:write", "dlq.redrive")])
async def redrive_selected(request: Request, actor: Acting) -> Response:
    """Redrive all that meet the conditions, by the command: it may take long."""
    console = site.console(request)
    console.require(Part.BROKER, Part.DATABASE, Part.REGISTRY)
    form = site.texts(await request.form())
    options = Wanted.of(form).options()
    if not options:
        raise DlqError("choose which letters first, by a cause or the filter")
    request.state.object = " ".join(options)
    note = form.get("reason", "").strip() or "from the console"
    arguments = ["dlq", "redrive", *options, "--rate", f"{RATE:g}", "--apply", "--by", actor.subject]
    await console.apart(jobs.start, console.settings, "dlq-redrive", [*arguments, "--reason", note], actor)
    return site.to("/console/jobs/dlq-redrive")


@router.post("/dead-letters/selected/discard", dependencies=[needs("ops:write", "dlq.discard")])
async def discard_selected(request: Request, actor: Acting) -> Response:
    """Decide against all that meet the conditions."""
    console = site.console(request)
    form = site.texts(await request.form())
    wanted, note = Wanted.of(form), _reason(form)
    if not wanted.narrow:
        raise DlqError("choose which letters first, by a cause or the filter")
    request.state.object = " ".join(wanted.options())

    def discard() -> None:
        with console.database(reading=False) as connection:
            ids = letters.ids_of(connection, replace(wanted.selection(), statuses=(OPEN,)))
            letters.discard(connection, ids, actor.subject, note)

    await console.apart(discard)
    return site.to(f"/console/dead-letters{site.query(**wanted.narrow, status='discarded')}")


# One letter


@dataclass(frozen=True)
class Shown:
    """A letter with all that its page shows. `original` and `edited` are None where the registry is away."""

    letter: Letter
    topic: Topic | None
    original: edits.Content | None
    edited: edits.Content | None
    history: list[dict[str, Any]]
    trouble: Trouble | None


SAID = {
    "edited": "The correction is stored. A redrive sends it.",
    "redriven": "Sent again. Its history below says where it stands now.",
    "discarded": "Decided against. Its bytes stay, and it can be opened again.",
    "reopened": "Open again.",
    "reverted": "It stands with its own bytes again.",
}


@router.get("/dead-letters/{id}", dependencies=[needs("ops:read", "dlq.show")])
async def show(request: Request, id: int, said: Annotated[str, Query(max_length=20)] = "") -> Response:
    return await _page(request, id, said=SAID.get(said))


@router.get("/dead-letters/{topic}/{partition}/{offset}", dependencies=[needs("ops:read", "dlq.show")])
async def at_place(request: Request, topic: str, partition: int, offset: int) -> Response:
    """The letter of a record."""
    console = site.console(request)

    def find() -> list[Letter]:
        with console.database() as connection:
            return letters.one(connection, f"{topic}/{partition}/{offset}")

    found = await console.apart(find)
    return site.to(f"/console/dead-letters/{found[0].id}")


@router.post("/dead-letters/{id}/test", dependencies=[needs("ops:read", "dlq.plan")])
async def test(request: Request, id: int) -> Response:
    """Whether a redrive would send it as it stands, and what its processors would say."""
    console = site.console(request)
    console.require(Part.REGISTRY)

    def plan() -> tuple[sending.Plan, list[Trial]]:
        with console.database() as connection:
            letter = _one(connection, id)
        planned = sending.plan(console.codec, console.pipelines, letter, datetime.now(UTC))
        return planned, _tried(console, letter, None) if planned.topic else []

    planned, trials = await console.apart(plan)
    return await _page(request, id, plan=planned, trials=trials)


@router.post("/dead-letters/{id}/redrive", dependencies=[needs("ops:write", "dlq.redrive")])
async def redrive(request: Request, id: int, actor: Acting) -> Response:
    console = site.console(request)
    note = site.texts(await request.form()).get("reason", "").strip() or None
    problem = await console.apart(_redrive, console, id, actor.subject, note)
    if problem is not None:
        return await _page(request, id, status=409, problem=f"Held back: {problem}.")
    return site.to(f"/console/dead-letters/{id}?said=redriven")


@router.post("/dead-letters/{id}/discard", dependencies=[needs("ops:write", "dlq.discard")])
async def discard(request: Request, id: int, actor: Acting) -> Response:
    console = site.console(request)
    note = _reason(site.texts(await request.form()))

    def act() -> list[int]:
        with console.database(reading=False) as connection:
            return letters.discard(connection, [id], actor.subject, note)

    if not await console.apart(act):
        raise DlqError("it is no longer open; look at what became of it")
    return site.to(f"/console/dead-letters/{id}?said=discarded")


@router.post("/dead-letters/{id}/reopen", dependencies=[needs("ops:write", "dlq.reopen")])
async def reopen(request: Request, id: int, actor: Acting) -> Response:
    console = site.console(request)

    def act() -> list[int]:
        with console.database(reading=False) as connection:
            return letters.reopen(connection, [id], actor.subject, None)

    if not await console.apart(act):
        raise DlqError("it is not discarded; look at what became of it")
    return site.to(f"/console/dead-letters/{id}?said=reopened")


@router.post("/dead-letters/{id}/revert", dependencies=[needs("ops:write", "dlq.edit")])
async def revert(request: Request, id: int, actor: Acting) -> Response:
    """Take its corrections back."""
    console = site.console(request)

    def act() -> list[int]:
        with console.database(reading=False) as connection:
            return edits.revert(connection, [id], actor.subject, None)

    if not await console.apart(act):
        raise DlqError("it has no correction to take back, or is no longer open")
    return site.to(f"/console/dead-letters/{id}?said=reverted")


# Correcting

ReadAs = Annotated[str, Query(pattern=r"^\d{0,9}$")]


@router.get("/dead-letters/{id}/edit", dependencies=[needs("ops:read", "dlq.show")])
async def edit(request: Request, id: int, read_as: ReadAs = "") -> Response:
    """The form over the fields of its topic's schema."""
    console = site.console(request)
    letter, topic, before = await console.apart(_to_edit, console, id, read_as)
    return _form(request, letter, topic, before, forms.controls(topic, before.event or {}), read_as=read_as)


@router.post("/dead-letters/{id}/edit", dependencies=[needs("ops:write", "dlq.edit")])
async def edited(request: Request, id: int, actor: Acting) -> Response:
    """Try what the form says (`do=test`), store it (`save`), or store and send it (`send`)."""
    console = site.console(request)
    form = site.texts(await request.form())
    read_as, do = form.get("read_as", ""), form.get("do", "test")
    request.state.object = f"{id}, {do[:10]}"
    letter, topic, before = await console.apart(_to_edit, console, id, read_as)
    event, wrong = forms.event_of(topic, before.event or {}, form)
    refill = _refilled(topic, before.event or {}, form)
    if wrong:
        return _form(request, letter, topic, before, refill, wrong=wrong, read_as=read_as, status=422)

    def propose() -> tuple[edits.Edit, sending.Plan | None, list[Trial]]:
        whole = edits.propose(
            console.codec,
            console.pipelines,
            letter,
            [],
            whole=event,
            read_as=_schema_id(read_as),
        )
        if whole.problem is not None:
            return whole, None, []
        as_edited = replace(letter, to_key=whole.key, to_value=whole.value, edited=True)
        planned = sending.plan(console.codec, console.pipelines, as_edited, datetime.now(UTC))
        return whole, planned, _tried(console, letter, whole.after) if do == "test" and planned.topic else []

    proposed, planned, trials = await console.apart(propose)
    if do == "test" or proposed.problem is not None or (do == "send" and planned and planned.problem):
        status = 200 if do == "test" else 422
        return _form(
            request, letter, topic, before, refill,
            proposed=proposed, planned=planned, trials=trials, read_as=read_as, status=status,
        )  # fmt: skip

    def store() -> list[int]:
        note = form.get("reason", "").strip() or "by the form of the console"
        with console.database(reading=False) as connection:
            return edits.store(connection, [proposed], actor.subject, note)

    if await console.apart(store):
        raise DlqError("it is no longer open; look at what became of it")
    if do != "send":
        return site.to(f"/console/dead-letters/{id}?said=edited")
    problem = await console.apart(
        _redrive, console, id, actor.subject, form.get("reason", "").strip() or None
    )
    if problem is not None:
        return await _page(
            request, id, status=409, problem=f"The correction is stored, but held back: {problem}."
        )
    return site.to(f"/console/dead-letters/{id}?said=redriven")


def _schema_id(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{0,9}", text):
        raise DlqError(f"read_as is {text[:20]!r}; give a schema's id, a whole number, or nothing")
    return int(text) if text else None


def _to_edit(console: site.Console, id_: int, read_as: str) -> tuple[Letter, Topic, edits.Content]:
    console.require(Part.REGISTRY)
    with console.database() as connection:
        letter = _one(connection, id_)
    topic = edits.topic_of(console.pipelines, letter)
    if topic is None:
        raise DlqError(f"no pipeline declares topic {letter.topic}; it can only be discarded")
    if letter.status != OPEN:
        raise DlqError(f"it is {letter.status}, and only open letters can be edited")
    return letter, topic, edits.read(console.codec, topic, letter.to_value, _schema_id(read_as))


def _refilled(topic: Topic, before: Mapping[str, Any], form: Mapping[str, str]) -> list[forms.Control]:
    """The form as it was sent, to be sent once more."""
    return [
        replace(c, text=form.get(forms.FIELD + c.name, ""), null=c.nullable and forms.NULL + c.name in form)
        for c in forms.controls(topic, before)
    ]


def _form(
    request: Request,
    letter: Letter,
    topic: Topic,
    before: edits.Content,
    controls: list[forms.Control],
    *,
    wrong: Mapping[str, str] | None = None,
    proposed: edits.Edit | None = None,
    planned: sending.Plan | None = None,
    trials: Sequence[Trial] = (),
    read_as: str = "",
    status: int = 200,
) -> Response:
    return site.page(
        request,
        "letter_edit.html",
        status,
        active="dead-letters",
        letter=letter,
        topic=topic,
        before=before,
        controls=controls,
        wrong=wrong or {},
        proposed=proposed,
        planned=planned,
        trials=trials,
        changes=_changes(before.event or {}, proposed.after or {})
        if proposed and not proposed.problem
        else [],
        read_as=read_as,
        key=view.text(planned.key) if planned and planned.topic else "",
    )


def _tried(console: site.Console, letter: Letter, event: Event | None) -> list[Trial]:
    """What the processors would say to the letter, or to another event in its place.

    By the command, `millrace dlq test`: their logic lies beside this layer, and is heavy to load.
    """
    given = [] if event is None else ["--event", "-"]
    try:
        done = jobs.run(
            console.settings,
            ["dlq", "test", str(letter.id), *given, "--json"],
            edits.to_json(event or {}),
            TRIAL_S,
        )
        told: list[dict[str, Any]] = json.loads(done.stdout)["trials"]
    except (json.JSONDecodeError, KeyError, TimeoutExpired):
        return [Trial(None, None, "the processors could not be asked; `millrace dlq test` says why", {})]
    return [Trial(**t) for t in told]


def _redrive(console: site.Console, id_: int, actor: str, note: str | None) -> str | None:
    """Send one letter; returns why it was held back."""
    console.require(Part.BROKER, Part.DATABASE, Part.REGISTRY)
    outcomes = sending.redrive(console.operating, console.pipelines, [id_], actor=actor, note=note)
    return next((o.problem for o in outcomes if o.letter == id_ and o.place is None), None)


def _one(connection: Connection, id_: int) -> Letter:
    found = letters.load(connection, [id_])
    if not found:
        raise Problem(
            404, "No such letter", f"There is no dead letter {id_}; the list shows those there are."
        )
    return found[0]


def _reason(form: Mapping[str, str]) -> str:
    note = form.get("reason", "").strip()
    if not note:
        raise DlqError("say why: the reason stays with the letter")
    return note


async def _page(
    request: Request,
    id_: int,
    *,
    status: int = 200,
    said: str | None = None,
    problem: str | None = None,
    plan: sending.Plan | None = None,
    trials: Sequence[Trial] = (),
) -> Response:
    console = site.console(request)
    shown = await console.apart(_shown, console, id_)
    letter = shown.letter
    return site.page(
        request,
        "letter.html",
        status,
        active="dead-letters",
        shown=shown,
        letter=letter,
        event=_lines(shown.original.event) if shown.original else [],
        changes=_changes(
            (shown.original.event if shown.original else None) or {},
            (shown.edited.event if shown.edited else None) or {},
        ),
        dump=list(view.dump(letter.value or b"")),
        key=view.text(letter.key),
        sent_key=view.text(plan.key) if plan else "",
        said=said,
        problem=problem,
        plan=plan,
        trials=trials,
        place_link=lambda t, p, o: f"/console/trace{site.query(record=f'{t}/{p}/{o}')}",
    )


def _shown(console: site.Console, id_: int) -> Shown:
    with console.database() as connection:
        letter = _one(connection, id_)
        history = letters.history(connection, letter)
    topic = edits.topic_of(console.pipelines, letter)

    def read() -> tuple[edits.Content, edits.Content | None]:
        console.require(Part.REGISTRY)
        original = edits.read(console.codec, topic, letter.value)
        return original, edits.read(console.codec, topic, letter.to_value) if letter.edited else None

    found, trouble = site.attempt(read)
    original, edited = found or (None, None)
    return Shown(letter, topic, original, edited, history, trouble)


def _lines(event: Event | None) -> list[tuple[str, str]]:
    return [(name, edits.to_json(value)) for name, value in (event or {}).items()]


def _changes(before: Event, after: Event) -> list[tuple[str, str, str]]:
    """Field, as it was, as it is."""
    return [
        (
            name,
            "(absent)" if old is ... else edits.to_json(old),
            "(absent)" if new is ... else edits.to_json(new),
        )
        for name, (old, new) in edits.changes(before, after).items()
    ]
