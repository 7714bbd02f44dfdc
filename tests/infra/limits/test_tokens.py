"""Tokens in a real Redis, and without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from infra import quick_redis
from infra.limits.rates import RATES, Rate, class_of, rates
from infra.limits.tokens import PROCESSES_FIRST, Tokens
from infra.quick_redis import QuickRedis, RedisAway
from infra.redis_line import Word
from infra.settings import SettingError, Settings
from schemas.roles import SCOPES
from tests.infra.conftest import OwnRedis

TEN = {"read": Rate(5.0, 10), "write": Rate(1000.0, 1000)}


@asynccontextmanager
async def counting(url: str, among: Mapping[str, Rate] = TEN) -> AsyncIterator[Tokens]:
    """One process's tokens; slow machines must not take a slow Redis for one that is away."""
    tokens = Tokens(QuickRedis(url), among)
    try:
        yield tokens
    finally:
        await tokens.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_redis, "ANSWER_S", 2.0)
    monkeypatch.setattr(quick_redis, "LOOK_AGAIN_S", 0.05)


async def taken(tokens: Tokens, asker: str, times: int, route_class: str = "read") -> int:
    verdicts = await asyncio.gather(*(tokens.take(asker, route_class) for _ in range(times)))
    return sum(verdict.allowed for verdict in verdicts)


def test_a_bucket_is_shared_by_all_processes_and_refilled(own_redis: OwnRedis) -> None:
    """Three processes together take what is in the bucket, not three times as much; it refills at its rate;
    another asker and another class have their own."""

    async def run() -> None:
        async with counting(own_redis.url) as a, counting(own_redis.url) as b, counting(own_redis.url) as c:
            began = time.monotonic()
            together = await asyncio.gather(*(taken(tokens, "anna", 8) for tokens in (a, b, c)))
            refilled = (time.monotonic() - began) * 5
            assert 10 <= sum(together) <= 10 + refilled + 1
            assert await taken(b, "ben", 12) >= 10
            assert await taken(b, "anna", 50, "write") == 50
            await asyncio.sleep(1.05)
            assert 5 <= await taken(c, "anna", 30) <= 9

    asyncio.run(run())


def test_a_verdict_says_what_is_left_and_when_to_come_again(own_redis: OwnRedis) -> None:
    """Headers count down to nothing left; a refusal says in how many whole seconds there is a token."""

    async def run() -> None:
        async with counting(own_redis.url, {"login": Rate(0.1, 2)}) as tokens:
            first, second, third = [await tokens.take("anna", "login") for _ in range(3)]
        assert (first.allowed, second.allowed, third.allowed) == (True, True, False)
        assert first.headers == {"RateLimit-Limit": "2", "RateLimit-Remaining": "1", "RateLimit-Reset": "10"}
        assert second.headers["RateLimit-Remaining"] == "0"
        assert third.retry_after_s == 10

    asyncio.run(run())


def test_requests_that_come_together_are_asked_for_together(
    own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand at the same time cost a few calls of Redis; each gets the answer of its own bucket."""
    calls = 0
    ask = QuickRedis.ask

    async def counted(self: QuickRedis, *command: Word) -> object:
        nonlocal calls
        calls += 1
        return await ask(self, *command)

    monkeypatch.setattr(QuickRedis, "ask", counted)

    async def run() -> None:
        async with counting(own_redis.url) as tokens:
            verdicts = await asyncio.gather(*(tokens.take(f"asker {n % 50}", "read") for n in range(1000)))
        assert 500 <= sum(v.allowed for v in verdicts) <= 600
        assert calls <= 10

    asyncio.run(run())


def test_without_redis_each_process_counts_by_its_share(own_redis: OwnRedis) -> None:
    """Two processes that knew of each other take half each once Redis was killed, wait for nothing, and share
    one bucket again once it is back."""

    async def run() -> None:
        rate = {"read": Rate(0.5, 20)}
        async with counting(own_redis.url, rate) as a, counting(own_redis.url, rate) as b:
            for tokens in (a, b, a, b):
                await tokens.take("anna", "read")
            own_redis.kill()
            for tokens in (a, b):
                await tokens.take("somebody", "read")  # finds out
            began = time.monotonic()
            assert [await taken(tokens, "anna", 30) for tokens in (a, b)] == [10, 10]
            assert time.monotonic() - began < 1, "nobody waits for a Redis that is known to be away"
            own_redis.start()
            end = time.monotonic() + 10
            while a._redis.away or b._redis.away:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert 20 <= sum([await taken(tokens, "anna", 15) for tokens in (a, b)]) <= 22

    asyncio.run(run())


def test_a_process_that_never_saw_redis_assumes_others() -> None:
    """Without any answer, the rate is divided by as many processes as there usually are."""

    async def run() -> None:
        async with counting("redis://127.0.0.1:1/0", {"read": Rate(0.1, 20)}) as tokens:
            assert await taken(tokens, "anna", 30) == 20 // PROCESSES_FIRST

    asyncio.run(run())


def test_a_redis_that_hangs_costs_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing is waited for as long as one answer may take, then not again."""
    monkeypatch.setattr(quick_redis, "ANSWER_S", 0.2)

    async def run() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.read()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with counting(url) as tokens:
            began = time.monotonic()
            await tokens.take("anna", "read")
            first = time.monotonic() - began
            began = time.monotonic()
            await taken(tokens, "anna", 100)
            assert 0.15 < first < 2 and time.monotonic() - began < 0.15
            with pytest.raises(RedisAway):
                await tokens._redis.ask("PING")
        server.close()
        for writer in writers:
            writer.close()

    asyncio.run(run())


def test_many_askers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis the buckets longest unused are forgotten, and no other."""
    monkeypatch.setattr("infra.limits.tokens.BUCKETS_MOST", 100)

    async def run() -> None:
        async with counting("redis://127.0.0.1:1/0", {"read": Rate(0.001, 4)}) as tokens:
            assert [await taken(tokens, "anna", 1) for _ in range(2)] == [1, 0]
            for n in range(99):
                await tokens.take(str(n), "read")
            assert await taken(tokens, "anna", 1) == 0
            for n in range(200):
                await tokens.take(str(n), "read")
            assert len(tokens._own) == 100

    asyncio.run(run())


def test_rates_are_read_from_the_settings() -> None:
    """A rate is changed by its class; what cannot be read is refused with the remedy."""
    changed = rates(Settings({"MILLRACE_LIMITS": "read=600/m login=5/h:7"}))
    assert (changed["read"], changed["login"]) == (Rate(10, 600), Rate(5 / 3600, 7))
    assert changed["write"] == RATES["write"]
    for wrong, remedy in (("reed=1/s", "there are login"), ("read=0/s", "500/s"), ("read", "500/s")):
        with pytest.raises(SettingError, match=remedy):
            rates(Settings({"MILLRACE_LIMITS": wrong}))


def test_every_scope_has_a_class() -> None:
    """Whatever scope a route needs, there is a rate for its class; operators' actions are not as data."""
    assert {class_of(scope) for scope in SCOPES} | {"login", "anonymous", "stream"} == RATES.keys()
    assert (class_of("fraud:write"), class_of("ops:write"), class_of("fraud:read")) == (
        "write",
        "operate",
        "read",
    )
    assert class_of("fraud:read", is_stream=True) == "stream"
