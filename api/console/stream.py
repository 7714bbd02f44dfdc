"""Server-sent events: what changed of a page, and whatever else comes by itself."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import anyio
import orjson
from fastapi import Request
from starlette.responses import StreamingResponse

from api.console.actions import Watch
from api.console.observer import Look
from api.console.site import Console
from infra.hardening import EVENTS

POLL_S = 0.4
HEARTBEAT_S = 15.0
"""A comment after so much silence: a browser that has gone is noticed, and no proxy cuts the line."""

Values = Mapping[str, str]


class Events(StreamingResponse):
    """An answer that goes on. Routes name it as theirs: limits then take it for a stream."""

    media_type = EVENTS


def event(data: Any, name: str | None = None) -> bytes:
    """One event with JSON for its data."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


def answer(request: Request, events: AsyncGenerator[bytes]) -> Events:
    """The events as an answer. The next is asked for when the last has been taken.

    It ends where whoever watches may no longer, or has to prove anew who they are: browsers then ask again.
    """
    return Events(_while_allowed(Watch(request), events), headers={"X-Accel-Buffering": "no"})


async def _while_allowed(watch: Watch, events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        async for told in events:
            if await watch.over():
                return
            yield told


async def changes(console: Console, values: Callable[[Look], Values]) -> AsyncGenerator[bytes]:
    """After each look, those of a page's values that are not what was sent before."""
    with console.streams.taken():
        told: Values = {}
        number, spoke = -1, time.monotonic()
        while not console.ending.is_set():
            look = console.observer.watched()
            if look.number != number:
                number = look.number
                now = await console.apart(values, look)
                changed = {k: v for k, v in now.items() if told.get(k) != v}
                told = now
                if changed:
                    yield event(changed)
                    spoke = time.monotonic()
            if time.monotonic() - spoke > HEARTBEAT_S:
                yield b": here\n\n"
                spoke = time.monotonic()
            await anyio.sleep(POLL_S)
