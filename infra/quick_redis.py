"""Redis for requests, which cannot wait: it answers soon, or counts as away until it is seen to be back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

ANSWER_S = 0.1
LOOK_AGAIN_S = 1.0

T = TypeVar("T")


class RedisAway(ConnectionError):
    """Redis does not answer now, or did not a moment ago."""


class QuickRedis:
    """One Redis, asked on one event loop at a time. While it is away nothing is sent but a ping a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None
        self.away = False

    async def ask(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        """What the command answers. Raises `RedisAway`, after `ANSWER_S` at the latest."""
        client = self._connected()
        if self.away:
            raise RedisAway("Redis did not answer a moment ago")
        try:
            async with asyncio.timeout(ANSWER_S):
                return await command(client)
        except (RedisError, OSError, TimeoutError) as error:
            if not self.away:
                self.away = True
                log.warning("redis is away; this process does without", extra={"reason": repr(error)})
                self._looking = asyncio.create_task(self._look(client))
            raise RedisAway(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._looking is not None:
            self._looking.cancel()
        if self._client is not None:
            await self._client.aclose()
        self._client = self._loop = self._looking = None
        self.away = False

    def _connected(self) -> Redis:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # Its connections belong to the loop on which they were opened.
            self._loop, self.away = loop, False
            self._client = Redis.from_url(
                self._url,
                socket_timeout=ANSWER_S,
                socket_connect_timeout=ANSWER_S,
                retry=Retry(NoBackoff(), 1),  # its connection may be of before Redis was started anew
            )
        return self._client

    async def _look(self, client: Redis) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await client.ping()
            except (RedisError, OSError, TimeoutError):
                continue
            self.away = False
            log.warning("redis is back")
            return
