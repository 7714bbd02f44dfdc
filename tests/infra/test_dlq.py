"""Dead letters in an operator's hands, on a real broker, registry and database."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from typer.testing import CliRunner

from infra.broker import TopicSpec, admin, ensure_topics, producer
from infra.cli import build
from infra.codec import Codec
from infra.dlq import edits, letters, view
from infra.dlq.letters import DlqError, Selection
from infra.dlq.redrive import HEADER, LOCK, RedriveInterrupted, redrive
from infra.moments import moment
from infra.postgres import Connection, connect
from infra.reconcile import reconcile
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from schemas.declare import Pipelines, Topic
from schemas.fraud import CARD_TRANSACTIONS
from tests.accounts import Accounts
from tests.accounts.at_work import running

Event = dict[str, Any]


def deposit(n: int, account: str = "a", amount_minor: int = -5) -> Event:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n,
        "account": account,
        "amount_minor": amount_minor,
    }


class Desk:
    """An operator's desk: the example pipeline without its processes, and letters laid upon it."""

    def __init__(self, settings: Settings, codec: Codec, accounts: Accounts, connection: Connection) -> None:
        self.settings, self.codec, self.accounts, self.connection = settings, codec, accounts, connection
        self.pipelines = Pipelines.of(accounts.pipeline)
        self._offsets = iter(range(1_000_000))

    def refuse(self, value: Event | bytes | None, topic: Topic | None = None, **columns: Any) -> int:
        """Store a dead letter; returns its id."""
        topic = topic or self.accounts.deposits
        row = {
            "consumer": self.accounts.processor.name,
            "topic": topic.name,
            "partition": 0,
            "offset": next(self._offsets),
            "pipeline": self.accounts.pipeline.name,
            "input_id": value["event_id"] if isinstance(value, dict) else None,
            "error_class": "invalid",
            "field": "amount_minor",
            "error": "the amount is not between 1 and 9; correct it",
            "key": b"a",
            "value": self.codec.encode(topic, value) if isinstance(value, dict) else value,
            "append_time": datetime.now(UTC),
            **columns,
        }
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("%s" for _ in row)
        [(id_,)] = self.connection.execute(
            f"INSERT INTO dead_letters ({names}) VALUES ({marks}) RETURNING id", tuple(row.values())
        ).fetchall()
        return int(str(id_))

    def letter(self, id_: int) -> letters.Letter:
        (found,) = letters.load(self.connection, [id_])
        return found

    def edit(self, ids: list[int], *changes: edits.Change, **how: Any) -> list[edits.Edit]:
        found = letters.load(self.connection, ids)
        made = [edits.propose(self.codec, self.pipelines, x, changes, **how) for x in found]
        assert edits.store(self.connection, made, "tests", "because") == []
        return made

    def redrive(self, ids: list[int], **how: Any) -> dict[int, str]:
        """Redrive; returns where each letter stands, or why it was held back."""
        outcomes = redrive(self.settings, self.pipelines, ids, actor="tests", **how)
        return {o.letter: o.place or o.problem or "" for o in outcomes}

    def topic(self, topic: Topic | None = None) -> list[tuple[bytes | None, Event, str]]:
        """Everything on the topic: key, event, redrive header."""
        topic = topic or self.accounts.deposits
        client, wanted = admin(self.settings.kafka), partitions([topic])
        return [
            (m.key(), self.codec.decode(topic, m.value()).event, dict(m.headers() or ())[HEADER].decode())
            for messages in read(self.settings.kafka, starts(client, wanted), ends(client, wanted))
            for m in messages
        ]

    def actions(self, id_: int) -> list[str]:
        return [step["action"] for step in letters.history(self.connection, self.letter(id_))]


@pytest.fixture
def desk(database: Settings, codec: Codec, accounts: Accounts) -> Iterator[Desk]:
    with connect(database.database_url) as connection:
        yield Desk(database, codec, accounts, connection)


def test_an_edited_letter_takes_its_effect_once_however_often_it_is_redriven(
    desk: Desk, database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Refused by processor or sink, edited, redriven twice: one row each, and the accounts balance."""
    p = producer(database.kafka)
    for event in (deposit(1), deposit(2, amount_minor=13), deposit(3, amount_minor=7)):
        p.produce(accounts.deposits.name, codec.encode(accounts.deposits, event), event["account"])
    p.produce(accounts.deposits.name, b"no event", b"a")
    assert p.flush(20) == 0
    logics = {accounts.processor.name: accounts.logic}
    with running(database, accounts.pipeline, logics, accounts.rows) as pipeline:
        pipeline.settle(
            lambda: (
                pipeline.ask("SELECT count(*) FROM dead_letters WHERE pipeline = %s", accounts.pipeline.name)
                == [(3,)]
            )
        )
        found = letters.find(desk.connection, Selection(pipeline=accounts.pipeline.name))
        by_class = {x.error_class: x for x in found}
        assert set(by_class) == {"invalid", "constraint", "undecodable"}
        ids = [x.id for x in found]
        refused = [by_class["invalid"].id]
        desk.edit(refused, edits.setting(["amount_minor=5"]))
        desk.edit([by_class["constraint"].id], edits.setting(["amount_minor=14"]))
        first = desk.redrive(ids)
        assert sum("/" in place for place in first.values()) == 2
        again = desk.redrive(ids)
        assert all("already" in again[i] for i in ids if i != by_class["undecodable"].id)
        rows = f"SELECT event_id, amount_minor FROM {accounts.ledger.name} ORDER BY event_id"
        pipeline.settle(lambda: len(pipeline.ask(rows)) == 3)
        assert pipeline.ask(rows) == [("e1", 5), ("e2", 14), ("e3", 7)]
        assert reconcile(database, accounts.pipeline).in_both == 0
    # The record that is no event is still accounted for as a dead letter, discarded or not.
    letters.discard(desk.connection, [by_class["undecodable"].id], "tests", "a probe")
    account = reconcile(database, accounts.pipeline)
    assert account.problems == ()
    assert (account.records, account.acknowledged, account.in_sink, account.dead_letters) == (5, 4, 3, 1)
    assert account.balanced


def test_a_letter_refused_again_is_a_new_letter_that_the_old_one_leads_to(
    desk: Desk, database: Settings, accounts: Accounts
) -> None:
    """Redriven unchanged, a record fails again elsewhere; the first letter's history names the second."""
    first = desk.refuse(deposit(1))
    with running(database, accounts.pipeline, {accounts.processor.name: accounts.logic}, accounts.rows) as p:
        desk.redrive([first])
        query = "SELECT id FROM dead_letters WHERE pipeline = %s AND id <> %s"
        p.settle(lambda: len(p.ask(query, accounts.pipeline.name, first)) == 1)
        [(second,)] = p.ask(query, accounts.pipeline.name, first)
    (*_, redriven) = letters.history(desk.connection, desk.letter(first))
    assert (redriven["action"], redriven["refused_again"]) == ("redriven", second)
    assert (desk.letter(first).status, desk.letter(second).status) == ("redriven", "open")


DIES = """
import os, sys
from itertools import count
from infra.dlq import redrive
from infra.settings import Settings
from schemas.declare import Pipelines
from tests.accounts import Accounts
prefix, where, ids = sys.argv[1], sys.argv[2], [int(i) for i in sys.argv[3:]]
def die(*_): os.kill(os.getpid(), 9)
if where == "nothing sent":
    redrive._Sender._produce = die
elif where == "some sent":
    produce, n = redrive._Sender._produce, count()
    def some(self, *arguments):
        produce(self, *arguments)
        if next(n) == 3:
            self._producer.flush(20)
            die()
    redrive._Sender._produce = some
elif where == "all sent":
    redrive._redriven = die
redrive.CHUNK_RECORDS = 5
redrive.redrive(Settings.load(), Pipelines.of(Accounts(prefix).pipeline), ids, actor="killed")
"""


@pytest.mark.parametrize("where", ["nothing sent", "some sent", "all sent"])
def test_a_killed_redrive_is_finished_by_the_next_one(desk: Desk, where: str) -> None:
    """kill -9 before, amid and after producing: each letter stands on its topic exactly once in the end."""
    ids = [desk.refuse(deposit(n, f"a{n % 4}", 5)) for n in range(12)]
    prefix = desk.accounts.deposits.name.removesuffix("-deposits")
    killed = subprocess.run(
        [sys.executable, "-c", DIES, prefix, where, *map(str, ids)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        timeout=60,
    )
    assert killed.returncode == -9
    assert len([i for i in ids if desk.letter(i).status == "sending"]) == 5
    places = desk.redrive(ids)
    sent = desk.topic()
    assert Counter(event["event_id"] for _, event, _ in sent) == Counter(f"e{n}" for n in range(12))
    assert all(desk.letter(i).status == "redriven" and "/" in places[i] for i in ids)
    assert (
        desk.actions(ids[0])
        == {
            "nothing sent": ["send", "unsent", "send", "redriven"],
            "some sent": ["send", "redriven"],
            "all sent": ["send", "redriven"],
        }[where]
    )


def test_two_redrives_do_not_run_at_once(desk: Desk) -> None:
    """While one redrive runs another is refused, and nothing is sent twice."""
    id_ = desk.refuse(deposit(1, amount_minor=5))
    desk.connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    with pytest.raises(DlqError, match="another redrive runs"):
        desk.redrive([id_])
    assert (desk.topic(), desk.letter(id_).status) == ([], "open")


def test_a_redrive_keeps_to_its_rate_and_to_the_order_of_the_log(desk: Desk) -> None:
    """30 letters at 15 a second take over a second, and one key's come in the order of their offsets."""
    ids = [desk.refuse(deposit(n, amount_minor=5)) for n in range(30)]
    started = time.monotonic()
    desk.redrive(letters.ids_of(desk.connection, Selection(ids=tuple(reversed(ids)))), rate=15)
    assert time.monotonic() - started >= 1.0
    assert [event["event_id"] for _, event, _ in desk.topic()] == [f"e{n}" for n in range(30)]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_that_sends_nothing_is_refused(desk: Desk, rate: float) -> None:
    """A rate of zero or less is refused in a sentence, before anything is marked."""
    id_ = desk.refuse(deposit(1, amount_minor=5))
    with pytest.raises(DlqError, match="sends nothing"):
        desk.redrive([id_], rate=rate)
    assert desk.letter(id_).status == "open"


def test_what_its_readers_are_sure_to_refuse_is_held_back(desk: Desk) -> None:
    """No event, a time ahead, a topic that nobody declares, a tombstone: not sent, and said why."""
    ahead = int(datetime.now(UTC).timestamp() * 1000) + 3_600_000
    ids = {
        "schema id": desk.refuse(b"\x07 no event"),
        "ahead": desk.refuse({**deposit(1), "occurred_at": ahead}),
        "no pipeline declares": desk.refuse(b"x", topic=desk.accounts.deposits.dlq),
        "tombstone": desk.refuse(None),
    }
    held = desk.redrive(list(ids.values()))
    assert [reason for reason, id_ in ids.items() if reason not in held[id_]] == []
    assert all(desk.letter(i).status == "open" and desk.actions(i) == [] for i in ids.values())


def test_a_redrive_without_a_broker_is_finished_when_there_is_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unacknowledged letters are neither lost nor taken for sent; the next redrive sends them once."""
    monkeypatch.setattr("infra.dlq.redrive.ACKNOWLEDGE_MS", 1_000)
    ids = [desk.refuse(deposit(n, amount_minor=5)) for n in range(3)]
    away = Settings({**desk.settings.environ, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    with pytest.raises(RedriveInterrupted, match="has not acknowledged 3 letters"):
        redrive(away, desk.pipelines, ids, actor="tests")
    assert {desk.letter(i).status for i in ids} == {"sending"}
    desk.redrive(ids)
    assert [event["event_id"] for _, event, _ in desk.topic()] == ["e0", "e1", "e2"]


def test_a_record_that_the_broker_refuses_stays_open(desk: Desk) -> None:
    """A record larger than the broker takes is told, open again, and holds none of the others up."""
    large, small = desk.refuse(deposit(1, "x" * 1_100_000, 5)), desk.refuse(deposit(2, amount_minor=5))
    outcome = desk.redrive([large, small])
    assert "the broker refuses it" in outcome[large] and "/" in outcome[small]
    assert (desk.letter(large).status, desk.actions(large)) == ("open", ["send", "unsent"])


def test_a_redriven_record_goes_under_its_events_key(desk: Desk) -> None:
    """A record that was refused for its key is sent under the right one, with the header."""
    id_ = desk.refuse(deposit(1, account="right", amount_minor=5), key=b"wrong")
    desk.redrive([id_])
    [(key, event, header)] = desk.topic()
    assert (key, event["account"], header.split("/")[0]) == (b"right", "right", str(id_))


def test_an_edit_by_fields_keeps_the_refused_bytes_and_can_be_taken_back(desk: Desk) -> None:
    """The letter's own bytes stay, the last edit's are sent, and --original sends its own again."""
    id_ = desk.refuse(deposit(1))
    before = desk.letter(id_)
    (made,) = desk.edit([id_], edits.setting(["amount_minor=5", "account=b"]))
    assert made.changed == {"account": ("a", "b"), "amount_minor": (-5, 5)}
    letter = desk.letter(id_)
    assert (letter.value, letter.key, letter.to_key, letter.edited) == (before.value, b"a", b"b", True)
    assert desk.codec.decode(desk.accounts.deposits, letter.to_value).event["amount_minor"] == 5
    assert edits.revert(desk.connection, [id_], "tests", None) == [id_]
    assert desk.letter(id_).to_value == before.value
    assert desk.actions(id_) == ["edit", "revert"]


def test_a_transform_is_checked_letter_by_letter(desk: Desk) -> None:
    """An expression edits those it fits; where it fails or gives no event of the topic, it says so."""
    ids = [desk.refuse(deposit(n, amount_minor=n - 2)) for n in range(4)]
    change = edits.expression("event | {'amount_minor': 60 // event['amount_minor']}")
    made_of = desk.edit(ids, change)
    assert [e.after["amount_minor"] if e.after else None for e in made_of] == [-30, -60, None, 60]
    assert "ZeroDivisionError" in str(made_of[2].problem)
    assert [desk.letter(i).edited for i in ids] == [True, True, False, True]
    for text, reason in (
        ("event | {'colour': 'red'}", "colour"),
        ("{'event_id': 'x'}", "missing"),
        ("event | {'amount_minor': 'much'}", "amount_minor"),
        ("None", "no event"),
        ("open('/etc/passwd').read()", "NameError"),
        ("event.clear()", "no event"),
    ):
        (made,) = desk.edit([ids[0]], edits.expression(text))
        assert reason in str(made.problem), text
        assert made.before == desk.codec.decode(desk.accounts.deposits, desk.letter(ids[0]).to_value).event
    with pytest.raises(DlqError, match="no Python expression"):
        edits.expression("event = 1")


def test_bytes_of_another_schema_are_read_as_it_and_written_with_the_newest(desk: Desk) -> None:
    """A record under a schema id that its readers refuse is read by the right one and made to fit."""
    old = {
        "type": "record",
        "name": "OldDeposit",
        "namespace": "millrace.accounts",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "account", "type": "string"},
            {"name": "euros", "type": "double"},
        ],
    }
    client = SchemaRegistryClient({"url": desk.settings.schema_registry_url})
    old_id = client.register_schema(f"{desk.accounts.deposits.name}-old", Schema(json.dumps(old), "AVRO"))
    client.__exit__()
    body = b"\x04e7\x02a" + struct.pack("<d", 12.5)
    foreign, unknown, bare = (
        desk.refuse(b"\x00" + number.to_bytes(4, "big") + body if number else body, error_class="undecodable")
        for number in (old_id, 999_999, 0)
    )
    change = edits.expression(
        "{'event_id': event['id'], 'tenant': 'default', 'occurred_at': 1_700_000_000_000,"
        " 'account': event['account'], 'amount_minor': round(event['euros'] * 100)}"
    )
    (made,) = desk.edit([foreign], change)
    assert made.before == {"id": "e7", "account": "a", "euros": 12.5}
    for id_ in (unknown, bare):
        (made,) = desk.edit([id_], change)
        assert "--read-as" in str(made.problem)
        desk.edit([id_], change, read_as=old_id)
    desk.redrive([foreign, unknown, bare])
    assert [event["amount_minor"] for _, event, _ in desk.topic()] == [1250, 1250, 1250]


def test_a_whole_event_stands_in_for_bytes_that_are_none(desk: Desk) -> None:
    """Random bytes are replaced by an event given as JSON."""
    id_ = desk.refuse(b"\xff\xfe", error_class="undecodable")
    (made,) = desk.edit([id_], whole=edits.from_json(json.dumps(deposit(1, amount_minor=5))))
    assert (made.problem, made.before) == (None, None)
    assert "/" in desk.redrive([id_])[id_]


def test_only_open_letters_are_edited_discarded_or_redriven(desk: Desk) -> None:
    """A discarded letter is neither edited nor redriven until it is reopened; a redriven one never again."""
    id_ = desk.refuse(deposit(1, amount_minor=5))
    assert letters.discard(desk.connection, [id_], "ann", "a test") == [id_]
    assert letters.discard(desk.connection, [id_], "ann", "again") == []
    assert "only open" in str(desk.edit([id_], edits.setting(["amount_minor=1"]))[0].problem)
    assert "discarded" in desk.redrive([id_])[id_]
    assert letters.reopen(desk.connection, [id_], "ben", None) == [id_]
    assert "/" in desk.redrive([id_])[id_]
    assert letters.discard(desk.connection, [id_], "ann", "too late") == []
    assert "only open" in str(desk.edit([id_])[0].problem)
    steps = letters.history(desk.connection, desk.letter(id_))
    assert [(s["action"], s["actor"]) for s in steps] == [
        ("discard", "ann"),
        ("reopen", "ben"),
        ("send", "tests"),
        ("redriven", "tests"),
    ]
    assert steps[0]["note"] == "a test"


def test_the_audit_is_only_ever_added_to(desk: Desk) -> None:
    """Neither UPDATE nor DELETE nor TRUNCATE of the audit, nor the deletion of a letter that has one."""
    id_ = desk.refuse(deposit(1))
    letters.discard(desk.connection, [id_], "ann", "a test")
    for statement in (
        "UPDATE dead_letter_actions SET actor = 'nobody'",
        "DELETE FROM dead_letter_actions",
        "TRUNCATE dead_letter_actions",
        "DELETE FROM dead_letters",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ForeignKeyViolation)):
            desk.connection.execute(statement.encode())
    assert desk.actions(id_) == ["discard"]


def test_letters_are_selected_by_every_condition(desk: Desk) -> None:
    """Class, time, field, tenant, text of the reason, event id and standing each leave out the others."""
    now = datetime.now(UTC)
    name = desk.accounts.pipeline.name
    wanted = {
        "error_class": desk.refuse(deposit(0), error_class="late"),
        "field": desk.refuse(deposit(1), field="account"),
        "tenant": desk.refuse(deposit(2), tenant="acme"),
        "match": desk.refuse(deposit(3), error="an Odd reason"),
        "input_id": desk.refuse(deposit(4)),
        "consumer": desk.refuse(deposit(5), consumer="somebody"),
        "until": desk.refuse(deposit(6), created_at=now - timedelta(days=3)),
        "topic": desk.refuse(b"x", topic=desk.accounts.deposits.dlq),
    }
    values: dict[str, Any] = {
        "error_class": "late",
        "field": "account",
        "tenant": "acme",
        "match": "odd REASON",
        "input_id": "e4",
        "consumer": "somebody",
        "until": moment("2d", now),
        "topic": desk.accounts.deposits.dlq.name,
    }
    for condition, id_ in wanted.items():
        selection = Selection(pipeline=name, **{condition: values[condition]})
        assert letters.ids_of(desk.connection, selection) == [id_], condition
    everything = letters.ids_of(desk.connection, Selection(pipeline=name))
    since = letters.ids_of(desk.connection, Selection(pipeline=name, since=moment("2d", now)))
    assert set(everything) - set(since) == {wanted["until"]}
    letters.discard(desk.connection, [wanted["match"]], "tests", "no")
    assert wanted["match"] not in letters.ids_of(desk.connection, Selection(pipeline=name))
    discarded = Selection(pipeline=name, statuses=("discarded",))
    assert letters.ids_of(desk.connection, discarded) == [wanted["match"]]


def test_causes_count_letters_that_differ_in_numbers_only(desk: Desk) -> None:
    """A thousand letters of one cause are one line, whatever offsets and values their reasons name."""
    for n in range(5):
        desk.refuse(deposit(n), error=f"{n} bytes follow the event 'e{n}'; send one event a record")
    desk.refuse(deposit(9), error="something else")
    found = letters.causes(desk.connection, Selection(pipeline=desk.accounts.pipeline.name))
    assert [c.letters for c in found] == [5, 1]


def test_a_letter_cannot_steer_a_terminal(desk: Desk) -> None:
    """Escape sequences in a reason, a field or bytes are shown, not obeyed."""
    evil = "\x1b[2J\x07"
    id_ = desk.refuse(deposit(1, account=f"a{evil}"), error=f"no {evil}", consumer=evil, key=evil.encode())
    letter = desk.letter(id_)
    shown = list(view.lines(letter, edits.read(desk.codec, desk.accounts.deposits, letter.value), None, []))
    shown += view.lines(letter, edits.Content(None, f"no {evil}"), None, [])
    assert all(c.isprintable() or c == "\n" for line in shown for c in line)
    assert any("\\x1b[2J" in line for line in shown) and any("1b 5b 32 4a" in line for line in shown)


def test_the_command_line_shows_first_and_does_with_apply(
    desk: Desk, database: Settings, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """list, show, edit, redrive and discard through `millrace`: dry without --apply, exact with it."""
    topic = CARD_TRANSACTIONS
    ensure_topics(database.kafka, [TopicSpec.of(topic)])
    codec.register(topic)
    example = json.loads((topic.schema_path.parent / "examples" / f"{topic.name}.json").read_text())[0]
    card = {
        "pipeline": "fraud",
        "consumer": "fraud-scoring",
        "field": "currency",
        "error": "no ISO 4217 code",
    }
    bad = [
        desk.refuse({**example, "event_id": f"x{n}", "currency": "eur"}, topic=topic, **card)
        for n in range(3)
    ]
    junk = desk.refuse(b"\x01junk", topic=topic, **{**card, "error_class": "undecodable"})

    command, runner = build(), CliRunner()

    def run(*arguments: str, code: int = 0) -> str:
        done = runner.invoke(command, ["dlq", *arguments])
        assert done.exit_code == code, done.output
        return done.output

    listed = json.loads(run("list", "-p", "fraud", "--json"))
    assert [x["id"] for x in listed] == [junk, *reversed(bad)]
    assert "currency" in run("list", "-p", "fraud", "--class", "invalid", "--since", "1h")
    assert "4 dead letters of 2 causes" in run("list", "--summary", "-p", "fraud")
    shown = run("show", str(bad[0]))
    assert '▶ currency: "eur"' in shown and "no ISO 4217 code" in shown
    assert "Confluent's Avro format" in run("show", f"{topic.name}/0/{desk.letter(junk).offset}")
    assert json.loads(run("show", str(bad[0]), "--json"))["event"]["mcc"] == "5411"

    assert "name letters" in run("redrive", code=2)
    upper = (
        "edit",
        "-p",
        "fraud",
        "-c",
        "invalid",
        "--transform",
        "event | {'currency': event['currency'].upper()}",
    )
    assert '"eur" → "EUR"' in run(*upper)
    assert not desk.letter(bad[0]).edited
    monkeypatch.setenv("VISUAL", "sed -i s/eur/USD/")
    assert '"eur" → "USD"' in run("edit", str(bad[0]))
    monkeypatch.setenv("VISUAL", "false")
    assert "did not end well" in run("edit", str(bad[0]), code=1)
    assert "say how to edit" in run("edit", "-p", "fraud", code=1)
    assert "edited: 3" in run(*upper, "--apply", "--by", "ann")
    assert '"eur" → "EUR"' in run("show", str(bad[0]))
    assert "3 letters would be sent (0 unchanged), 1 held back" in run("redrive", "-p", "fraud")
    assert desk.topic(topic) == []
    assert "redriven: 3 to card-transactions; held back: 1" in run(
        "redrive", "-p", "fraud", "--apply", code=1
    )
    assert "held back: it was redriven already" in run("redrive", str(bad[0]), "--apply", code=1)
    assert sorted(event["event_id"] for _, event, _ in desk.topic(topic)) == ["x0", "x1", "x2"]
    assert "by ann: --transform event" in run("show", str(bad[0]))

    assert "Missing option" in run("discard", str(junk), code=2)
    run("edit", str(bad[0]), "--original")
    assert "1 letters would be discarded" in run("discard", str(junk), "--reason", "a probe")
    discarding = ("discard", str(junk), str(bad[0]), "--reason", "a probe", "--apply")
    assert "discarded: 1; 1 were not open" in run(*discarding)
    assert run("list", "-p", "fraud") == "dead letters: 0\n"
    assert "open again: 1" in run("reopen", str(junk))
    assert "there is no dead letter 999999" in run("show", "999999", code=1)
    assert "neither an id nor a place" in run("show", "card/x", code=1)
    assert "is none of" in run("list", "--status", "gone", code=2)
    file = tmp_path / "event.json"
    file.write_text(json.dumps(example))
    assert "would be edited" in run("edit", str(junk), "--file", str(file))
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert "the database does not answer" in run("list", code=1)
