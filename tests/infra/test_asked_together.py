"""One question for many, and never an old answer."""

from __future__ import annotations

import asyncio

import pytest

from infra.asked_together import AskedTogether


def test_all_who_come_meanwhile_share_the_next_question() -> None:
    """A hundred at once and a hundred more while it is under way are two questions; nobody is told what was
    known before they asked."""
    told, questions = 0, 0
    under_way = asyncio.Event()

    async def main() -> None:
        go_on = asyncio.Event()

        async def ask() -> int:
            nonlocal questions
            questions += 1
            now = told
            under_way.set()
            await go_on.wait()
            return now

        nonlocal told
        together = AskedTogether(ask)
        first = [asyncio.create_task(together()) for _ in range(100)]
        await under_way.wait()
        told = 1
        second = [asyncio.create_task(together()) for _ in range(100)]
        await asyncio.sleep(0)
        go_on.set()
        assert set(await asyncio.gather(*first)) == {0}
        assert set(await asyncio.gather(*second)) == {1}
        assert questions == 2

    asyncio.run(main())


def test_a_failure_is_told_to_all_and_is_not_kept() -> None:
    """Everybody who waited hears of it; who asks afterwards asks anew. One who left spoils it for nobody."""
    fails = True

    async def main() -> None:
        async def ask() -> str:
            await asyncio.sleep(0)
            if fails:
                raise ConnectionError("away")
            return "there"

        nonlocal fails
        together = AskedTogether(ask)
        for one in await asyncio.gather(*(together() for _ in range(3)), return_exceptions=True):
            assert isinstance(one, ConnectionError)
        fails = False
        leaving, staying = asyncio.create_task(together()), asyncio.create_task(together())
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == "there"
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(main())
