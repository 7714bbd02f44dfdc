"""Live events: the end of any topic, decoded and filtered, as it grows."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import filters, site, stream
from api.console.actions import needs
from api.console.parts import Part, trouble_of
from api.console.tail import Tail, Taken
from infra.dlq.edits import to_json
from infra.moments import MomentError, moment
from infra.problems import Problem
from schemas.declare import Pipelines, Topic

router: APIRouter = site.router()

TopicName = Annotated[str, Query(description="A declared topic, or one of its dead letters.")]
Wanted = Annotated[str, Query(alias="filter", max_length=1000)]
Since = Annotated[str, Query(max_length=40)]
PREVIEW = 600
"""Characters of an event that a line of the list shows."""


@router.get("/events", dependencies=[needs("ops:read", "events.show")])
async def events(request: Request, topic: TopicName = "", wanted: Wanted = "", since: Since = "") -> Response:
    console = site.console(request)
    chosen = _topic(console.pipelines, topic) if topic else None
    fault = None
    try:
        filters.parse(wanted)
        _moment(since)
    except (filters.FilterError, Problem) as error:
        fault = error.detail if isinstance(error, Problem) else str(error)
    return site.page(
        request,
        "events.html",
        200 if fault is None else 422,
        active="events",
        pipelines=list(console.pipelines),
        topic=chosen,
        wanted=wanted,
        since=since,
        fault=fault,
        live=f"/console/live/events{site.query(topic=topic, filter=wanted, since=since)}"
        if chosen and not fault
        else None,
    )


@router.get("/live/events", dependencies=[needs("ops:read", "events.watch")], response_class=stream.Events)
async def watch(request: Request, topic: TopicName, wanted: Wanted = "", since: Since = "") -> Response:
    console = site.console(request)
    chosen = _topic(console.pipelines, topic)
    try:
        parsed = filters.parse(wanted)
    except filters.FilterError as error:
        raise Problem(422, "No filter", str(error), "filter") from None
    at = _moment(since)
    console.streams.require()
    console.tails.require()
    return stream.answer(request, _tailed(console, chosen, parsed, at))


async def _tailed(
    console: site.Console, topic: Topic, wanted: filters.Filter, since: datetime | None
) -> AsyncGenerator[bytes]:
    tail: Tail | None = None
    with console.streams.taken(), console.tails.taken():
        try:
            console.require(Part.BROKER, Part.REGISTRY)
            kafka, codec = console.settings.kafka, console.codec
            tail = await console.tailing(lambda: Tail(kafka, codec, topic, wanted, since))
            spoke = time.monotonic()
            while not console.ending.is_set():
                taken = await console.tailing(tail.take)
                # Asked for only when the browser has taken the last: that is all the backpressure there is.
                if taken.read or taken.skipped:
                    yield stream.event(_told(taken), "records")
                    spoke = time.monotonic()
                elif time.monotonic() - spoke > stream.HEARTBEAT_S:
                    yield b": here\n\n"
                    spoke = time.monotonic()
                if taken.matched >= len(taken.seen) > 0:
                    await anyio.sleep(0.2)
        except Exception as error:
            told = trouble_of(error)
            if told is None:
                raise
            yield stream.event({"sentence": told.sentence}, "trouble")
        finally:
            if tail is not None:
                with anyio.CancelScope(shield=True):
                    await console.tailing(tail.close)


def _told(taken: Taken) -> dict[str, object]:
    rows = [site.render("event_row.html", seen=seen, preview=_preview(seen.event)) for seen in taken.seen]
    return {
        "rows": rows,
        "read": taken.read,
        "matched": taken.matched,
        "hidden": taken.matched - len(taken.seen),
        "skipped": taken.skipped,
    }


def _preview(event: object) -> str:
    text = " ".join(to_json(event).split()) if event is not None else ""
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]}…"


def _topic(pipelines: Pipelines, name: str) -> Topic:
    declared: list[Topic] = [x for p in pipelines for t in p.topics for x in (t, t.dlq)]
    for topic in declared:
        if topic.name == name:
            return topic
    raise Problem(
        404, "No such topic", f"No pipeline declares a topic {name!r}; choose one of the list.", "topic"
    )


def _moment(text: str) -> datetime | None:
    if not text.strip():
        return None
    try:
        return moment(text.strip())
    except MomentError as error:
        raise Problem(422, "No time", f"Since: {error}.", "since") from None
