"""The console's pages over a pipeline at work, on the real broker, registry and database."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Pipelines
from tests.accounts import Accounts
from tests.accounts.at_work import Running, running
from tests.accounts.running import send
from tests.api.line import Line
from tests.console.serving import serving, streamed
from tests.signed_in import signed_in


def deposit(n: int, amount_minor: int = 5, account: str | None = None) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n,
        "account": account or f"a{n % 5}",
        "amount_minor": amount_minor,
    }


@pytest.fixture
def at_work(database: Settings, accounts: Accounts) -> Iterator[Running]:
    with running(
        database, accounts.pipeline, {accounts.processor.name: accounts.logic}, accounts.rows
    ) as found:
        yield found


@pytest.fixture
def client(database: Settings, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    with serving(database, Pipelines.of(accounts.pipeline), monkeypatch, signed_in(database)) as found:
        yield found


@pytest.fixture
def line(database: Settings) -> Iterator[Line]:
    """A line to the database that can be cut; not yet open."""
    found = Line(database.database_url)
    yield found
    found.cut()


def text(answer: httpx.Response, status: int = 200) -> str:
    """The words of a page."""
    assert answer.status_code == status, answer.text[-3000:]
    assert answer.headers["content-type"].startswith("text/html")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def refused(at_work: Running, accounts: Accounts, letters: int) -> list[int]:
    """The ids of the pipeline's dead letters, once there are so many."""
    query = "SELECT id FROM dead_letters WHERE pipeline = %s ORDER BY id"
    at_work.settle(lambda: len(at_work.ask(query, accounts.pipeline.name)) == letters)
    return [id_ for (id_,) in at_work.ask(query, accounts.pipeline.name)]


def test_the_graph_moves_without_a_reload(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """Nodes and edges stand on the page at once; the stream then tells rates that were not there before."""
    words = text(client.get("/console"))
    assert accounts.pipeline.name in words and accounts.deposits.name in words
    assert "Kafka answers" in words and "Postgres answers" in words and "Schema registry answers" in words
    name, key = accounts.pipeline.name, f"topic:{accounts.deposits.name}>processor:{accounts.processor.name}"
    rates: list[str] = []
    lags: list[str] = []
    until = time.monotonic() + 40
    for n, (_, values) in enumerate(streamed(client, "/console/live/pipelines", 40)):
        if n < 4:
            send(database, codec, accounts.deposits, [deposit(100 * n + k) for k in range(50)])
        rates += [values[f"{name}|{key}|rate"]] if f"{name}|{key}|rate" in values else []
        lags += [values[f"{name}|{key}|lag"]] if f"{name}|{key}|lag" in values else []
        if any(r not in ("–/s", "0/s") for r in rates) or time.monotonic() > until:
            break
    assert any(r not in ("–/s", "0/s") for r in rates), rates
    assert all(lag.startswith("lag ") for lag in lags)


def test_a_pipelines_page_tells_where_each_partition_stands(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """Position, end and what waits per partition; plots of each reader; the sink beside the processor."""
    send(database, codec, accounts.deposits, [deposit(n, account="a") for n in range(20)])
    at_work.settle(lambda: at_work.ask(f"SELECT count(*) FROM {accounts.ledger.name}") == [(20,)])
    path = f"/console/pipelines/{accounts.pipeline.name}"
    key = f"{accounts.processor.name}|{accounts.deposits.name}"
    until = time.monotonic() + 30
    while True:
        page = client.get(path)
        found = [
            tuple(re.findall(rf'data-live="{re.escape(f"{key}|{n}|{what}")}">([^<]*)<', page.text)[0]
                  for what in ("position", "end", "behind"))
            for n in range(3)
        ]  # fmt: skip
        if sorted(found) == [("0", "0", "0"), ("0", "0", "0"), ("20", "20", "0")]:
            break
        assert time.monotonic() < until, found
        time.sleep(0.5)
    assert page.text.count("<figure") == 6 and accounts.pipeline.sink_name in page.text
    assert text(client.get("/console/pipelines/nothing"), 404).count("There is no pipeline 'nothing'") == 1


def test_a_letter_is_found_corrected_tried_sent_and_its_row_seen(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """By cause to the letter, through the form to the topic, by its place to the row that it became."""
    send(database, codec, accounts.deposits, [deposit(1, -5), deposit(2)])
    [letter] = refused(at_work, accounts, 1)
    words = text(client.get("/console/dead-letters", params={"pipeline": accounts.pipeline.name}))
    assert "1 letter of 1 cause" in words and "the amount is not between" in words
    page = f"/console/dead-letters/{letter}"
    assert "at fault" in text(client.get(page)) and "-5" in text(client.get(page))

    form = {"f.event_id": "e1", "f.tenant": "default", "f.occurred_at": "1700000000001", "f.account": "a1"}
    astray = client.post(f"{page}/edit", data={**form, "read_as": "3#x"})
    assert astray.status_code < 500 and "give a schema" in text(astray, astray.status_code)
    wrong = client.post(f"{page}/edit", data={**form, "f.amount_minor": "five", "do": "save"})
    assert "'five' is no whole number" in text(wrong, 422)
    tried = text(client.post(f"{page}/edit", data={**form, "f.amount_minor": "50", "do": "test"}))
    assert "It fits" in tried and "Nothing was stored" in tried
    assert at_work.ask("SELECT count(*) FROM dead_letter_actions WHERE letter = %s", letter) == [(0,)]

    stored = client.post(
        f"{page}/edit", data={**form, "f.amount_minor": "50", "do": "save", "reason": "a slip"}
    )
    assert (stored.status_code, stored.headers["location"]) == (303, f"{page}?said=edited")
    assert "a slip" in text(client.get(page)) and "It can be sent" in text(client.post(f"{page}/test"))
    sent = client.post(f"{page}/redrive", data={})
    assert (sent.status_code, sent.headers["location"]) == (303, f"{page}?said=redriven")
    shown = client.get(page)
    assert "redriven" in text(shown)
    at_work.settle(lambda: at_work.ask(f"SELECT count(*) FROM {accounts.ledger.name}") == [(2,)])
    place = re.findall(
        rf'href="(/console/trace\?record=[^"]+)">{accounts.deposits.name}/\d/1?\d<', shown.text
    )
    traced = client.get(html.unescape(place[-1]))
    assert f"Row in {accounts.ledger.name}" in text(traced)
    row = html.unescape(re.findall(r'href="(/console/trace\?row=[^"]+)"', traced.text)[0])
    words = text(client.get(row))
    assert f"by {accounts.processor.name}" in words and "Answers the input" in words
    again = client.post(f"{page}/redrive", data={})
    assert "it was redriven already" in text(again, 409)
    assert text(client.get("/console/dead-letters/999999"), 404)


def test_letters_are_decided_against_and_opened_again(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """Only with a reason; one by one, or all that meet a condition, which must be named."""
    send(database, codec, accounts.deposits, [deposit(1, -5), deposit(2, -6), b"junk"])
    ids = refused(at_work, accounts, 3)
    page = f"/console/dead-letters/{ids[0]}"
    assert "Say why" in text(client.post(f"{page}/discard", data={"reason": " "}), 409)
    assert client.post(f"{page}/discard", data={"reason": "a probe"}).status_code == 303
    assert "a probe" in text(client.get(page)) and "Open it again" in text(client.get(page))
    assert client.post(f"{page}/reopen").status_code == 303
    assert "Choose which letters" in text(client.get("/console/dead-letters/selected"), 409)
    assert "Choose which" in text(
        client.post("/console/dead-letters/selected/discard", data={"reason": "x"}), 409
    )
    chosen = {"pipeline": accounts.pipeline.name, "error_class": "undecodable"}
    words = text(client.get("/console/dead-letters/selected", params=chosen))
    assert "1 open letter" in words and "1 would be held back" in words
    discarded = client.post("/console/dead-letters/selected/discard", data={**chosen, "reason": "noise"})
    assert discarded.status_code == 303
    standing = "SELECT error_class, status FROM dead_letters WHERE pipeline = %s ORDER BY 1, 2"
    assert at_work.ask(standing, accounts.pipeline.name) == [
        ("invalid", "open"),
        ("invalid", "open"),
        ("undecodable", "discarded"),
    ]


def test_a_command_is_told_as_what_whoever_started_it_does(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """A redrive of all letters runs as a command: its page names who started it, and the audit log does."""
    send(database, codec, accounts.deposits, [b"junk"])
    refused(at_work, accounts, 1)
    chosen = {"pipeline": accounts.pipeline.name, "error_class": "undecodable"}
    started = client.post("/console/dead-letters/selected/redrive", data={**chosen, "reason": "all"})
    assert (started.status_code, started.headers["location"]) == (303, "/console/jobs/dlq-redrive")
    until = time.monotonic() + 60
    while "by admin" not in (words := text(client.get("/console/jobs/dlq-redrive"))) or " runs " in words:
        assert time.monotonic() < until, words
        time.sleep(0.3)
    assert f"millrace dlq redrive --pipeline {accounts.pipeline.name}" in words
    told = at_work.ask(
        "SELECT DISTINCT subject, object, proof LIKE 'key:%% by shell:%%' FROM audit.entries"
        " WHERE action = 'dlq.redrive' AND object IN ('begins', 'ends') ORDER BY 2"
    )
    assert told == [("admin", "begins", True), ("admin", "ends", True)]


def test_hostile_bytes_stay_text(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """A script in an event's fields is shown and never run: escaped in pages, lists and streams."""
    evil = "<script>alert(1)</script>"
    send(
        database,
        codec,
        accounts.deposits,
        [{**deposit(1, -5), "account": evil, "event_id": "'\"><img src=x>"}],
    )
    [letter] = refused(at_work, accounts, 1)
    path = f"/console/live/events?topic={accounts.deposits.name}"
    with closing(streamed(client, path)) as events:
        _, told = next(events)
    for page in (
        client.get(f"/console/dead-letters/{letter}").text,
        client.get(f"/console/dead-letters/{letter}/edit").text,
        client.get("/console/trace", params={"record": evil}).text,
        client.get("/console/events", params={"topic": accounts.deposits.name, "filter": evil}).text,
        "".join(told["rows"]),
    ):
        assert "<script>alert" not in page and "<img src=x" not in page
        assert "&lt;script&gt;" in page or "&lt;img" in page


def test_live_events_come_decoded_and_filtered(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """First those of the past, then each as it is appended; bytes that are no event say why."""
    send(database, codec, accounts.deposits, [*(deposit(n, n, "a") for n in range(10)), b"junk"])
    topic = accounts.deposits.name
    seen: list[str] = []
    read = 0
    for name, data in streamed(client, f"/console/live/events?topic={topic}&filter=amount_minor%3E7", 30):
        assert name == "records"
        seen += data["rows"]
        read += data["read"]
        if len(seen) == 2:
            send(database, codec, accounts.deposits, [deposit(20, 3), deposit(21, 8), deposit(22, 9)])
        if len(seen) >= 4:
            break
    assert read >= 13
    told = [re.findall(r'"amount_minor": (\d+)', html.unescape(row)) for row in seen]
    assert sorted(told) == [["8"], ["8"], ["9"], ["9"]]
    for _, data in streamed(client, f"/console/live/events?topic={topic}&since=1h", 30):
        assert any("cannot be decoded" in row for row in data["rows"])
        break
    assert "write field=value" in text(
        client.get("/console/events", params={"topic": topic, "filter": "x"}), 422
    )
    assert "No pipeline declares" in text(client.get("/console/events", params={"topic": "nothing"}), 404)


def test_a_replay_is_planned_and_what_cannot_be_is_told(
    client: httpx.Client, database: Settings, codec: Codec, accounts: Accounts, at_work: Running
) -> None:
    """The plan says what would be read and changed and changes nothing; a wrong range names the remedy."""
    send(database, codec, accounts.deposits, [deposit(n) for n in range(10)])
    at_work.settle(lambda: at_work.ask(f"SELECT count(*) FROM {accounts.ledger.name}") == [(10,)])
    asked = {"pipeline": accounts.pipeline.name}
    words = text(client.get("/console/replays/plan", params=asked))
    assert f"{accounts.deposits.name} 10 3" in words and "may be swapped" in words
    assert f"millrace replay run {accounts.pipeline.name}" in words
    assert "is no time" in text(client.get("/console/replays/plan", params={**asked, "since": "soon"}), 409)
    assert "is no rate" in text(client.get("/console/replays/plan", params={**asked, "rate": "fast"}), 409)
    assert "Choose a pipeline" in text(client.get("/console/replays/plan"), 409)
    assert "There is no replay yet" in text(client.get("/console/replays"))
    assert at_work.ask("SELECT count(*) FROM replay_runs WHERE pipeline = %s", accounts.pipeline.name) == [
        (0,)
    ]
    assert text(client.get("/console/replays/77"), 409).count("There is no replay 77") == 1


def test_without_kafka_the_rest_stays(
    database: Settings, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that need no broker answer as ever and name it; those that need it say so at once."""
    environ = {**database.environ, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    with connect(database.database_url) as connection:
        connection.execute(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, error_class, error,'
            " value, append_time) VALUES ('c', %s, 0, 1, %s, 'invalid', 'for a test', '\\x00', now())",
            (accounts.deposits.name, accounts.pipeline.name),
        )
    with serving(
        Settings(environ), Pipelines.of(accounts.pipeline), monkeypatch, signed_in(database)
    ) as client:
        client.get("/console")
        until = time.monotonic() + 30
        while "Kafka is away" not in (words := text(client.get("/console"))):
            assert time.monotonic() < until, words[:500]
            time.sleep(0.5)
        assert "for a test" in text(client.get("/console/dead-letters?pipeline=" + accounts.pipeline.name))
        began = time.monotonic()
        words = text(client.get("/console/trace", params={"record": f"{accounts.deposits.name}/0/1"}), 503)
        assert "Kafka" in words and time.monotonic() - began < 2
        assert client.get("/v1/pipelines").status_code == 200


def test_without_the_database_the_rest_stays(
    database: Settings, codec: Codec, accounts: Accounts, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was known stays known while Postgres is away, and nobody else gets in; events flow; pages that need
    it say so, and come back by themselves."""
    signed_in(database)
    environ = {**database.environ, "DATABASE_URL": line.url, "DATABASE_READER_URL": line.url}
    line.open()
    send(database, codec, accounts.deposits, [deposit(1)])
    with serving(
        Settings(environ), Pipelines.of(accounts.pipeline), monkeypatch, signed_in(database)
    ) as client:
        assert client.get("/console/schemas").status_code == 200
        line.cut()
        words = text(client.get("/console/dead-letters"), 503)
        assert "Postgres does not answer" in words
        other = {"X-API-Key": f"mk_{'a' * 12}_{'b' * 43}"}
        with httpx.Client(base_url=client.base_url, trust_env=False, headers=other) as stranger:
            assert "Nobody can tell now who you are" in text(stranger.get("/console/schemas"), 503)
        for name, data in streamed(client, f"/console/live/events?topic={accounts.deposits.name}"):
            assert name == "records" and len(data["rows"]) == 1
            break
        line.open()
        until = time.monotonic() + 30
        while client.get("/console/dead-letters").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.5)


def test_without_the_registry_a_letter_shows_its_bytes(
    database: Settings, codec: Codec, accounts: Accounts, at_work: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no schema is shown; what needs one is told to wait."""
    send(database, codec, accounts.deposits, [deposit(1, -5)])
    [letter] = refused(at_work, accounts, 1)
    environ = {**database.environ, "SCHEMA_REGISTRY_URL": "http://127.0.0.1:9"}
    with serving(
        Settings(environ), Pipelines.of(accounts.pipeline), monkeypatch, signed_in(database)
    ) as client:
        client.get("/console")
        words = text(client.get(f"/console/dead-letters/{letter}"))
        assert "registry does not answer" in words and "000000 00 00" in words
        assert text(client.get(f"/console/dead-letters/{letter}/edit"), 503)
