"""Claims on keys, over the real Redis and without it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from infra.claims import BeingWorkedOn, Claims, UsedOtherwise
from infra.quick_redis import QuickRedis
from infra.settings import Settings

NOWHERE = "redis://127.0.0.1:1/0"


def run(
    test: Callable[[Claims, Claims, str], Awaitable[None]], url: str, other_url: str | None = None
) -> None:
    """Run it with two processes' claims and a fresh key."""

    async def main() -> None:
        one, other = (Claims(QuickRedis(u), "test:claim:") for u in (url, other_url or url))
        try:
            await test(one, other, uuid.uuid4().hex)
        finally:
            await one.close()
            await other.close()

    asyncio.run(main())


@pytest.fixture(params=["two processes", "one process", "without Redis"])
def where(request: pytest.FixtureRequest, services: Settings) -> tuple[str, bool]:
    """Redis' address, and whether both claimants are one process."""
    return (
        NOWHERE if request.param == "without Redis" else services.redis_url,
        request.param != "two processes",
    )


def test_a_key_is_worked_on_once(where: tuple[str, bool]) -> None:
    """While it is claimed nobody else may; afterwards the same use may, another may not."""
    url, same = where

    async def test(one: Claims, other: Claims, key: str) -> None:
        other = one if same else other
        async with one.claimed(key, "a", 10):
            with pytest.raises(BeingWorkedOn):
                async with other.claimed(key, "a", 10):
                    pass
            with pytest.raises(UsedOtherwise):
                async with other.claimed(key, "b", 10):
                    pass
        with pytest.raises(UsedOtherwise):
            async with other.claimed(key, "b", 10):
                pass
        async with other.claimed(key, "a", 10), one.claimed(key, "a", 10):
            pass
        with pytest.raises(UsedOtherwise):
            async with one.claimed(key, "b", 10):
                pass

    run(test, url)


def test_a_failure_frees_the_key(where: tuple[str, bool]) -> None:
    """After an exception the key is as it was before, for any use."""
    url, same = where

    async def test(one: Claims, other: Claims, key: str) -> None:
        with pytest.raises(RuntimeError, match="broke"):
            async with one.claimed(key, "a", 10):
                raise RuntimeError("broke")
        async with (one if same else other).claimed(key, "b", 10):
            pass

    run(test, url)


def test_a_claim_expires(where: tuple[str, bool]) -> None:
    """Whoever holds it for too long (was killed) loses it, and does not end the claim of who took it over."""
    url, same = where

    async def test(one: Claims, other: Claims, key: str) -> None:
        other = one if same else other
        async with one.claimed(key, "a", 0.2):
            await asyncio.sleep(0.3)
            async with other.claimed(key, "b", 10):
                pass
        with pytest.raises(UsedOtherwise):
            async with other.claimed(key, "a", 10):
                pass

    run(test, url)


def test_without_redis_others_are_not_known(services: Settings) -> None:
    """A process that Redis is away from works on what another one claims: nothing may depend on it."""

    async def test(one: Claims, other: Claims, key: str) -> None:
        async with one.claimed(key, "a", 10), other.claimed(key, "a", 10):
            pass

    run(test, services.redis_url, NOWHERE)


def test_what_redis_forgot_is_still_known_here(services: Settings) -> None:
    """After a flush each process still knows its own keys."""

    async def test(one: Claims, other: Claims, key: str) -> None:
        async with one.claimed(key, "a", 10):
            pass
        async with Redis.from_url(services.redis_url) as client:
            await client.flushall()
        with pytest.raises(UsedOtherwise):
            async with one.claimed(key, "b", 10):
                pass
        async with other.claimed(key, "b", 10):
            pass

    run(test, services.redis_url)
