"""Events as they are appended, over real connections to a real server, from a real broker."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from confluent_kafka import Producer
from fastapi import FastAPI
from starlette.datastructures import Headers
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api import live_log, streams
from api.live_log import Dropped, Listener, LiveRecord, Started
from infra import hardening, problems, web
from infra.broker import TopicSpec, ensure_topics, producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.identity import secured
from infra.identity.principal import Principal
from infra.problems import Problem
from infra.settings import Settings
from infra.telemetry import web as telemetry
from infra.telemetry.health import Health
from schemas.declare import Topic
from schemas.fleet import TRUCK_ALERTS
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS
from schemas.orders import ORDER_LOG
from tests.signed_in import signed_in

TOPICS = (CARD_TRANSACTIONS, CARD_DECISIONS, CARD_DECISIONS.dlq, TRUCK_ALERTS, ORDER_LOG)
SECONDS = 20.0


def somebody(
    *scopes: str, tenant: str = "default", objects: dict[str, frozenset[str]] | None = None
) -> Principal:
    """Somebody as the identities know them."""
    held = frozenset(scopes or {"fraud:read", "fleet:read"})
    return Principal("anna", "person", tenant, held, objects or {}, "token:1")


class Serving:
    """A server of the streams alone, hardened as the API is; `who` asks for everything, nobody where it is
    None."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self.who: Principal | None = somebody()
        self.codec = codec
        self.sender: Producer = producer(settings.kafka)
        self.numbers = 0
        app = FastAPI(lifespan=streams.live)
        app.state.settings = settings
        app.state.ending = threading.Event()
        app.state.authenticator = self
        app.include_router(streams.router)
        problems.install(app)
        telemetry.install(app, "streams-test", Health(), nothing)
        limits = {"MILLRACE_LIMITS": "stream=5000/s anonymous=5000/s", "MILLRACE_REQUEST_S": "2"}
        hardening.install(app, Settings({**settings.environ, **limits, "MILLRACE_MAX_UNDER_WAY": "20"}), "t")
        secured.install(app)
        self.app = app
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, "127.0.0.1", self.port, log_config=None, timeout_graceful_shutdown=5)
        self.server = web._Server(config)
        self.thread = threading.Thread(target=self.server.run)

    async def principal(self, headers: Headers) -> Principal:
        """In the authenticator's place."""
        if self.who is None:
            raise Problem(401, "Not authenticated", "Say who you are.")
        return self.who

    def told(self, after: int = 0) -> list[tuple[Any, ...]]:
        """What the audit log holds beyond its first so many: by whom, action, route, outcome, and of what."""
        assert self.app.state.audit.written(SECONDS)
        with psycopg.connect(self.app.state.settings.database_url) as connection:
            found = connection.execute(
                "SELECT subject, action, object, outcome, details::json ->> 'object' FROM audit.entries"
                " WHERE action NOT LIKE 'audit.%' ORDER BY at, chain, sequence"
            ).fetchall()
        return found[after:]

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


async def nothing() -> dict[str, str | None]:
    return {}


@pytest.fixture(scope="module")
def serving(database: Settings, codec: Codec) -> Iterator[Serving]:
    signed_in(database)
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
    serving.who = somebody()


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
        serving.who = somebody(objects={"merchant": frozenset({"m-2"})})
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
        (somebody("fleet:read"), "card-transactions", 403),
        (somebody("audit:read"), "card-transactions", 403),
        (somebody(), "card-decisions-dlq", 403),
        (somebody("orders:read", objects={"customer": frozenset({"u-1"})}), "order-log", 403),
        (somebody("ops:read", objects={"merchant": frozenset({"m-1"})}), "card-decisions-dlq", 403),
        (somebody("ops:read", objects={"fleet": frozenset({"f-1"})}), "card-decisions-dlq", 403),
    ],
)
def test_who_may_not_is_refused_at_both_doors(
    serving: Serving, who: Principal | None, topic: str, status: int
) -> None:
    """Without a name or the scope, or where nobody can tell whose an event is: a problem, and no stream."""
    serving.who = who
    answer = httpx.get(f"{serving.url}/v1/events", params={"topic": topic}, trust_env=False)
    assert answer.status_code == status
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    with pytest.raises(InvalidStatus) as refused:
        websocket(serving, f"?topic={topic}")
    assert refused.value.response.status_code == status
    assert refused.value.response.headers["content-type"] == problems.MEDIA_TYPE


def test_a_fleet_sees_its_own_alerts(serving: Serving) -> None:
    """Who sees one fleet gets its events; those of before events named their fleet are nobody's to them."""
    serving.who = somebody("fleet:read", objects={"fleet": frozenset({"f-2"})})
    written = json.loads((TRUCK_ALERTS.schema_path.parent / "examples" / "truck-alerts.json").read_text())[0]
    with Events(serving, "truck-alerts") as events:
        for fleet in ("f-1", None, "f-2"):
            event = {**written, "event_id": f"of {fleet}", "tenant": "default", "fleet_id": fleet}
            serving.sender.produce("truck-alerts", serving.codec.encode(TRUCK_ALERTS, event), b"t-1")
        assert serving.sender.flush(30) == 0
        assert events.ids(1) == ["of f-2"]


@pytest.mark.parametrize(("tenant", "seen"), [("default", ["", "default"]), ("other", ["other"])])
def test_letters_of_whom_nobody_knows_are_for_the_home_tenant(
    serving: Serving, tenant: str, seen: list[str]
) -> None:
    """A dead letter of which no tenant could be read is shown to those who run the instance alone."""
    serving.who = somebody("ops:read", tenant=tenant)
    written = json.loads(
        (CARD_DECISIONS.dlq.schema_path.parent / "examples" / "dead-letter.json").read_text()
    )[0]
    with Events(serving, "card-decisions-dlq") as events:
        for owner in ("", "default", "other"):
            event = {**written, "key": None, "value": None, "event_id": f"of {owner}", "tenant": owner}
            data = serving.codec.encode(CARD_DECISIONS.dlq, event)
            serving.sender.produce("card-decisions-dlq", data, b"k")
        assert serving.sender.flush(30) == 0
        assert events.ids(len(seen)) == [f"of {owner}" for owner in seen]


def test_openings_are_told_to_the_audit_log(serving: Serving) -> None:
    """Each opening of a stream is one entry with its topics, also a wish of later and a refusal."""
    before = len(serving.told())
    with Events(serving, "card-transactions") as events:
        serving.publish("c-1", "c-2")
        events.ids(2)
    with websocket(serving, "?topic=card-transactions&topic=truck-alerts") as one:
        assert receive(one)["type"] == "started"
        one.send(json.dumps({"subscribe": {"topics": ["truck-alerts"]}}))
        assert receive(one)["type"] == "started"
        one.send(json.dumps({"subscribe": {"topics": ["order-log"]}}))
        assert receive(one)["problem"]["status"] == 403
    assert serving.told(before) == [
        ("anna", "read", "GET /v1/events", "done", "card-transactions"),
        ("anna", "read", "WEBSOCKET /v1/stream", "done", "card-transactions truck-alerts"),
        ("anna", "read", "WEBSOCKET /v1/stream", "done", "truck-alerts"),
        ("anna", "denied", "WEBSOCKET /v1/stream", "denied", "order-log"),
    ]


def test_streams_are_neither_cut_nor_counted_as_under_way(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the time of a request, and more of them than requests may be under way: both kinds go on, and
    their hours are not taken for a slow answer."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.2)
    took = telemetry.HTTP_SECONDS.labels("streams-test", "GET", "/v1/events")
    before = took._sum.get()
    with ExitStack() as opened:
        everyone = [opened.enter_context(Events(serving, "card-transactions")) for _ in range(15)]
        sockets = [opened.enter_context(websocket(serving, "?topic=card-transactions")) for _ in range(15)]
        time.sleep(2.5)  # longer than MILLRACE_REQUEST_S
        (event,) = serving.publish("c-1")
        assert [events.ids(1) for events in everyone] == [[event]] * 15
        for one in sockets:
            while (got := receive(one))["type"] != "record":
                pass
            assert got["event"]["event_id"] == event
    until(lambda: serving.app.state.live_log.listening == 0)
    assert took._sum.get() < before + 15 * 1.0


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


def test_a_websocket_that_asks_for_nothing_is_ended(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open connections that listen to nothing would be without a number: after a while each is told so."""
    monkeypatch.setattr(streams, "WISH_SECONDS", 0.2)
    with websocket(serving) as one:
        assert "nothing was asked for" in receive(one)["reason"]
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=SECONDS)


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
        serving.who = somebody("audit:read")
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


def test_a_thousand_mostly_idle_connections_fit(serving: Serving) -> None:
    """Five hundred of each kind: all hear of an event, and others are answered beside them."""
    until(lambda: serving.app.state.live_log.listening == 0)

    async def hear(opened: asyncio.Semaphore, ready: asyncio.Queue[None], n: int) -> str:
        if n % 2:
            async with opened:
                address = (
                    f"ws://127.0.0.1:{serving.port}/v1/stream?topic=card-transactions&where=currency:DKK"
                )
                one = await connect_async(address, open_timeout=SECONDS, proxy=None)
            async with one:
                await ready.put(None)
                async for text in one:
                    if (got := json.loads(text))["type"] == "record":
                        return str(got["event"]["event_id"])
        else:
            async with opened:
                reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
                writer.write(
                    b"GET /v1/events?topic=card-transactions&where=currency:DKK HTTP/1.1\r\nHost: x\r\n\r\n"
                )
                await reader.readuntil(b"event: started")
            await ready.put(None)
            await reader.readuntil(b'"event_id":"')
            found = await reader.readuntil(b'"')
            writer.close()
            await writer.wait_closed()
            return found.decode().rstrip('"')
        raise EOFError

    async def everyone() -> list[str]:
        opened, ready = asyncio.Semaphore(15), asyncio.Queue[None]()
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            tasks = [group.create_task(hear(opened, ready, n)) for n in range(1_000)]
            for _ in tasks:
                await ready.get()
            assert serving.app.state.live_log.listening == 1_000
            async with httpx.AsyncClient(trust_env=False) as client:
                for path, status in (("/health/live", 200), ("/v1/events?topic=nothing", 422)):
                    assert (await client.get(f"{serving.url}{path}")).status_code == status
            await asyncio.to_thread(serving.publish, "c-1", currency="DKK")
        return [task.result() for task in tasks]

    assert set(asyncio.run(everyone())) == {f"e{serving.numbers}"}
    until(lambda: serving.app.state.live_log.listening == 0)


def test_who_listens_is_told_when_the_server_ends(serving: Serving, database: Settings, codec: Codec) -> None:
    """Told to end, the server drops its listeners at once, with the reason, instead of waiting for them."""
    other = Serving(database, codec)
    other.thread.start()
    until(lambda: other.server.started)
    with Events(other, "card-transactions") as events:
        other.server.handle_exit(signal.SIGTERM, None)
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
