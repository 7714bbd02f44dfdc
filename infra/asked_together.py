"""One question for all who ask the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class AskedTogether(Generic[T]):
    """Asks one question at a time. Who comes while one is under way waits for the next, with all others who
    came meanwhile: nobody has the answer to a question that was put before they asked. On one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[T]], pause_s: float = 0.0) -> None:
        """`pause_s`: how long a question waits for more who would ask it."""
        self._ask, self._pause_s = ask, pause_s
        self._under_way = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """The answer; raises what the question raises, to everybody who waited for it."""
        if self._next is None:
            self._next = asyncio.create_task(self._put())
            self._next.add_done_callback(_seen)
        # One who leaves takes it away from nobody.
        return await asyncio.shield(self._next)

    async def _put(self) -> T:
        async with self._under_way:
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            self._next = None  # from here on it is too late to join
            return await self._ask()


def _seen(done: asyncio.Task[T]) -> None:
    if not done.cancelled():
        done.exception()  # also where everybody who waited has gone
