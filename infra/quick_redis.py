"""Redis for requests, which cannot wait: it answers soon, or counts as away until it is seen to be back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from infra.redis_line import Command, Line, Word

log = logging.getLogger(__name__)

ANSWER_S = 0.1
LOOK_AGAIN_S = 1.0


class RedisAway(ConnectionError):
    """Redis does not answer now, or did not a moment ago."""


class Script:
    """A Lua script. Redis keeps it by its hash, so that its text is sent once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class QuickRedis:
    """One Redis, asked on one event loop at a time. While it is away nothing is sent but a ping a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._line: Line | None = None
        self._opening: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None
        self.away = False

    async def ask(self, *command: Word) -> Any:
        """What the command answers: bytes, int, None, or a list. Raises `RedisAway` where it does not answer
        within `ANSWER_S`."""
        return (await self.ask_all([command]))[0]

    async def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """As `ask`, for commands that go out together, in order."""
        self._require_loop()
        if self.away:
            raise RedisAway("Redis did not answer a moment ago")
        try:
            return await self._asked(commands)
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            if not self.away:
                self.away = True
                log.warning("redis is away; this process does without", extra={"reason": repr(error)})
                self._hang_up()
                self._looking = asyncio.create_task(self._look())
            raise RedisAway(f"{type(error).__name__}: {error}") from error

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """What the script answers. Raises `RedisAway` as `ask`."""
        told = (len(keys), *keys, *arguments)
        try:
            return await self.ask("EVALSHA", script.digest, *told)
        except NoScriptError:  # it was started anew since
            return await self.ask("EVAL", script.text, *told)

    async def close(self) -> None:
        """Close the connection."""
        if self._looking is not None:
            self._looking.cancel()
        self._hang_up()
        self._loop = self._looking = None
        self.away = False

    async def _asked(self, commands: Sequence[Command]) -> list[Any]:
        line = self._line
        if line is not None and line.is_open:
            try:
                return await line.ask(commands)
            except ConnectionError:
                pass  # it may be of before Redis was started anew
        return await (await self._opened()).ask(commands)

    async def _opened(self) -> Line:
        assert self._opening is not None
        async with self._opening:
            if self.away:  # as who had the turn before has found
                raise RedisAway("Redis did not answer a moment ago")
            if self._line is None or not self._line.is_open:
                self._line = await self._new()
            return self._line

    async def _new(self) -> Line:
        async with asyncio.timeout(ANSWER_S):
            return await Line.open(self._url, ANSWER_S)

    def _require_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Its connection belongs to the loop on which it was opened.
            self._loop, self._line, self.away = loop, None, False
            self._opening = asyncio.Lock()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                self._line = await self._new()
            except (RedisError, OSError):
                continue
            self.away = False
            log.warning("redis is back")
            return
