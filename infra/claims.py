"""Claims on keys that clients choose: who works on one, and what it was used for.

They stand in Redis for all processes, and in this one's memory. Nothing may depend on them that must not
happen twice: without Redis, or after it was flushed, a key may be worked on by two processes at once.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from infra.quick_redis import QuickRedis, RedisAway, Script

KEPT_S = 24 * 60 * 60
"""How long it is known what a key was used for."""
KEPT_HERE = 100_000

_IF_MINE = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end "
_SETTLE = Script(_IF_MINE + "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1")
_RELEASE = Script(_IF_MINE + "redis.call('DEL', KEYS[1]) return 1")


class BeingWorkedOn(Exception):
    """Somebody works on the key at this moment."""


class UsedOtherwise(Exception):
    """The key was used for something else."""


@dataclass(slots=True)
class _Own:
    """What this process knows of a key. `token` is empty once it is settled."""

    fingerprint: str
    token: str
    until: float


class Claims:
    """The claims of one process. Used on one event loop."""

    def __init__(self, redis: QuickRedis, prefix: str) -> None:
        """`prefix`: of the names in Redis."""
        self._redis = redis
        self._prefix = prefix
        self._own: OrderedDict[str, _Own] = OrderedDict()

    @asynccontextmanager
    async def claimed(self, key: str, fingerprint: str, held_s: float) -> AsyncIterator[None]:
        """Work on `key` meanwhile; afterwards it is kept with its fingerprint, or free after an exception.

        Raises `BeingWorkedOn`, `UsedOtherwise`. A claim whose process was killed is free after `held_s`.
        A key that was settled for the same is worked on without a claim: that repeats what is known.
        """
        token = secrets.token_hex(8)
        if not self._take_here(key, fingerprint, token, held_s):
            yield
            return
        is_settled = False
        try:
            is_settled = await self._take(key, fingerprint, token, held_s)
            yield
            is_settled = True
        finally:
            own = self._own.get(key)
            if own is not None and own.token == token:  # it may have expired, and be another's now
                if is_settled:
                    own.token, own.until = "", time.monotonic() + KEPT_S
                else:
                    del self._own[key]
            await self._end(key, fingerprint, token, is_settled)

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._redis.close()

    def _take_here(self, key: str, fingerprint: str, token: str, held_s: float) -> bool:
        """Whether it is claimed now; False where it is settled for the same."""
        now = time.monotonic()
        known = self._own.get(key)
        if known is not None and now < known.until:
            _compare(known.fingerprint, fingerprint, known.token)
            return False
        self._own[key] = _Own(fingerprint, token, now + held_s)
        self._own.move_to_end(key)
        while len(self._own) > KEPT_HERE:
            self._own.popitem(last=False)
        return True

    async def _take(self, key: str, fingerprint: str, token: str, held_s: float) -> bool:
        """Take it in Redis, where that answers. Whether it is settled there for the same."""
        name, value = self._prefix + key, f"{fingerprint}:{token}"

        try:
            before: bytes | None = await self._redis.ask(
                "SET", name, value, "NX", "GET", "PX", int(held_s * 1000)
            )
        except RedisAway:
            return False
        # It may have been sent twice, where the first answer was lost.
        if before is None or before == value.encode():
            return False
        known, _, holder = before.decode().partition(":")
        _compare(known, fingerprint, holder)
        return True

    async def _end(self, key: str, fingerprint: str, token: str, is_settled: bool) -> None:
        name, mine = self._prefix + key, f"{fingerprint}:{token}"

        try:
            # Only where it is still ours, as well.
            if is_settled:
                await self._redis.run(_SETTLE, [name], [mine, f"{fingerprint}:", KEPT_S * 1000])
            else:
                await self._redis.run(_RELEASE, [name], [mine])
        except RedisAway:
            pass  # it expires there


def _compare(known: str, fingerprint: str, holder: str) -> None:
    if known != fingerprint:
        raise UsedOtherwise
    if holder:
        raise BeingWorkedOn
