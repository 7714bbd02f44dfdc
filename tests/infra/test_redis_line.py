"""One connection to a real Redis, and to servers that are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from redis.exceptions import NoScriptError, ResponseError

from infra import quick_redis
from infra.quick_redis import QuickRedis, RedisAway, Script
from infra.redis_line import Line
from tests.infra.conftest import OwnRedis


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_redis, "ANSWER_S", 2.0)
    monkeypatch.setattr(quick_redis, "LOOK_AGAIN_S", 0.05)


def on_line(url: str, test: Callable[[Line], Awaitable[None]]) -> None:
    async def main() -> None:
        line = await Line.open(url, 2.0)
        try:
            await test(line)
        finally:
            line.close()

    asyncio.run(main())


def test_each_command_has_its_own_answer(own_redis: OwnRedis) -> None:
    """Hundreds under way at once, a refusal and one that was given up among them: each gets what it asked
    for."""

    async def test(line: Line) -> None:
        given_up = asyncio.ensure_future(line.ask([("ECHO", "nobody hears this")]))
        await asyncio.sleep(0)
        given_up.cancel()
        refused = asyncio.ensure_future(line.ask([("INCR",)]))
        asked = [asyncio.ensure_future(line.ask([("ECHO", f"word {n}"), ("ECHO", n)])) for n in range(500)]
        for n, answers in enumerate(await asyncio.gather(*asked)):
            assert answers == [f"word {n}".encode(), str(n).encode()]
        with pytest.raises(ResponseError, match="wrong number of arguments"):
            await refused

    on_line(own_redis.url, test)


def test_the_address_says_which_database_and_who_asks(own_redis: OwnRedis) -> None:
    """Number, name and password of the address are used; a wrong password opens nothing."""

    async def begin(line: Line) -> None:
        await line.ask([("ACL", "SETUSER", "anna", "on", ">se/cret", "~*", "+@all"), ("SET", "here", 0)])

    async def same(line: Line) -> None:
        assert await line.ask([("ACL", "WHOAMI"), ("GET", "here")]) == [b"anna", None]

    async def nothing(line: Line) -> None:
        raise AssertionError("it was let in")

    on_line(own_redis.url, begin)
    at = f"127.0.0.1:{own_redis.port}"
    on_line(f"redis://anna:se%2Fcret@{at}/3", same)
    with pytest.raises(ResponseError, match="WRONGPASS"):
        on_line(f"redis://anna:guess@{at}/3", nothing)


def test_who_waits_for_a_redis_that_dies_hears_of_it(own_redis: OwnRedis) -> None:
    """Nobody waits for ever: a lost connection is told to who waits for an answer, and to who comes late."""

    async def test(line: Line) -> None:
        waiting = [asyncio.ensure_future(line.ask([("BLPOP", "nothing", 0)])) for _ in range(3)]
        await asyncio.sleep(0.05)
        own_redis.kill()
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, ConnectionError)
        with pytest.raises(ConnectionError):
            await line.ask([("PING",)])
        assert not line.is_open

    on_line(own_redis.url, test)


def test_what_is_no_redis_is_left() -> None:
    """A server that speaks something else is hung up on, instead of waited for or believed."""

    async def main() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(other, "127.0.0.1", 0)
        at = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(Line.open(f"redis://127.0.0.1:{at}", 10), 5)
        server.close()

    asyncio.run(main())


def test_a_silent_redis_is_told_from_a_process_that_is_late(own_redis: OwnRedis) -> None:
    """Answers that have come are taken, however long this process did not look; a Redis that says nothing for
    the time of an answer is left, and whoever waits hears so."""

    async def main() -> None:
        line = await Line.open(own_redis.url, 0.2)
        asked = asyncio.ensure_future(line.ask([("PING",)]))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - the loop stands still, as under load
        assert await asked == [b"PONG"]
        began = time.monotonic()
        for one in await asyncio.gather(
            *(line.ask([("BLPOP", "nothing", 0)]) for _ in range(3)), return_exceptions=True
        ):
            assert isinstance(one, TimeoutError)
        assert 0.2 <= time.monotonic() - began < 2
        assert not line.is_open

    asyncio.run(main())


def test_scripts_outlive_a_redis_that_forgets_them(own_redis: OwnRedis) -> None:
    """A script is sent by its text, then by its hash, and by its text again where Redis was started anew."""
    script = Script("return {KEYS[1], ARGV[1]}")

    async def main() -> None:
        redis = QuickRedis(own_redis.url)
        try:
            for _ in range(2):
                assert await redis.run(script, ["key"], [7]) == [b"key", b"7"]
            with pytest.raises(NoScriptError):
                await redis.ask("EVALSHA", "0" * 40, 0)
            assert not redis.away
            own_redis.kill()
            own_redis.start()
            # The connection is of before: it is opened anew, and nobody is told that Redis were away.
            assert await redis.run(script, ["key"], [8]) == [b"key", b"8"]
            assert not redis.away
        finally:
            await redis.close()

    asyncio.run(main())


def test_a_refused_command_counts_as_away(own_redis: OwnRedis) -> None:
    """A Redis that answers but cannot serve (read-only, full, loading) is done without until it can again."""

    async def main() -> None:
        redis = QuickRedis(own_redis.url)
        try:
            with pytest.raises(RedisAway, match="wrong number"):
                await redis.ask("GET")
            assert redis.away
            async with asyncio.timeout(10):
                while redis.away:  # noqa: ASYNC110 - it has no event to wait for
                    await asyncio.sleep(0.01)
            assert await redis.ask("PING") == b"PONG"
        finally:
            await redis.close()

    asyncio.run(main())
