"""Whatever the database's owner does to the ledger, `verify` names the first offending row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.columns import arrow_schema
from infra.identity.keyring import KeyRing
from infra.ledger.chain import hash_of, seal_of
from infra.ledger.erasure import CHAIN, ErasureError, erase, sign
from infra.ledger.heads import now
from infra.ledger.verify import Account, Kind, rows_of
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER
from sinks.fraud import ROWS
from sinks.table_check import TableCheck
from tests.infra.ledger.conftest import Ledger, decision

LAST = 20
"""Rows of each of the three chains; their heads were signed after 8, 14 and all."""


@pytest.fixture
def written(ledger: Ledger) -> Ledger:
    for first, last in ((0, 24), (24, 42), (42, 60)):
        ledger.send([decision(n) for n in range(first, last)])
        ledger.store()
        ledger.sign()
    assert ledger.verify().clean
    return ledger


@contextmanager
def as_owner(ledger: Ledger) -> Iterator[Callable[..., None]]:
    """What the owner can do who takes the protection off, and puts it on again; undone in the end."""
    connection = ledger.connection
    with connection.transaction(force_rollback=True):
        for table in ("card_ledger", "ledger_erasures"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
            connection.execute(f"GRANT ALL ON {table} TO CURRENT_USER".encode())

        def run(statement: str, *values: Any) -> None:
            assert connection.execute(statement.encode(), values or None).rowcount > 0

        yield run


def found(ledger: Ledger) -> Account:
    """What `verify` says once the owner has put trigger and grants back."""
    connection = ledger.connection
    connection.execute("ALTER TABLE card_ledger ENABLE TRIGGER USER")
    connection.execute("REVOKE UPDATE, DELETE, TRUNCATE ON card_ledger FROM CURRENT_USER")
    return ledger.verify()


def the(ledger: Ledger) -> tuple[Kind, int | None]:
    """The one finding."""
    (finding,) = found(ledger).findings
    return finding.kind, finding.sequence


def rehash(ledger: Ledger, partition: int, begin: int) -> None:
    """All hashes from a place on computed anew, as somebody who knows how would do it."""
    before = bytes(32)
    for row in list(rows_of(ledger.connection, CARD_LEDGER, partition)):
        assert row.seal is not None and row.sequence is not None and row.hash is not None
        if row.sequence >= begin:
            seal = row.seal if row.key is None else seal_of(row.key, row.personal)
            digest = hash_of(before, row.sequence, seal, row.rest)
            ledger.connection.execute(
                "UPDATE card_ledger SET chain_hash = %s, seal = %s WHERE source_partition = %s"
                " AND chain_sequence = %s",
                (digest, seal, partition, row.sequence),
            )
            before = digest
        else:
            before = row.hash
    ledger.connection.execute("UPDATE ledger_chains SET hash = %s WHERE partition = %s", (before, partition))


ROW = "WHERE source_partition = 1 AND chain_sequence = %s"


def test_an_edit_of_any_column_is_found(written: Ledger) -> None:
    """Each column of the ledger, personal ones and the chain's own included, at one row."""
    types = dict(
        written.ask(
            "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = 'card_ledger'::regclass AND a.attnum > 0 AND NOT a.attisdropped"
        )
    )
    altered = {
        "text": "{} || 'x'", "_text": "{} || 'x'::text", "int4": "{} + 1", "int8": "{} + 1",
        "_int8": "{} || 1::bigint",
        "float8": "{} + 0.125", "bool": "NOT {}", "timestamptz": "{} + interval '1 us'",
        "bytea": "set_byte({0}, 0, 255 - get_byte({0}, 0))",
    }  # fmt: skip
    written.connection.execute("SELECT 1")
    for column, kind in types.items():
        if column == "chain_sequence":
            continue
        with as_owner(written) as run:
            for (name,) in written.ask(
                "SELECT conname FROM pg_constraint WHERE conrelid = 'card_ledger'::regclass AND contype = 'c'"
            ):
                written.connection.execute(f'ALTER TABLE card_ledger DROP CONSTRAINT "{name}"'.encode())
            new = altered[kind].format(f"coalesce({column}, {_something(kind)})")
            run(f"UPDATE card_ledger SET {column} = {new} {ROW}", 9)
            findings = [(f.kind, f.sequence) for f in found(written).findings]
        if column == "source_partition":
            # Gone from one chain, twice in another.
            assert (Kind.MISSING, 9) in findings and len(findings) == 2
        elif column == "chain_hash":
            assert findings == [(Kind.ALTERED, 9)]
        else:
            assert findings == [(Kind.ALTERED, 9)], column


def _something(kind: str) -> str:
    return {
        "text": "''", "_text": "'{}'", "_int8": "'{}'", "bool": "false", "timestamptz": "now()",
        "bytea": "'\\x00'",
    }.get(kind, "0")  # fmt: skip


@pytest.mark.parametrize("k", [1, 2, 9, LAST])
def test_deletion_and_cutting_off_name_the_row(written: Ledger, k: int) -> None:
    """A row that is gone is named by its place, at the end as in the middle; so is one with a value less."""
    with as_owner(written) as run:
        run(f"DELETE FROM card_ledger {ROW}", k)
        assert the(written) == ((Kind.CUT if k == LAST else Kind.MISSING), k)
    with as_owner(written) as run:
        run("DELETE FROM card_ledger WHERE source_partition = 1 AND chain_sequence >= %s", k)
        assert the(written) == (Kind.CUT, k)
    with as_owner(written) as run:
        # With all that the database knows of its chain.
        run("DELETE FROM card_ledger WHERE source_partition = 1 AND chain_sequence >= %s", k)
        run("UPDATE ledger_chains SET sequence = %s WHERE partition = 1", k - 1)
        assert the(written) == (Kind.CUT, k)
    with as_owner(written) as run:
        run(f"UPDATE card_ledger SET customer_id = NULL {ROW}", 3)
        assert the(written) == (Kind.ALTERED, 3)


def test_reordering_names_the_row(written: Ledger) -> None:
    """Two rows that changed their places in the chain, with or without their hashes."""
    swap = (
        "UPDATE card_ledger SET chain_sequence = CASE chain_sequence WHEN 5 THEN 11 ELSE 5 END"
        " WHERE source_partition = 1 AND chain_sequence IN (5, 11)"
    )
    with as_owner(written) as run:
        run(swap)
        finding = found(written).findings[0]
        assert (finding.kind, finding.sequence) == (Kind.MOVED, 5)
        assert finding.event_id == decision(1 + 3 * 4)["event_id"]
    with as_owner(written) as run:
        run(swap)
        rehash(written, 1, 5)
        assert the(written) == (Kind.REWRITTEN, 1)


def test_a_chain_computed_anew_does_not_fit_its_heads(written: Ledger) -> None:
    """Edited, deleted or inserted with all hashes after it: the heads say between which rows to look."""
    with as_owner(written) as run:
        run(f"UPDATE card_ledger SET decision = 'APPROVE', risk = 0.0001 {ROW}", 10)
        rehash(written, 1, 10)
        assert the(written) == (Kind.REWRITTEN, 9)
    with as_owner(written) as run:
        run(f"DELETE FROM card_ledger {ROW}", 10)
        run("UPDATE card_ledger SET chain_sequence = chain_sequence - 1"
            " WHERE source_partition = 1 AND chain_sequence > 10")  # fmt: skip
        rehash(written, 1, 10)
        assert the(written) == (Kind.REWRITTEN, 9)
    with as_owner(written) as run:
        # Another card, with a seal that fits it.
        run(f"UPDATE card_ledger SET card_id = 'another' {ROW}", 16)
        rehash(written, 1, 16)
        assert the(written) == (Kind.REWRITTEN, 15)


def test_rows_that_the_sink_did_not_write_are_found(written: Ledger) -> None:
    """Inserted without a place, in a partition that has a chain; or with a place behind the last."""
    copied = (
        "CREATE TEMP TABLE forged ON COMMIT DROP AS SELECT * FROM card_ledger"
        " WHERE source_partition = 1 AND chain_sequence = 7"
    )
    for change, kind in (
        ("chain_sequence = NULL, chain_hash = NULL, seal = NULL, seal_key = NULL", Kind.UNCHAINED),
        ("chain_sequence = 21", None),
        ("chain_sequence = 7", Kind.TWICE),
    ):
        with as_owner(written) as run:
            run(copied)
            run(f"UPDATE forged SET event_id = 'forged', source_offset = 500, {change}")
            run("INSERT INTO card_ledger SELECT * FROM forged")
            findings = found(written).findings
            # Behind the last row its hash does not fit: it was made for another place.
            assert [f.kind for f in findings] == [kind or Kind.ALTERED]
    with as_owner(written) as run:
        run("UPDATE card_ledger SET chain_sequence = NULL, chain_hash = NULL, seal = NULL, seal_key = NULL"
            " WHERE source_partition = 1")  # fmt: skip
        run("DELETE FROM ledger_chains WHERE partition = 1")
        assert the(written)[0] is Kind.UNCHAINED


def test_a_chain_that_is_gone_is_found(written: Ledger) -> None:
    """All rows of a partition, or the whole ledger."""
    with as_owner(written) as run:
        run("DELETE FROM card_ledger WHERE source_partition = 2")
        assert the(written) == (Kind.CUT, 1)
    with as_owner(written) as run:
        run("DELETE FROM card_ledger")
        run("DELETE FROM ledger_chains")
        assert [f.kind for f in found(written).findings] == [Kind.CUT] * 3


def test_what_no_head_covers_is_said(written: Ledger) -> None:
    """Rows behind the last signed head can be cut off unseen; how many there are is told."""
    written.send([decision(n) for n in range(60, 66)], 1)
    written.store()
    assert written.verify().uncovered == 6
    with as_owner(written) as run:
        run("DELETE FROM card_ledger WHERE source_partition = 1 AND chain_sequence > 20")
        assert found(written).clean
    with as_owner(written) as run:
        run(f"UPDATE card_ledger SET late_ms = late_ms + 1 {ROW}", 20)
        assert the(written) == (Kind.ALTERED, 20)


def test_protection_that_is_off_is_found(written: Ledger) -> None:
    """A trigger that does not fire, on the table or one of its partitions, and grants to change rows."""
    [(partition,)] = written.ask("SELECT tableoid::regclass::text FROM card_ledger LIMIT 1")
    for table in ("card_ledger", partition):
        with written.connection.transaction(force_rollback=True):
            written.connection.execute(
                f"ALTER TABLE ONLY {table} DISABLE TRIGGER card_ledger_append_only".encode()
            )
            assert Kind.GUARD in {f.kind for f in written.verify().findings}
    for right in ("DELETE", "UPDATE (risk)"):
        with written.connection.transaction(force_rollback=True):
            written.connection.execute(f"GRANT {right} ON card_ledger TO millrace_reader".encode())
            (finding,) = written.verify().findings
            assert finding.kind is Kind.GUARD and "millrace_reader" in finding.sentence


def test_heads_cannot_be_changed_unseen(written: Ledger) -> None:
    """A head edited, taken out of the middle, or signed by another key."""
    path = written.heads.path
    lines = path.read_text().splitlines()
    told = json.loads(lines[4])
    for changed in (
        [*lines[:4], json.dumps({**told, "sequence": told["sequence"] - 1}), *lines[5:]],
        [*lines[:4], *lines[5:]],
        [*lines[:4], json.dumps({**told, "key": "0" * 16}), *lines[5:]],
    ):
        path.write_text("\n".join(changed) + "\n")
        assert Kind.HEADS in {f.kind for f in written.verify().findings}
    path.write_text("")
    assert {f.kind for f in written.verify().findings} == {Kind.UNKNOWN}


@pytest.mark.parametrize(("log", "other"), [("ledger", "audit"), ("audit", "ledger")])
def test_a_head_of_one_log_is_none_of_another(tmp_path: Path, log: str, other: str) -> None:
    """Signed by the same key and put into the other log's file, it has no valid signature there."""
    keys = KeyRing(tmp_path / "keys")
    keys.add()
    Heads(tmp_path / "heads.jsonl", keys, log).append(Head("chain", 0, GENESIS.hex(), 1, now()))
    assert Heads(tmp_path / "heads.jsonl", keys, log).read()[1] == []
    found, bad = Heads(tmp_path / "heads.jsonl", keys, other).read()
    assert found == {} and [line.reason for line in bad] == ["has a signature that is not its own"]


# Erasure


def test_an_erased_card_is_gone_and_the_chain_holds(written: Ledger) -> None:
    """No row names the card or its customer any more, no row is gone, and the ledger is still proved."""
    erased = erase(
        written.connection, written.heads, CARD_LEDGER, "default", "card-3", "request 4711", "anna"
    )
    account = written.verify()
    assert account.clean, account.findings
    assert erased.rows == account.erased == 9 and account.rows == 60
    dump = str(written.ask("SELECT * FROM card_ledger"))
    assert "card-3" not in dump and "customer-3" not in dump and "card-2" in dump
    assert written.ask(
        "SELECT count(DISTINCT card_id), count(customer_id), count(seal_key) FROM card_ledger"
        " WHERE card_id = %s",
        f"erased:{erased.ref}",
    ) == [(1, 0, 0)]
    with pytest.raises(ErasureError, match="no card"):
        erase(written.connection, written.heads, CARD_LEDGER, "default", "card-3", "again", "anna")
    written.send([decision(n) for n in range(60, 70)])
    written.store()
    written.sign()
    assert written.verify().clean


@pytest.mark.parametrize("by_column", [False, True])
def test_an_erased_row_still_agrees_with_its_record(written: Ledger, by_column: bool) -> None:
    """`verify fraud` compares what is left of it: an erasure is no difference, a changed value is."""
    erase(written.connection, written.heads, CARD_LEDGER, "default", "card-3", "request", "anna")
    connection, broker = written.connection, written.broker

    def wrong() -> int:
        check = TableCheck(connection, ROWS[0])
        for message in broker.records(CARD_DECISIONS.name):
            event = written.codec.decode(CARD_DECISIONS, message.value()).event
            at, offset = message.partition() or 0, message.offset() or 0
            if by_column:
                batch = pa.RecordBatch.from_pylist([event], schema=arrow_schema(CARD_DECISIONS))
                check.add_block(batch, np.array([at]), np.array([offset]), check.by_column(batch))
            else:
                check.add(ROWS[0].rows(event), at, offset)
        lot = check.take()
        check.compare_blocks(lot)
        check.compare(lot)
        connection.execute("DROP TABLE pg_temp.verify_card_ledger")
        return check.check.wrong

    assert wrong() == 0
    with as_owner(written) as run:
        run("UPDATE card_ledger SET late_ms = late_ms + 1 WHERE event_id = 'e0003'")
        run("UPDATE card_ledger SET card_id = 'another' WHERE event_id = 'e0004'")
        assert wrong() == 2


def test_erased_rows_are_guarded_as_others(written: Ledger) -> None:
    """Another edit of an erased row, and somebody put into it, are found."""
    erase(written.connection, written.heads, CARD_LEDGER, "default", "card-3", "request", "anna")
    [(k,)] = written.ask(
        "SELECT min(chain_sequence) FROM card_ledger WHERE seal_key IS NULL AND source_partition = 1"
    )
    with as_owner(written) as run:
        run(
            f"UPDATE card_ledger SET late_ms = late_ms + 1 {ROW}",
            k,
        )
        assert the(written) == (Kind.ALTERED, k)
    with as_owner(written) as run:
        run(f"UPDATE card_ledger SET card_id = 'somebody else' {ROW}", k)
        assert {f.kind for f in found(written).findings} == {Kind.ERASED}
    with as_owner(written) as run:
        run(f"UPDATE card_ledger SET card_id = 'somebody else', seal_key = '\\x{'00' * 16}' {ROW}", k)
        assert {f.kind for f in found(written).findings} == {Kind.ERASED, Kind.ALTERED}


def test_rows_that_somebody_else_blanked_are_found(written: Ledger) -> None:
    """Without an erasure, in the name of one, or with an entry that nobody signed."""
    blank = "UPDATE card_ledger SET card_id = 'erased:{}', customer_id = NULL, seal_key = NULL " + ROW
    with as_owner(written) as run:
        run(blank.format("ff"), 4)
        assert the(written)[0] is Kind.ERASED
    erased = erase(written.connection, written.heads, CARD_LEDGER, "default", "card-3", "request", "anna")
    [(k,)] = written.ask(
        "SELECT min(chain_sequence) FROM card_ledger WHERE seal_key IS NOT NULL AND source_partition = 1"
    )
    with as_owner(written) as run:
        run(blank.format(erased.ref), k)
        assert the(written) == (Kind.ERASED, 1)
    with as_owner(written) as run:
        run("UPDATE ledger_erasures SET reason = 'another'")
        assert the(written) == (Kind.ERASED, 1)
    with as_owner(written) as run:
        run("DELETE FROM ledger_erasures")
        assert {f.kind for f in found(written).findings} == {Kind.ERASED}
    with as_owner(written) as run:
        run("UPDATE ledger_erasures SET sequence = 2")
        assert the(written)[0] is Kind.ERASED


def test_an_erasure_that_was_not_signed_waits_for_a_person(written: Ledger) -> None:
    """Interrupted before it signed: it is found, nothing is erased on top of it, and it can be signed."""
    heads = written.heads
    lines = heads.path.read_text()
    erase(written.connection, heads, CARD_LEDGER, "default", "card-3", "request", "anna")
    heads.path.write_text(lines)
    (finding,) = written.verify().findings
    assert (finding.kind, finding.chain, finding.sequence) == (Kind.ERASED, CHAIN, 1)
    with pytest.raises(ErasureError, match="countersign"):
        erase(written.connection, heads, CARD_LEDGER, "default", "card-4", "request", "anna")
    assert sign(written.connection, heads) == 1
    assert written.verify().clean
