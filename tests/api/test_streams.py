"""Events as they are appended, over real connections to a real server, from a real broker."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from confluent_kafka import Producer
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api import live_log, streams
from api.live_log import Dropped, Listener, LiveRecord, Started
from infra import problems
from infra.broker import TopicSpec, ensure_topics, producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.problems import Problem
from infra.settings import Settings
from schemas.declare import Topic
from schemas.fleet import TRUCK_ALERTS
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS

TOPICS = (CARD_TRANSACTIONS, CARD_DECISIONS, CARD_DECISIONS.dlq, TRUCK_ALERTS)
SECONDS = 20.0


@dataclass
class Who:
    """Somebody as the identities know them."""

    tenant: str = "default"
    scopes: frozenset[str] = frozenset({"fraud:read", "fleet:read"})
    objects: dict[str, frozenset[str]] = field(default_factory=dict)

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def sees(self, kind: str) -> frozenset[str] | None:
        return self.objects.get(kind)


class Serving:
    """A server of the streams alone; `who` asks for everything, nobody where it is None."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self.who: Who | None = Who()
        self.codec = codec
        self.sender: Producer = producer(settings.kafka)
        self.numbers = 0
        app = FastAPI()
        app.state.settings = settings
        app.state.authorise = self.authorise
        app.include_router(streams.router)
        problems.install(app)
        self.app = app
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, "127.0.0.1", self.port, log_config=None, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    async def authorise(self, connection: HTTPConnection, scope: str) -> Who:
        if self.who is None:
            raise Problem(401, "Not authenticated", "Say who you are.")
        if not self.who.may(scope):
            raise Problem(403, "Not allowed", f"This needs the scope {scope}.")
        return self.who

    def publish(self, *cards: str, topic: Topic = CARD_TRANSACTIONS, **fields: Any) -> list[str]:
        """An event for each card; returns their ids when the broker has them."""
        made = []
        for card in cards:
            self.numbers += 1
            event = {
                "event_id": f"e{self.numbers}",
                "tenant": "default",
                "occurred_at": 1_762_167_600_000,
                "card_id": card,
                "amount_minor": 1999,
                "currency": "EUR",
                "merchant_id": "m-1",
                **fields,
            }
            made.append(event["event_id"])
            self.sender.produce(topic.name, self.codec.encode(topic, event), card.encode())
        assert self.sender.flush(30) == 0
        return made


@pytest.fixture(scope="module")
def serving(database: Settings, codec: Codec) -> Iterator[Serving]:
    ensure_topics(database.kafka, [TopicSpec.of(t) for t in TOPICS])
    for topic in TOPICS:
        codec.register(topic)
    serving = Serving(database, codec)
    serving.thread.start()
    until(lambda: serving.server.started)
    yield serving
    serving.server.should_exit = True
    serving.thread.join(20)


@pytest.fixture(autouse=True)
def anybody(serving: Serving) -> None:
    serving.who = Who()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass
class Sse:
    """One server-sent event."""

    event: str
    id: str
    data: Any


class Events:
    """A client of `/v1/events`."""

    def __init__(self, serving: Serving, *topics: str, last: str | None = None, **parameters: Any) -> None:
        self._client = httpx.Client(base_url=serving.url, trust_env=False, timeout=SECONDS)
        headers = {"Last-Event-ID": last} if last else {}
        request = self._client.build_request(
            "GET", "/v1/events", params={"topic": list(topics), **parameters}, headers=headers
        )
        self.answer = self._client.send(request, stream=True)
        self._lines = self.answer.iter_lines()
        self.last = ""

    def next(self) -> Sse:
        """The next event; what only moves the id is passed over."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            self.last = fields.get("id", self.last)
            if "data" in fields:
                return Sse(fields["event"], self.last, json.loads(fields["data"]))
            fields = {}
        raise EOFError

    def ids(self, count: int) -> list[str]:
        """The ids of the next records."""
        found = []
        for _ in range(count):
            one = self.next()
            assert one.event == "record", one
            found.append(one.data["event"]["event_id"])
        return found

    def __enter__(self) -> Events:
        if self.answer.status_code == 200:
            assert self.next().event == "started"
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._client.close()


def test_events_come_as_they_are_appended(serving: Serving) -> None:
    """A listener gets each event of its topic once it has come, decoded and with its place."""
    with Events(serving, "card-transactions") as events:
        assert events.answer.headers["content-type"].startswith("text/event-stream")
        ids = serving.publish("c-1", "c-1", "c-1")
        first = events.next()
        assert first.data["topic"] == "card-transactions" and first.data["key"] == "c-1"
        assert first.data["event"]["event_id"] == ids[0] and first.data["event"]["amount_minor"] == 1999
        second, third = events.next(), events.next()
        assert [second.data["offset"], third.data["offset"]] == [
            first.data["offset"] + 1,
            first.data["offset"] + 2,
        ]


def test_who_comes_back_misses_nothing_and_gets_nothing_twice(serving: Serving) -> None:
    """From the last id on: what came meanwhile in any partition, each once, and then what comes live."""
    cards = [f"card-{n}" for n in range(40)]  # over all partitions
    with Events(serving, "card-transactions") as events:
        seen = serving.publish(*cards)
        assert sorted(events.ids(25)) != sorted(seen)
        last = events.last
    taken = 25
    missed = serving.publish(*cards)
    with Events(serving, "card-transactions", last=last) as events:
        rest = events.ids(len(seen) - taken + len(missed))
        assert len(set(rest)) == len(rest) and set(missed) <= set(rest) <= set(seen) | set(missed)
        live = serving.publish(*cards)
        assert sorted(events.ids(len(live))) == sorted(live)
        where = events.last
    with Events(serving, "card-transactions", after=where) as events:
        (one,) = serving.publish("c-1")
        assert events.ids(1) == [one]


def test_more_past_than_is_kept_is_said_to_be_lost(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for more of the past than is read gets the newest of it, and the number that it lost."""
    monkeypatch.setattr(live_log, "HISTORY_RECORDS", 24)
    serving.publish(*["c-1"] * 10)
    beginning = "card-transactions@" + ".".join(["0"] * CARD_TRANSACTIONS.partitions)
    client = Events(serving, "card-transactions", after=beginning)
    started = client.next()
    client.__exit__()
    assert started.event == "started" and started.data["lost"] >= 8


def test_only_what_passes_the_filter_comes(serving: Serving) -> None:
    """`where` keeps events with that value in that field; an unknown field or topic is refused by name."""
    with Events(serving, "card-transactions", where=["currency:CHF", "amount_minor:7"]) as events:
        serving.publish("c-1", "c-2", currency="CHF")
        (wanted,) = serving.publish("c-1", currency="CHF", amount_minor=7)
        assert events.ids(1) == [wanted]
    for parameters, reason in (
        ({"topic": "card-transactions", "where": "colour:red"}, "has no field 'colour'"),
        ({"topic": "card-transactions", "where": "currency"}, "field:value"),
        ({"topic": "nothing"}, "there is no topic 'nothing'"),
        ({"topic": "card-transactions", "after": "card-transactions@1.2"}, "no id that an event came with"),
        ({"topic": "card-transactions", "after": "x" * 50}, "no id that an event came with"),
    ):
        answer = httpx.get(f"{serving.url}/v1/events", params=parameters, trust_env=False)
        assert answer.status_code == 422 and reason in answer.text, answer.text


def test_nobody_sees_what_is_not_theirs(serving: Serving) -> None:
    """Another tenant's events never come, nor another merchant's to who sees only some."""
    with Events(serving, "card-transactions") as own:
        serving.who = Who(objects={"merchant": frozenset({"m-2"})})
        with Events(serving, "card-transactions") as few:
            serving.publish("c-1", tenant="other")
            (first,) = serving.publish("c-1", merchant_id="m-1")
            serving.publish("c-1", merchant_id=None)
            (second,) = serving.publish("c-1", merchant_id="m-2")
            assert few.ids(1) == [second]
        ids = own.ids(3)
        assert ids[0] == first and ids[2] == second


@pytest.mark.parametrize(
    ("who", "topic", "status"),
    [
        (None, "card-transactions", 401),
        (Who(scopes=frozenset({"fleet:read"})), "card-transactions", 403),
        (Who(), "card-decisions-dlq", 403),
        (Who(objects={"fleet": frozenset({"f-1"})}), "truck-alerts", 403),
        (
            Who(scopes=frozenset({"ops:read"}), objects={"merchant": frozenset({"m-1"})}),
            "card-decisions-dlq",
            403,
        ),
    ],
)
def test_who_may_not_is_refused_at_both_doors(
    serving: Serving, who: Who | None, topic: str, status: int
) -> None:
    """Without a name or the scope, or where nobody can tell whose an event is: a problem, and no stream."""
    serving.who = who
    answer = httpx.get(f"{serving.url}/v1/events", params={"topic": topic}, trust_env=False)
    assert answer.status_code == status
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    with pytest.raises(InvalidStatus) as refused:
        websocket(serving, f"?topic={topic}")
    assert refused.value.response.status_code == status


def test_without_identities_nobody_is_let_in(serving: Serving) -> None:
    """A server that cannot tell who asks shows events to nobody."""
    del serving.app.state.authorise
    try:
        answer = httpx.get(f"{serving.url}/v1/events", params={"topic": "card-transactions"}, trust_env=False)
    finally:
        serving.app.state.authorise = serving.authorise
    assert answer.status_code == 503


def websocket(serving: Serving, query: str = "", **options: Any) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{serving.port}/v1/stream{query}", open_timeout=SECONDS, proxy=None, **options
    )


def receive(one: ClientConnection) -> Any:
    return json.loads(one.recv(timeout=SECONDS))


def test_a_websocket_listens_and_changes_its_mind(serving: Serving) -> None:
    """It listens to what it opened with, is told what is wrong with a wish, goes on, and takes another."""
    with websocket(serving, "?topic=card-transactions&where=currency:CHF") as one:
        assert receive(one)["type"] == "started"
        (first,) = serving.publish("c-1", currency="CHF")
        got = receive(one)
        assert got["type"] == "record" and got["event"]["event_id"] == first
        one.send(json.dumps({"subscribe": {"topics": ["nothing"]}}))
        error = receive(one)
        assert error["type"] == "error" and error["problem"]["status"] == 422
        assert receive(one)["type"] == "started"  # what was listened to goes on
        (second,) = serving.publish("c-1", currency="CHF")
        got = receive(one)
        assert got["event"]["event_id"] == second
        before = got["after"]
        (third,) = serving.publish("c-1", currency="SEK")
        one.send(json.dumps({"subscribe": {"topics": ["card-transactions"], "after": before}}))
        assert receive(one)["type"] == "started"
        assert receive(one)["event"]["event_id"] == third


def test_a_websocket_may_begin_with_nothing(serving: Serving) -> None:
    """Opened without a topic it waits for its first wish; what is no wish is answered, and it stays open."""
    with websocket(serving) as one:
        for wrong in ("no json", "[]", '{"subscribe": {"topics": "card-transactions"}}', '{"subscribe": {}}'):
            one.send(wrong)
            assert receive(one)["problem"]["status"] == 422
        one.send(b"\x00")
        assert receive(one)["problem"]["status"] == 422
        one.send(json.dumps({"subscribe": {"topics": ["card-transactions"]}}))
        assert receive(one)["type"] == "started"
        (event,) = serving.publish("c-1")
        assert receive(one)["event"]["event_id"] == event


def test_another_sites_page_opens_no_websocket(serving: Serving) -> None:
    """A browser that says it comes from elsewhere is refused; one of this server's own pages is not."""
    with pytest.raises(InvalidStatus) as refused:
        websocket(serving, "?topic=card-transactions", origin="https://elsewhere.example")
    assert refused.value.response.status_code == 403
    with websocket(serving, "?topic=card-transactions", origin=f"http://127.0.0.1:{serving.port}") as one:
        assert receive(one)["type"] == "started"


def test_who_may_not_any_more_is_dropped(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose rights are taken away is told so and ended, whether or not events come."""
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.2)
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    with Events(serving, "card-transactions") as events:
        serving.who = Who(scopes=frozenset())
        dropped = events.next()
        assert dropped.event == "dropped" and "fraud:read" in dropped.data["reason"]
        with pytest.raises(EOFError):
            events.next()


def test_an_idle_listener_keeps_its_place(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not pass the filter moves the id on, too: coming back does not read it all again."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    with websocket(serving, "?topic=card-transactions&where=currency:XTS") as one:
        started = receive(one)["after"]
        serving.publish("c-1", "c-2", "c-3")
        until(lambda: sum_of(receive(one)["after"]) == sum_of(started) + 3)


def sum_of(position: str) -> int:
    return sum(int(n) for n in position.partition("@")[2].split("."))


def test_a_slow_client_is_dropped_and_holds_up_nobody(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that takes nothing is ended, while another one on the same topic gets every event."""
    monkeypatch.setattr(streams, "SEND_SECONDS", 1.0)
    log = serving.app.state.live_log
    until(lambda: log.listening == 0)
    with socket.socket() as slow, Events(serving, "card-transactions", where="currency:NOK") as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", serving.port))
        slow.sendall(b"GET /v1/events?topic=card-transactions HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: log.listening == 2)
        for _ in range(8):
            serving.publish(*["c-1"] * 1000, terminal_id="t" * 900)
        until(lambda: log.listening == 1)
        (event,) = serving.publish("c-1", currency="NOK")
        assert quick.ids(1) == [event]


def test_a_full_house_is_said_to_be_full(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most listeners there may be, one is told to come back, and gets in when another has left."""
    until(lambda: serving.app.state.live_log.listening == 0)
    monkeypatch.setattr(streams, "MOST_LISTENERS", 1)
    with Events(serving, "card-transactions"):
        answer = httpx.get(f"{serving.url}/v1/events", params={"topic": "card-transactions"}, trust_env=False)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    until(lambda: serving.app.state.live_log.listening == 0)
    with Events(serving, "card-transactions") as events:
        assert events.answer.status_code == 200


def test_many_listen_at_once(serving: Serving) -> None:
    """Fifty connections get the same event, decoded once."""
    until(lambda: serving.app.state.live_log.listening == 0)
    before = live_log.STREAM_RECORDS.labels("card-transactions")._value.get()
    everyone = [Events(serving, "card-transactions").__enter__() for _ in range(50)]
    try:
        (event,) = serving.publish("c-1")
        assert [events.ids(1) for events in everyone] == [[event]] * 50
    finally:
        for events in everyone:
            events.__exit__()
    assert live_log.STREAM_RECORDS.labels("card-transactions")._value.get() == before + 1


def test_who_listens_is_told_when_the_server_ends(
    serving: Serving, database: Settings, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to end, the server drops its listeners at once, with the reason, instead of waiting for them."""
    other = Serving(database, codec)
    # As it is where the server runs in the main thread and takes signals itself.
    monkeypatch.setattr(signal, "getsignal", lambda _: other.server.handle_exit)
    other.thread.start()
    until(lambda: other.server.started)
    with Events(other, "card-transactions") as events:
        other.server.should_exit = True
        dropped = events.next()
        assert dropped.event == "dropped" and "ends" in dropped.data["reason"]
    other.thread.join(4)
    assert not other.thread.is_alive()


# Without a server


def record(offset: int, size: int = 100) -> LiveRecord:
    return LiveRecord(
        TopicPartition("card-transactions", 0), offset, 0, "c-1", 1, "default", {"n": offset}, size
    )


def listener(most: int = 10) -> Listener:
    one = Listener((CARD_TRANSACTIONS,), lambda _: True, None, most)
    one.begin({TopicPartition("card-transactions", 0): 0}, (), 0)
    return one


def test_what_waits_for_a_listener_is_bounded() -> None:
    """Beyond its queue, by number or by bytes, it is dropped: it still gets what waits, then the reason."""

    async def fill(one: Listener, size: int) -> tuple[list[Any], str]:
        for n in range(100):
            made = record(n, size)
            one.offer(made.at, n + 1, made)
        assert one.dropped
        taken = await one.take()
        with pytest.raises(Dropped) as reason:
            await one.take()
        return taken, str(reason.value)

    async def both() -> None:
        taken, reason = await fill(listener(), 100)
        assert isinstance(taken[0], Started) and len(taken) == 10 and "too slow" in reason
        taken, reason = await fill(listener(1_000), 3 << 20)
        assert len(taken) == 1 + 3 and "too slow" in reason

    asyncio.run(both())


def test_a_listener_gets_each_place_once() -> None:
    """An offset that was offered, or passed over, is not offered again; what is taken makes room."""

    async def run() -> None:
        one = listener()
        at = TopicPartition("card-transactions", 0)
        one.offer(at, 1, record(0))
        one.offer(at, 1, record(0))
        one.offer(at, 5, None)
        one.offer(at, 4, record(3))
        assert one.seen() is None
        taken = await one.take()
        assert [r.offset for r in taken if isinstance(r, LiveRecord)] == [0]
        assert one.seen() == {at: 5}
        for n in range(5, 40):
            one.offer(at, n + 1, record(n))
            await one.take()
        assert not one.dropped and one.seen() == {at: 40}

    asyncio.run(run())


def test_positions_are_read_as_they_were_written() -> None:
    """An id holds every partition's place, and gives it back for the topics that are asked for."""
    positions = {
        TopicPartition(t.name, n): 7 * n + len(t.name)
        for t in (CARD_TRANSACTIONS, TRUCK_ALERTS)
        for n in range(t.partitions)
    }
    text = streams.position_text(positions)
    assert streams.parse_position(text, (CARD_TRANSACTIONS, TRUCK_ALERTS)) == positions
    alone = streams.parse_position(text, (TRUCK_ALERTS,))
    assert alone == {at: n for at, n in positions.items() if at.topic == TRUCK_ALERTS.name}
