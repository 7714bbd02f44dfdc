"""The open loop over HTTP: lanes in order, waits from when a request was due, breaks that are seen."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import UNSENT, Answers, Client, due_ns, post, read, write

SLOW_S = 0.05


class Server:
    """Answers each request with its body, in time; breaks the connection at one whose body says so."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.heard.append(body)
                if body == b"break":
                    break
                await asyncio.sleep(SLOW_S if body.startswith(b"slow") else 0)
                again = b"Retry-After: 3\r\n" if body == b"again" else b""
                writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (again, length) + body)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def load(requests: list[tuple[str, bytes]], rate: int, **options: Any) -> tuple[Answers, Server, int]:
    """The answers to requests (lane, body), the server, and when the first was due."""
    server = Server()

    async def run() -> tuple[Answers, int]:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        begin = time.monotonic_ns() + 20_000_000
        made = [(lane, post(url, "/", {}, body)) for lane, body in requests]
        answers = await Client(url, made, due_ns(len(made), rate, 1) + begin, **options).run(10)
        listening.close()
        return answers, begin

    answers, begin = asyncio.run(run())
    return answers, server, begin


def test_lanes_are_in_order_and_do_not_wait_for_one_another() -> None:
    """Requests of a card go out one by one; a slow card holds up nobody else."""
    slow = [("a", b"slow %d" % n) for n in range(4)]
    quick = [(f"lane {n}", b"quick %d" % n) for n in range(40)]
    answers, server, begin = load([*slow, *quick], rate=10_000)
    assert answers.status.tolist() == [200] * 44
    assert [body for body in server.heard if body.startswith(b"slow")] == [body for _, body in slow]
    assert answers.bodies == [body for _, body in (*slow, *quick)]
    waits_s = (answers.at_ns - begin) / 1e9
    assert np.all(np.diff(waits_s[:4]) >= SLOW_S * 0.9), "what waits behind another has that in its wait"
    assert np.median(waits_s[4:]) < waits_s[3]


def test_a_broken_connection_is_an_answer_of_its_own() -> None:
    """Status 0; the requests after it have theirs."""
    answers, _, _ = load([("a", b"one"), ("a", b"break"), ("a", b"two"), ("b", b"three")], rate=1_000)
    assert answers.status.tolist() == [200, 0, 200, 200]


def test_an_answer_that_names_a_time_is_told_apart() -> None:
    """Whether an answer said when to come again is known of each."""
    answers, _, _ = load([("a", b"one"), ("b", b"again"), ("c", b"two")], rate=1_000)
    assert answers.again.tolist() == [0, 1, 0]


def test_what_is_not_sent_in_time_is_given_up() -> None:
    """With one slow connection and no patience, what is due meanwhile is never sent, and counts as unsent."""
    slow = [(f"lane {n}", b"slow %d" % n) for n in range(30)]
    answers, server, _ = load(slow, rate=10_000, connections=1, give_up_ns=int(SLOW_S * 1e9 / 2))
    sent = answers.status == 200
    assert 0 < sent.sum() < 30
    assert len(server.heard) == sent.sum()
    assert set(answers.status[~sent].tolist()) == {UNSENT}


def test_requests_are_kept_as_they_are(tmp_path: Path) -> None:
    """What is written for the client is what it sends."""
    rows = [("a", b"\x00one"), ("b", b"")]
    write(tmp_path / "requests.arrow", rows)
    assert list(read(tmp_path / "requests.arrow")) == rows


def test_batches_are_due_as_their_transactions_are() -> None:
    """Five thousand transactions a second, a thousand in each: five requests a second."""
    assert np.diff(due_ns(3, 5_000, 1_000)).tolist() == [200_000_000] * 2
