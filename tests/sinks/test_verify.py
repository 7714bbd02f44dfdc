"""Verifying a real pipeline: clean when it is, and each way of not being so is named with its place."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from infra.broker import admin, producer
from infra.codec import Codec
from infra.log_span import Bound
from infra.postgres import connect
from infra.settings import Settings
from infra.topic_log import ends, partitions
from infra.verification import Report
from sinks.verify import verify
from tests.accounts import Accounts
from tests.accounts.running import drained, running_processor, running_sink, send

START = 1_700_000_000_000


def deposit(n: int, account: str | None = None, amount_minor: int = 100) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": START + n * 1000,
        "account": account or f"a{n % 7}",
        "amount_minor": amount_minor + n,
    }


class Bank:
    """The example pipeline with its processor and sink run over some deposits, and then stopped."""

    def __init__(
        self, settings: Settings, codec: Codec, accounts: Accounts, *, by_column: bool = True
    ) -> None:
        self.settings, self.codec, self.accounts = settings, codec, accounts
        self._rows = accounts.rows if by_column else accounts.row_by_row

    def run(self, events: list[dict[str, Any] | bytes]) -> None:
        send(self.settings, self.codec, self.accounts.deposits, events)
        with (
            running_processor(self.settings, self.accounts) as of_processor,
            running_sink(self.settings, self.accounts) as of_sink,
        ):
            drained(self.settings, self.accounts, of_processor, of_sink)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with connect(self.settings.database_url) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def verify(self, first: str | None = None, last: str | None = None) -> Report:
        bounds = [Bound.parse(text) if text else None for text in (first, last)]
        return verify(self.settings, self.accounts.pipeline, self._rows, bounds[0], bounds[1])


def wrong(report: Report) -> dict[str, tuple[int, str | None]]:
    """The checks that fail, by the beginning of their name."""
    return {c.name.split(":")[0]: (c.wrong, c.first) for c in report.checks if c.wrong}


def of(report: Report, topic: str) -> dict[str, int]:
    """How a topic's offsets divide, without what is zero."""
    [found] = [o for o in report.offsets if o.topic == topic]
    names = ("in_sink", "duplicates", "dead_letters", "skipped", "waiting", "decided", "expired", "wrong")
    return {n: getattr(found, n) for n in names if getattr(found, n)}


@pytest.fixture(params=[False, True], ids=["by row", "by column"])
def bank(database: Settings, codec: Codec, accounts: Accounts, request: pytest.FixtureRequest) -> Bank:
    """300 deposits; 20 of them come twice, 3 are refused by the processor, 1 by the sink, 2 are no event."""
    bank = Bank(database, codec, accounts, by_column=request.param)
    events: list[dict[str, Any] | bytes] = [deposit(n) for n in range(300)]
    events += [deposit(n) for n in range(100, 120)]
    events += [deposit(1000 + n, amount_minor=-5000) for n in range(3)]
    events += [{**deposit(2000), "amount_minor": 13}]
    events += [b"random", random.Random(1).randbytes(100)]
    bank.run(events)
    return bank


def test_what_agrees_is_clean_and_every_offset_has_its_place(bank: Bank) -> None:
    """In the sink, a duplicate, a dead letter: each offset once, and sums are the same on both sides."""
    report = bank.verify()
    assert wrong(report) == {}
    assert report.clean and report.waiting == 0
    deposits, balances = bank.accounts.deposits.name, bank.accounts.balances.name
    assert of(report, deposits) == {"in_sink": 300, "duplicates": 20, "dead_letters": 6}
    assert of(report, balances) == {"in_sink": 300, "duplicates": 20, "dead_letters": 1}
    [sums] = [c for c in report.checks if "amount_minor" in c.name]
    total = sum(100 + n for n in range(300))
    assert (sums.compared, sums.note) == (300, f"{total:,} = {total:,}")
    assert all(c.compared for c in report.checks)


def place(bank: Bank, event_id: str) -> str:
    """Where the result that the ledger's row came from stands."""
    [(partition, offset)] = bank.execute(
        f"SELECT source_partition, source_offset FROM {bank.accounts.ledger.name} WHERE event_id = %s",
        event_id,
    )
    return f"{bank.accounts.balances.name}/{partition} offset {offset}"


def test_a_lost_row_is_named_by_its_record_on_both_topics(bank: Bank) -> None:
    """A row deleted behind the sink's back: its result and its input are named with place and id."""
    ledger = bank.accounts.ledger.name
    at = place(bank, "e42")
    bank.execute(f"DELETE FROM {ledger} WHERE event_id = 'e42'")
    found = wrong(bank.verify())
    assert found.pop(ledger) == (1, f"{at} has no row in {ledger}")
    times, sentence = found.pop(bank.accounts.deposits.name)
    assert times == 1 and "(tenant default, id e42) is neither in" in str(sentence)
    assert found == {}


def test_a_changed_value_is_named(bank: Bank) -> None:
    """A row with another amount than its record: found by the record, and the sums differ."""
    ledger, deposits = bank.accounts.ledger.name, bank.accounts.deposits.name
    at = place(bank, "e42")
    bank.execute(f"UPDATE {ledger} SET amount_minor = amount_minor + 1 WHERE event_id = 'e42'")
    found = wrong(bank.verify())
    assert found.pop(ledger) == (1, f"{at} has a row with other values in {ledger}")
    times, sentence = found.pop(f"{deposits}.amount_minor = {ledger}.amount_minor")
    assert times == 1 and "id e42) has another amount_minor than its row" in str(sentence)
    total = sum(100 + n for n in range(300))
    assert f"{total:,} = {total + 1:,}" in str(sentence)
    assert found == {}


def test_an_effect_that_was_undone_is_named(bank: Bank) -> None:
    """A latest value set back to an older record's: the newer record should have won."""
    latest = bank.accounts.latest.name
    bank.execute(f"UPDATE {latest} SET version = version - 1, source_offset = 0 WHERE account = 'a3'")
    times, sentence = wrong(bank.verify())[latest]
    assert times >= 1 and sentence is not None and latest in sentence


def test_a_row_from_nowhere_is_named(bank: Bank) -> None:
    """A row that no record gave: named by the place that it claims, within the log and beyond it."""
    ledger = bank.accounts.ledger.name
    insert = (
        f"INSERT INTO {ledger} SELECT %s, occurred_at, account, amount_minor, balance_minor, limits_version,"
        f" source_partition, %s FROM {ledger} WHERE event_id = 'e42'"
    )
    bank.execute(insert, "ghost", 0)
    times, sentence = wrong(bank.verify())[ledger]
    assert times == 1 and "which gives no such row" in str(sentence)
    bank.execute(f"DELETE FROM {ledger} WHERE event_id = 'ghost'")
    bank.execute(insert, "ghost", 1_000_000)
    times, sentence = wrong(bank.verify())[ledger]
    assert times == 1 and "offset 1000000 as its source, which the sink has not reached" in str(sentence)


def test_an_id_twice_is_named(bank: Bank) -> None:
    """One id under two event times, which the ledger's key allows: a doubled effect."""
    ledger = bank.accounts.ledger.name
    bank.execute(
        f"INSERT INTO {ledger} SELECT event_id, occurred_at + interval '1 second', account, amount_minor,"
        f" balance_minor, limits_version, source_partition, source_offset FROM {ledger}"
        " WHERE event_id = 'e42'"
    )
    found = wrong(bank.verify())
    assert found[f"{ledger}.event_id"] == (1, f"id e42 stands in 2 rows of {ledger}")


def test_a_lost_dead_letter_is_named(bank: Bank) -> None:
    """A dead letter that vanished: its record is nowhere, and its copy on the topic says so."""
    deposits = bank.accounts.deposits
    [(partition, offset)] = bank.execute(
        "DELETE FROM dead_letters WHERE topic = %s AND input_id = 'e1001' RETURNING partition, \"offset\"",
        deposits.name,
    )
    found = wrong(bank.verify())
    at = f"{deposits.name}/{partition} offset {offset}"
    assert f"{at} (tenant default, id e1001) is neither in" in str(found.pop(deposits.name)[1])
    times, sentence = found.pop("dead letters")
    assert times == 1 and f"refused {at}, but table dead_letters has no such row" in str(sentence)
    assert found == {}


def test_a_gap_and_an_overlap_of_range_records_are_named(bank: Bank) -> None:
    """Offsets that no range record covers, or two cover, are named with the consumer and the partition."""
    sink, topic = bank.accounts.pipeline.sink_name, bank.accounts.balances.name
    [(partition, first, end)] = bank.execute(
        "DELETE FROM range_records WHERE (consumer, topic, partition, from_offset) = ("
        " SELECT consumer, topic, partition, from_offset FROM range_records"
        " WHERE consumer = %s AND topic = %s ORDER BY records_total DESC LIMIT 1)"
        " RETURNING partition, from_offset, to_offset",
        sink,
        topic,
    )
    times, sentence = wrong(bank.verify())["range records"]
    assert times == 1
    assert f"has passed {topic}/{partition} offsets {first} to {end - 1} without a range record" in str(
        sentence
    )
    bank.execute(
        "INSERT INTO range_records SELECT %s, %s, %s, n, %s, 0, 0, 0, 0, 1"
        " FROM unnest(ARRAY[%s::bigint, %s::bigint]) AS n",
        sink, topic, partition, end, first, first + 1,
    )  # fmt: skip
    report = bank.verify()
    sentences = [c.first for c in report.checks if c.name.startswith("range records") and c.wrong]
    assert f"{sink} has two range records for {topic}/{partition} offset {first + 1}" in str(sentences[0])
    assert "0 records, where the log has" in str(sentences[1])


def test_range_records_and_log_must_name_the_same_ids(bank: Bank) -> None:
    """A range record whose sum of ids is not the log's own is named."""
    bank.execute(
        "UPDATE range_records SET ids_hash = ids_hash # 1"
        " WHERE consumer = %s AND topic = %s AND from_offset = 0 AND partition ="
        " (SELECT min(partition) FROM range_records WHERE consumer = %s AND topic = %s)",
        *(bank.accounts.pipeline.sink_name, bank.accounts.balances.name) * 2,
    )
    times, sentence = wrong(bank.verify())["range records"]
    assert times == 1 and "other event ids than the log holds" in str(sentence)


def test_what_is_on_its_way_is_not_lost(bank: Bank) -> None:
    """Decided and not yet stored, or not even decided: waiting, not wrong, and no longer once drained."""
    deposits, balances = bank.accounts.deposits.name, bank.accounts.balances.name
    send(bank.settings, bank.codec, bank.accounts.deposits, [deposit(n) for n in range(5000, 5020)])
    report = bank.verify()
    assert report.clean and of(report, deposits)["waiting"] == 20
    with running_processor(bank.settings, bank.accounts) as errors:
        decided(bank, errors)
    report = bank.verify()
    assert report.clean, list(report.problems())
    assert (of(report, deposits)["waiting"], of(report, balances)["waiting"]) == (20, 20)
    bank.run([])
    report = bank.verify()
    assert report.clean and report.waiting == 0
    assert of(report, deposits)["in_sink"] == 320


def test_a_stretch_is_verified_by_itself(bank: Bank) -> None:
    """Between two offsets, or from a time on: what lies outside is neither read nor blamed."""
    ledger, balances = bank.accounts.ledger.name, bank.accounts.balances.name
    bank.execute(f"DELETE FROM {ledger} WHERE source_offset = 3")
    assert bank.verify("4").clean and bank.verify(None, "3").clean
    report = bank.verify("2", "5")
    assert not report.clean
    assert sum(of(report, balances).values()) == 9 and of(report, balances)["wrong"] == 3
    assert bank.verify("2100-01-01").clean
    assert not bank.verify("2020-01-01T00:00:00Z", "2100-01-01").clean


def test_another_log_is_refused_before_anything_else(bank: Bank) -> None:
    """A position beyond the log's end stops the verification with that sentence alone."""
    bank.execute(
        "UPDATE checkpoints SET next_offset = 999 WHERE consumer = %s AND topic = %s AND partition = 0",
        bank.accounts.pipeline.sink_name,
        bank.accounts.balances.name,
    )
    report = bank.verify()
    times, sentence = wrong(report)["positions"]
    assert times == 1 and "stands at 999 in" in str(sentence) and len(report.checks) == 1


def test_transactions_of_other_producers_are_declared_skips(bank: Bank) -> None:
    """Markers and aborted records are offsets without a record; the committed ones are verified."""
    deposits = bank.accounts.deposits
    config = {"transactional.id": f"{deposits.name}-others"}
    others = producer(bank.settings.kafka, **config)
    others.init_transactions(20)
    for commit, events in ((True, range(7000, 7003)), (False, range(7100, 7102))):
        others.begin_transaction()
        for n in events:
            others.produce(deposits.name, bank.codec.encode(deposits, deposit(n, "a")), "a")
        others.flush(10)
        others.commit_transaction(20) if commit else others.abort_transaction(20)
    bank.run([])
    report = bank.verify()
    assert report.clean, list(report.problems())
    assert of(report, deposits.name) == {"in_sink": 303, "duplicates": 20, "dead_letters": 6, "skipped": 4}


def test_it_may_run_while_the_pipeline_works(bank: Bank) -> None:
    """Looked at again and again under load: never anything wrong, and at the end everything in the sink."""
    reports = []
    with (
        running_processor(bank.settings, bank.accounts) as errors,
        running_sink(bank.settings, bank.accounts),
    ):
        for start in range(10_000, 30_000, 4_000):
            events: list[dict[str, Any] | bytes] = [deposit(n) for n in range(start, start + 4_000)]
            send(bank.settings, bank.codec, bank.accounts.deposits, events)
            reports.append(bank.verify())
        drained(bank.settings, bank.accounts, errors)
    assert [list(r.problems()) for r in reports] == [[]] * 5
    assert any(r.waiting for r in reports)
    report = bank.verify()
    assert report.clean and report.waiting == 0
    assert of(report, bank.accounts.deposits.name)["in_sink"] == 20_300


def decided(bank: Bank, errors: list[BaseException], seconds: float = 30) -> None:
    """Wait until the processor stands at the end of its topic."""
    topic = bank.accounts.deposits
    end = sum(ends(admin(bank.settings.kafka), partitions([topic])).values())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        [(position,)] = bank.execute(
            "SELECT sum(next_offset) FROM checkpoints WHERE consumer = %s", bank.accounts.processor.name
        )
        if position == end:
            return
        assert not errors
        time.sleep(0.1)
    pytest.fail("the processor has not come to the end")
