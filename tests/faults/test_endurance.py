"""Processors and sinks are killed over and over while millions of records pass (`make endurance`)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest
from confluent_kafka import Message

from infra.broker import admin, producer
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.prepare import prepare
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS
from schemas.pipelines import PIPELINES
from tests.faults.conftest import Services
from tests.faults.rig import DRAIN_SECONDS, Process, until
from tests.instance import millrace

KILLS = int(os.environ.get("MILLRACE_FAULTS_KILLS", "200"))
RECORDS = int(os.environ.get("MILLRACE_FAULTS_RECORDS", "2000000"))
SECONDS_A_KILL = 3.5
CARDS = 20_000
EVENT_MS = 500
MEMBERS = 2
COMMAND_SECONDS = 3_600


def transactions(seed: int, codec: Codec, ids: set[str]) -> Iterator[tuple[str, bytes]]:
    """Key and value of each record, one in two hundred sent again; adds each event's id to `ids`."""
    rng = random.Random(seed)
    start_ms = time.time_ns() // 1_000_000 - RECORDS * EVENT_MS
    again: list[tuple[str, bytes]] = []
    for n in range(RECORDS):
        if again and rng.random() < 0.005:
            yield again.pop()
            continue
        event = dict.fromkeys(CARD_TRANSACTIONS.fields)
        event |= {
            "event_id": f"e-{seed}-{n}",
            "tenant": "default",
            "occurred_at": start_ms + n * EVENT_MS,
            "card_id": f"card-{rng.randrange(CARDS)}",
            "amount_minor": int(rng.lognormvariate(8, 1)),
            "currency": "EUR",
            "channel": "ONLINE",
        }
        ids.add(str(event["event_id"]))
        record = str(event["card_id"]), codec.encode(CARD_TRANSACTIONS, event)
        if rng.random() < 0.005:
            again.append(record)
        yield record


class Sender:
    """Sends every record at an even rate; `acknowledged` counts what the broker has confirmed."""

    def __init__(self, settings: Settings, codec: Codec, seed: int, seconds: float) -> None:
        self.acknowledged = 0
        self.ids: set[str] = set()
        self.failed: list[str] = []
        self._seed, self._codec, self._seconds = seed, codec, seconds
        self._producer = producer(settings.kafka)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last acknowledgement."""
        self._thread.join(2 * self._seconds + 600)
        assert not self._thread.is_alive() and not self.failed, self.failed[:3]
        assert self.acknowledged == RECORDS

    def _send(self) -> None:
        began = time.monotonic()
        for n, (key, value) in enumerate(transactions(self._seed, self._codec, self.ids)):
            if n % 1_000 == 0:
                ahead = self._seconds * n / RECORDS - (time.monotonic() - began)
                self._producer.poll(max(0.0, ahead))
            while True:
                try:
                    self._producer.produce(CARD_TRANSACTIONS.name, value, key, on_delivery=self._delivered)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        self._producer.flush(300)

    def _delivered(self, error: object, _: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed.append(str(error))


@pytest.mark.endurance
@pytest.mark.timeout(3 * 3600)
def test_hundreds_of_kills(faulty: Services, tmp_path: Path, seed: int) -> None:
    """After 200 kills in 2 million records `verify` is clean, and a run undisturbed gives the same rows."""
    settings, rng = faulty.settings, random.Random(seed)
    prepare(settings, PIPELINES, progress=print)
    seconds = KILLS * SECONDS_A_KILL
    with ExitStack() as stack:
        processes = []
        for role, n in product(("streams", "sinks"), range(MEMBERS)):
            environ = {**settings.environ, "MILLRACE_INSTANCE": str(n)}
            log = tmp_path / f"{role}-{n}.log"
            processes.append(Process([role, "fraud"], environ, log))
            stack.callback(processes[-1].end)
        sender = Sender(settings, faulty.codec, seed, seconds)
        began = time.monotonic()
        for moment in sorted(rng.uniform(0, seconds) for _ in range(KILLS)):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            rng.choice(processes).kill()
            print(f"\r{time.monotonic() - began:5.0f} s, {_kills(processes)} kills", end="", flush=True)
        while (missed := KILLS - _kills(processes)) > 0:  # whoever was down already
            print(f"\n{missed} came upon a process that was down; they are repeated")
            rng.choice(processes).kill()
            time.sleep(SECONDS_A_KILL)
        sender.finish()
        sent_s = time.monotonic() - began
        with connect(settings.database_url) as connection:
            until(lambda: _rows(connection, seed) >= len(sender.ids), DRAIN_SECONDS, "the ledger is whole")
            drained_s = time.monotonic() - began - sent_s
            assert _rows(connection, seed) == len(sender.ids)
        _says(settings, "verify", "fraud", "--settled")
        outputs = _outputs(settings, faulty.codec)
        assert outputs.keys() == sender.ids, "an input has no decision, or a decision no input"
        run = json.loads(_says(settings, "replay", "run", "fraud", "--versions", "as-decided", "--json"))
        _says(settings, "replay", "diff", str(run["run"]), "--exit-code")
    again = sum(outputs.values()) - len(outputs)
    print(
        f"{_kills(processes)} kills in {sent_s:.0f} s; {RECORDS} records, {len(sender.ids)} events, {again}"
        f" decisions repeated byte for byte; drained {drained_s:.1f} s after the last record"
    )


def _kills(processes: Sequence[Process]) -> int:
    return sum(len(p.exits) for p in processes)


def _rows(connection: Connection, seed: int) -> int:
    counted = connection.execute(
        "SELECT count(*) FROM card_ledger WHERE starts_with(event_id, %s)", [f"e-{seed}-"]
    ).fetchone()
    assert counted is not None
    return int(counted[0])


def _says(settings: Settings, *command: str) -> str:
    done = millrace(settings, *command, seconds=COMMAND_SECONDS)
    print(f"millrace {' '.join(command)}\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _outputs(settings: Settings, codec: Codec) -> Counter[str]:
    """How often each input was answered; a second answer must be the first one's bytes."""
    client, wanted = admin(settings.kafka), partitions([CARD_DECISIONS])
    times: Counter[str] = Counter()
    digests: dict[str, bytes] = {}
    for messages in read(settings.kafka, starts(client, wanted), ends(client, wanted)):
        for message in messages:
            value = bytes(message.value() or b"")
            event_id = codec.decode(CARD_DECISIONS, value).event["event_id"]
            digest = hashlib.blake2b(value, digest_size=16).digest()
            assert digests.setdefault(event_id, digest) == digest, f"{event_id} was decided in two ways"
            times[event_id] += 1
    return times
