"""Connections that mostly wait: `python -m benchmarks.idle_connections` opens them and keeps them.

WebSockets and server-sent events that listen to a topic, and HTTP connections that ask for something every
few seconds. Told to end, it leaves what each of them has seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from benchmarks.http_load import get

OPENED_A_SECOND = 60
"""So that each subject's rate of new streams is kept."""
ASKS_EVERY_S = 3.0
"""A server closes an HTTP connection that has been silent for 5 s."""
STARTED, RECORD = b"\nevent: started", b"\nevent: record\n"


@dataclass
class Kind:
    """What became of the connections of one kind."""

    opened: int = 0
    lost: int = 0
    """Ended before they were told to, or never opened."""
    wrong: int = 0
    """Answers that were not 200."""
    heard: dict[int, int] = field(default_factory=dict)
    """How many connections have heard so many records; of HTTP, had so many answers."""


class Idle:
    """All of them. Used on one event loop."""

    def __init__(self, url: str, topic: str, path: str, credentials: Sequence[dict[str, str]]) -> None:
        """`path`: what HTTP connections ask for; `credentials`: headers by subject, used in turn."""
        self._url, self._topic, self._path, self._credentials = url, topic, path, credentials
        self.kinds = {name: Kind() for name in ("websocket", "events", "http")}
        self._heard = {name: Counter[int]() for name in self.kinds}
        self._ending = False

    async def open(self, wanted: dict[str, int]) -> list[asyncio.Task[None]]:
        """Open so many of each kind, one after the other; returns when all are open or have failed."""
        ways = {"websocket": self._websocket, "events": self._events, "http": self._http}
        tasks, opened = [], []
        numbers = [(name, n) for name, count in wanted.items() for n in range(count)]
        for number, (name, n) in enumerate(numbers):
            headers = self._credentials[number % len(self._credentials)]
            is_open = asyncio.Event()
            opened.append(is_open)
            tasks.append(asyncio.create_task(self._kept(name, ways[name](n, headers, is_open), is_open)))
            await asyncio.sleep(1 / OPENED_A_SECOND)
        for is_open in opened:
            await is_open.wait()
        return tasks

    def end(self) -> None:
        """From now on a connection that ends is not lost."""
        self._ending = True
        for name, kind in self.kinds.items():
            kind.heard = dict(sorted(Counter(self._heard[name].values()).items()))

    async def _kept(self, name: str, way: Coroutine[Any, Any, None], is_open: asyncio.Event) -> None:
        try:
            await way
        except (OSError, WebSocketException, asyncio.IncompleteReadError, ValueError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            if not self._ending:
                self.kinds[name].lost += 1
            is_open.set()

    def _begun(self, name: str, n: int, is_open: asyncio.Event) -> None:
        self.kinds[name].opened += 1
        self._heard[name][n] = 0
        is_open.set()

    async def _websocket(self, n: int, headers: dict[str, str], is_open: asyncio.Event) -> None:
        url = f"{self._url.replace('http', 'ws', 1)}/v1/stream?topic={self._topic}"
        async with connect(url, additional_headers=headers, ping_interval=None, compression=None) as socket:
            async for text in socket:
                message = json.loads(text)
                if message["type"] == "started":
                    self._begun("websocket", n, is_open)
                elif message["type"] == "record":
                    self._heard["websocket"][n] += 1
                elif message["type"] == "dropped":
                    raise ConnectionError(message["reason"])

    async def _events(self, n: int, headers: dict[str, str], is_open: asyncio.Event) -> None:
        at = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        try:
            writer.write(get(self._url, f"/v1/events?topic={self._topic}", headers))
            status, _, _ = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            if b" 200 " not in status + b" ":
                self.kinds["events"].wrong += 1
                raise ConnectionError(status.decode())
            tail = b""
            while piece := await reader.read(65_536):
                got = tail + piece
                if not is_open.is_set() and STARTED in got:
                    self._begun("events", n, is_open)
                self._heard["events"][n] += got.count(RECORD)
                tail = got[1 - len(RECORD) :]
        finally:
            writer.close()

    async def _http(self, n: int, headers: dict[str, str], is_open: asyncio.Event) -> None:
        at = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        request = get(self._url, self._path, headers)
        try:
            while True:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
                if not is_open.is_set():
                    self._begun("http", n, is_open)
                self._heard["http"][n] += 1
                self.kinds["http"].wrong += head[9:12] != b"200"
                await asyncio.sleep(ASKS_EVERY_S)
        finally:
            writer.close()


def main() -> int:
    """Open them, say `ready`, keep them until SIGTERM, and leave what came of them."""
    job: dict[str, Any] = json.loads(os.environ["BENCH_JOB"])

    async def keep() -> dict[str, Kind]:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        idle = Idle(job["url"], job["topic"], job["path"], job["credentials"])
        tasks = await idle.open(job["wanted"])
        print("ready", flush=True)
        await told.wait()
        idle.end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return idle.kinds

    kinds = uvloop.run(keep())
    Path(job["out"]).write_text(json.dumps({name: asdict(kind) for name, kind in kinds.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
