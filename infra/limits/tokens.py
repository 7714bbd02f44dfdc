"""Tokens of each asker and class of routes: in Redis for all processes; without it by this one's share."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.limits.rates import Rate
from infra.quick_redis import QuickRedis, RedisAway, Script
from infra.telemetry.metrics import LIMITED, LIMITS_LOCAL

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Most requests in one call of the script."""
BUCKETS_MOST = 20_000
PROCESSES_FIRST = 4
"""How many processes share a rate, until Redis has told how many there are."""
SEEN_WITHIN_MS = 15_000

# KEYS: the set of processes, then a bucket for each request. ARGV: this process, how long it counts as seen;
# then for each bucket tokens a millisecond, and most tokens. Times are Redis's own.
_TAKE = Script("""
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local out = {redis.call('ZCARD', KEYS[1])}
for i = 2, #KEYS do
  local per_ms, most = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local held = redis.call('HMGET', KEYS[i], 'tokens', 'at')
  local tokens = most
  if held[1] and held[2] then
    tokens = math.min(most, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) * per_ms)
  end
  local taken = 0
  if tokens >= 1 then
    tokens = tokens - 1
    taken = 1
  end
  redis.call('HSET', KEYS[i], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[i], math.ceil((most - tokens) / per_ms) + 1000)
  out[#out + 1] = taken
  out[#out + 1] = string.format('%.6f', tokens)
end
return out
""")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on, and what is left of the bucket."""

    allowed: bool
    rate: Rate
    tokens: float

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until there is a token."""
        return max(1, math.ceil((1 - self.tokens) / self.rate.per_s))

    @property
    def headers(self) -> Mapping[str, str]:
        """How many at once, how many are left, and in how many seconds all are back."""
        reset_s = math.ceil((self.rate.burst - self.tokens) / self.rate.per_s)
        return {
            "RateLimit-Limit": str(self.rate.burst),
            "RateLimit-Remaining": str(int(self.tokens)),
            "RateLimit-Reset": str(reset_s),
        }


class Tokens:
    """The buckets of one service's askers. Used on one event loop."""

    def __init__(self, redis: QuickRedis, rates: Mapping[str, Rate]) -> None:
        self._redis, self._rates = redis, rates
        self._process = uuid.uuid4().hex
        self._processes = PROCESSES_FIRST
        self._own: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._waiting: list[tuple[str, Rate, asyncio.Future[Verdict]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def take(self, asker: str, route_class: str) -> Verdict:
        """Take a token of this asker's bucket for the class. Never raises, and waits `ANSWER_S` at most."""
        key, rate = f"millrace:limit:{route_class}:{asker}", self._rates[route_class]
        if self._redis.away:
            verdict = self._locally(key, rate)
        else:
            future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            self._waiting.append((key, rate, future))
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            verdict = await future
        LIMITED.labels(route_class, "taken" if verdict.allowed else "refused").inc()
        return verdict

    async def _ask(self) -> None:
        """Ask for all that wait, as often as there are any: what comes meanwhile goes together next."""
        while self._waiting:
            asked, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            verdicts: Sequence[Verdict] | None = None
            try:
                verdicts = await self._of_redis([(key, rate) for key, rate, _ in asked])
                LIMITS_LOCAL.set(0)
            except RedisAway:
                LIMITS_LOCAL.set(1)
            finally:  # nobody may be left waiting, also where this task is cancelled
                verdicts = verdicts or [self._locally(key, rate) for key, rate, _ in asked]
                for (_, _, future), verdict in zip(asked, verdicts, strict=True):
                    if not future.done():
                        future.set_result(verdict)

    async def _of_redis(self, asked: Sequence[tuple[str, Rate]]) -> Sequence[Verdict]:
        keys = ["millrace:limit:processes", *(key for key, _ in asked)]
        arguments: list[str | int] = [self._process, SEEN_WITHIN_MS]
        for _, rate in asked:
            arguments += [repr(rate.per_s / 1000), rate.burst]
        processes, *rest = await self._redis.run(_TAKE, keys, arguments)
        self._processes = max(1, int(processes))
        return [
            Verdict(bool(int(taken)), rate, float(tokens))
            for (_, rate), taken, tokens in zip(asked, rest[::2], rest[1::2], strict=True)
        ]

    def _locally(self, key: str, rate: Rate) -> Verdict:
        rate = rate.shared(self._processes)
        now = time.monotonic()
        tokens, at = self._own.pop(key, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - at) * rate.per_s)
        allowed = tokens >= 1
        if allowed:
            tokens -= 1
        self._own[key] = tokens, now
        # The longest unused first: they are full again, or nearly.
        while len(self._own) > BUCKETS_MOST:
            self._own.popitem(last=False)
        return Verdict(allowed, rate, tokens)

    async def close(self) -> None:
        """Close the way to Redis."""
        if self._asking is not None:
            self._asking.cancel()
        await self._redis.close()
