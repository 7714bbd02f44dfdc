"""Sends HTTP requests when they are due, whoever keeps up or not: `python -m benchmarks.http_load` does.

Requests of one lane (a card) go out one after the other, as its holder would; lanes do not wait for one
another. A wait counts from when a request was due, so what it spends behind another one is part of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import uvloop

from benchmarks.open_loop import LEAD_NS, TICK_NS

Ints = npt.NDArray[np.int64]

CONNECTIONS = 400
"""The most that are open; the gateway works on 512 requests at a time."""
BROKEN, UNSENT = 0, -1
"""Instead of a status: the connection broke; the client had no connection left in time."""


@dataclass(frozen=True)
class Answers:
    """What came of each request, in order: status (or `BROKEN`, `UNSENT`), when, and its body."""

    status: Ints
    at_ns: Ints
    late_ns: Ints
    """How late the client itself was to look at it."""
    again: Ints
    """1 where the answer said when to come again."""
    bodies: list[bytes]

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """As the client has left them."""
        with np.load(folder / "answers.npz") as found:
            numbers = [found[name] for name in ("status", "at_ns", "late_ns", "again")]
        return cls(*numbers, bodies=[body for _, body in read(folder / "bodies.arrow")])


def due_ns(requests: int, rate: int, size: int) -> Ints:
    """When each is due, in nanoseconds from the beginning: `rate` transactions a second, `size` in each."""
    return np.arange(requests, dtype=np.int64) * 1_000_000_000 * size // rate


def post(url: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A request as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(url: str, path: str, headers: dict[str, str]) -> bytes:
    """A request without a body as it goes over the wire."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def write(path: Path, rows: Iterable[tuple[str, bytes]]) -> None:
    """Store requests with their lanes, for `read`."""
    lanes, requests = zip(*rows, strict=True)
    table = pa.table({"lane": pa.array(lanes, pa.string()), "request": pa.array(requests, pa.binary())})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table)


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """The stored requests with their lanes, in order."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        lanes, requests = (column.to_pylist() for column in file.read_all().columns)
    yield from zip(lanes, requests, strict=True)


class Connection(asyncio.Protocol):
    """One connection, one request at a time; `on_answer` is called with its status, whether it says when to
    come again, and its body."""

    def __init__(self, on_answer: Callable[[Connection, int, bool, bytes], None]) -> None:
        self._on_answer = on_answer
        self._transport: asyncio.Transport | None = None
        self._got = bytearray()
        self._busy = False
        self.number = -1
        """Of the request under way."""

    def send(self, number: int, request: bytes) -> None:
        assert self._transport is not None
        self.number, self._busy = number, True
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # (uvloop's is none of its subclasses.)
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._got[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(self._got) < end + 4 + length:
            return
        body = bytes(self._got[end + 4 : end + 4 + length])
        self._got.clear()
        self._busy = False
        if b"connection: close" in head:
            self.close()
        self._on_answer(self, int(head[9:12]), b"\r\nretry-after:" in head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._busy = False
            self._on_answer(self, BROKEN, False, b"")


class Client:
    """Sends requests by a schedule. Used on one event loop."""

    def __init__(
        self,
        url: str,
        requests: Iterable[tuple[str, bytes]],
        due: Ints,
        connections: int = CONNECTIONS,
        give_up_ns: int | None = None,
    ) -> None:
        """`connections`: the most that are open. `give_up_ns`: what has none so long after it was due is not
        sent any more."""
        self._url = urlsplit(url)
        self._most, self._give_up_ns = connections, give_up_ns
        self._requests = list(requests)
        self._due = due
        self._status = np.zeros(len(due), np.int64)
        self._at_ns = np.zeros(len(due), np.int64)
        self._late_ns = np.zeros(len(due), np.int64)
        self._again = np.zeros(len(due), np.int64)
        self._bodies: list[bytes] = [b""] * len(due)
        self._left = len(due)
        self._lanes: dict[str, deque[int]] = {}
        self._free: list[Connection] = []
        self._ready: deque[int] = deque()
        self._open = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._all = asyncio.Event()

    async def run(self, patience_s: float) -> Answers:
        """Send all, and wait for the last answer. Raises TimeoutError."""
        asked = 0
        while asked < len(self._due):
            now = time.monotonic_ns()
            end = int(np.searchsorted(self._due, now, side="right"))
            self._late_ns[asked:end] = now - self._due[asked:end]
            for number in range(asked, end):
                self._fall_due(number)
            asked = end
            if asked < len(self._due):
                await asyncio.sleep(max(0.0, int(self._due[asked]) + TICK_NS - time.monotonic_ns()) / 1e9)
        async with asyncio.timeout(patience_s):
            await self._all.wait()
        for connection in self._free:
            connection.close()
        return Answers(self._status, self._at_ns, self._late_ns, self._again, self._bodies)

    def _fall_due(self, number: int) -> None:
        lane = self._requests[number][0]
        waiting = self._lanes.get(lane)
        if waiting is not None:
            waiting.append(number)
            return
        self._lanes[lane] = deque()
        self._send(number)

    def _send(self, number: int) -> None:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                connection.send(number, self._requests[number][1])
                return
            self._open -= 1
        self._ready.append(number)
        if self._open < self._most:
            self._open += 1
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered), self._url.hostname, self._url.port
        )
        self._next(connection)

    def _answered(self, connection: Connection, status: int, again: bool, body: bytes) -> None:
        number = connection.number
        self._again[number] = again
        self._bodies[number] = body
        self._settle(number, status)
        self._next(connection)

    def _settle(self, number: int, status: int) -> None:
        self._at_ns[number] = time.monotonic_ns()
        self._status[number] = status
        self._left -= 1
        if not self._left:
            self._all.set()
        lane = self._requests[number][0]
        waiting = self._lanes[lane]
        if waiting:
            self._ready.append(waiting.popleft())
        else:
            del self._lanes[lane]

    def _next(self, connection: Connection) -> None:
        if self._give_up_ns is not None:
            latest = time.monotonic_ns() - self._give_up_ns
            while self._ready and self._due[self._ready[0]] < latest:
                self._settle(self._ready.popleft(), UNSENT)
        if not connection.is_open:
            self._open -= 1
            if self._ready:
                self._send(self._ready.popleft())
        elif self._ready:
            number = self._ready.popleft()
            connection.send(number, self._requests[number][1])
        else:
            self._free.append(connection)


def main() -> int:
    """Send a stretch: says `begin <monotonic ns>`, then leaves what came of it in a folder."""
    job: dict[str, Any] = json.loads(os.environ["BENCH_JOB"])
    folder = Path(job["folder"])
    requests = list(read(folder / "requests.arrow"))
    gc.disable()

    async def load() -> Answers:
        begin = time.monotonic_ns() + LEAD_NS
        print(f"begin {begin}", flush=True)
        due = due_ns(len(requests), job["rate"], job["size"]) + begin
        client = Client(job["url"], requests, due, job.get("connections", CONNECTIONS), job.get("give_up_ns"))
        return await client.run(job["patience_s"])

    answers = uvloop.run(load())
    np.savez(
        folder / "answers.npz",
        status=answers.status,
        at_ns=answers.at_ns,
        late_ns=answers.late_ns,
        again=answers.again,
    )
    write(folder / "bodies.arrow", (("", body) for body in answers.bodies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
