"""The chain as the sink writes it: whole whatever way a row took, and cheap for whoever adds a column."""

from __future__ import annotations

import time

import pytest

from infra.ledger import heads as module
from infra.ledger.heads import HeadSigner
from infra.settings import Settings
from schemas.fraud import CARD_LEDGER
from tests.infra.ledger.conftest import Ledger, decision


def chained(ledger: Ledger) -> list[tuple[int, int]]:
    return ledger.ask(
        "SELECT source_partition, chain_sequence FROM card_ledger ORDER BY source_partition, source_offset"
    )


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_every_row_stands_behind_the_one_before(ledger: Ledger, size: int) -> None:
    """By columns, in batches of any size, by one sink after the other: a chain a partition, in its order."""
    ledger.send([decision(n) for n in range(30)])
    ledger.store(size)
    ledger.send([decision(n) for n in range(30, 60)])
    ledger.store(size)
    assert chained(ledger) == [(p, n) for p in range(3) for n in range(1, 21)]
    ledger.sign()
    account = ledger.verify()
    assert account.clean, account.findings
    assert (account.rows, account.chains, account.uncovered, account.before) == (60, 3, 0, 0)


def test_rows_that_came_again_have_no_place(ledger: Ledger) -> None:
    """Twice in a batch, again in a later one, and all read once more: each row once, and no gap."""
    ledger.send([decision(n) for n in (0, 1, 0, 2, 1)], 0)
    ledger.store()
    ledger.send([decision(n) for n in (2, 3, 0, 4, 3)], 0)
    ledger.store(2)
    ledger.store(from_start=True)
    assert chained(ledger) == [(0, n) for n in range(1, 6)]
    ledger.sign()
    assert ledger.verify().clean


def test_rows_made_one_by_one_are_chained_alike(ledger: Ledger) -> None:
    """Where the database refuses some, their neighbours land in the chain, and the refused leave no gap."""
    events = [decision(n) for n in range(12)]
    events[3] |= {"currency": "euro"}
    events[7] |= {"event_id": "nul\0"}
    events[8] |= {"event_id": events[2]["event_id"]}
    ledger.send(events, 1)
    ledger.store()
    assert chained(ledger) == [(1, n) for n in range(1, 10)]
    ledger.send([decision(n) for n in range(12, 20)], 1)
    ledger.store()
    ledger.sign()
    account = ledger.verify()
    assert account.clean, account.findings
    assert account.rows == 17


def test_a_column_that_is_added_changes_no_old_hash(ledger: Ledger) -> None:
    """Old rows, which have null there, still fit; new ones are chained with what they have."""
    ledger.send([decision(n) for n in range(6)], 0)
    ledger.store()
    ledger.sign()
    with ledger.connection.transaction(force_rollback=True):
        ledger.connection.execute("ALTER TABLE card_ledger ADD COLUMN note text, ADD COLUMN n bigint")
        assert ledger.verify().clean
        ledger.connection.execute("ALTER TABLE card_ledger DISABLE TRIGGER USER")
        ledger.connection.execute("GRANT ALL ON card_ledger TO CURRENT_USER")
        ledger.connection.execute("UPDATE card_ledger SET n = 1 WHERE chain_sequence = 4")
        assert [f.sequence for f in ledger.verify().findings if f.kind == "altered"] == [4]


def test_rows_of_before_are_told_apart(ledger: Ledger) -> None:
    """What the table held before it had a chain is counted, and is no finding."""
    ledger.send([decision(n) for n in range(4)], 0)
    ledger.store()
    with ledger.connection.transaction():
        ledger.connection.execute("ALTER TABLE card_ledger DISABLE TRIGGER USER")
        ledger.connection.execute("GRANT ALL ON card_ledger TO CURRENT_USER")
        ledger.connection.execute(
            "UPDATE card_ledger SET chain_sequence = NULL, chain_hash = NULL, seal = NULL, seal_key = NULL"
        )
        ledger.connection.execute("REVOKE UPDATE, DELETE, TRUNCATE ON card_ledger FROM CURRENT_USER")
        ledger.connection.execute("ALTER TABLE card_ledger ENABLE TRIGGER USER")
        ledger.connection.execute("DELETE FROM ledger_chains")
    ledger.send([decision(n) for n in range(4, 8)], 0)
    ledger.store()
    ledger.sign()
    account = ledger.verify()
    assert account.clean, account.findings
    assert (account.rows, account.before) == (8, 4)
    assert ledger.ask("SELECT begins, sequence FROM ledger_chains") == [(4, 4)]


def test_the_sink_signs_in_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new chain is signed at once, a longer one when it is due; one that went back is not signed."""
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    home = ledger.heads.path.parent / "home"
    settings = Settings({**ledger.settings.environ, "MILLRACE_LEDGER_HEADS": str(home / "heads.jsonl"),
                         "MILLRACE_LEDGER_KEYS": str(home / "keys")})  # fmt: skip
    ledger.send([decision(n) for n in range(5)], 0)
    ledger.store()
    signer = HeadSigner(settings, [CARD_LEDGER], every_s=0.5)
    ledger.heads = module.open_heads(settings)

    def signed() -> list[int]:
        told, bad = ledger.heads.read()
        assert bad == []
        return [h.sequence for heads in told.values() for h in heads]

    end = time.monotonic() + 20
    while signed() != [0, 5]:
        assert time.monotonic() < end
        time.sleep(0.02)
    ledger.send([decision(n) for n in range(5, 9)], 0)
    ledger.store()
    while signed() != [0, 5, 9]:
        assert time.monotonic() < end
        time.sleep(0.02)
    other = HeadSigner(settings, [CARD_LEDGER], every_s=0.1)
    ledger.connection.execute("UPDATE ledger_chains SET sequence = 7")
    time.sleep(1)
    other.close()
    signer.close()
    assert signed() == [0, 5, 9]
    assert ledger.verify().clean
