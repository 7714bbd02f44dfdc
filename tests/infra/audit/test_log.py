"""The writer of the audit log on a real database, also while that is away."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest

from infra.audit import log as module
from infra.audit.entry import GENESIS, Entry
from infra.audit.heads import Heads
from infra.audit.log import AuditAway, AuditLog, ensure_key, open_heads
from infra.audit.verify import Kind, verify
from infra.identity.keyring import KeyRing
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.infra.audit.conftest import ANNA, empty, stored, until

NOWHERE = "postgresql://millrace_audit:x@127.0.0.1:1/millrace"


def test_the_hash_is_the_documented_one() -> None:
    """An entry's hash is SHA-256 over exactly the bytes that infra/audit/entry.py describes."""
    entry = Entry("c", 7, 1_700_000_000_000_001, "änna", "acme", "token:1", "read", "/v1", "done", '{"n":1}')
    before = hashlib.sha256(b"the one before").digest()
    written = (
        b"millrace-audit-1\n"
        + before
        + b"1:c,1:7,16:1700000000000001,5:\xc3\xa4nna,4:acme,7:token:1,4:read,3:/v1,"
        b'4:done,7:{"n":1},'
    )
    assert entry.digest(before) == hashlib.sha256(written).digest()


def test_what_is_recorded_is_stored_and_chained(log: AuditLog, heads: Heads, owner: Connection) -> None:
    """Each entry is stored as told, in order, in one chain with a beginning and an end; the log is clean."""
    log.record(ANNA, "read", "/v1/cards/{card}/decisions", told={"rows": 3, "share": 0.5, "all": False})
    log.record(None, "login", "anna", "failed", {"address": "192.0.2.1"})
    log.record(ANNA, "dlq.redrive", "fraud", "denied", must=True)
    log.close()
    rows = owner.execute(
        "SELECT sequence, subject, tenant, proof, action, object, outcome, details,"
        " now() - at < interval '1 minute' FROM audit.entries ORDER BY sequence"
    ).fetchall()
    assert [row[:-2] for row in rows[1:-1]] == [
        (2, "anna", "acme", "token:1", "read", "/v1/cards/{card}/decisions", "done"),
        (3, "", "", "", "login", "anna", "failed"),
        (4, "anna", "acme", "token:1", "dlq.redrive", "fraud", "denied"),
    ]
    assert rows[1][-2] == {"rows": 3, "share": 0.5, "all": False} and all(row[-1] for row in rows)
    assert (rows[0][4], rows[-1][4]) == ("audit.begun", "audit.ended")
    account = verify(owner, heads)
    assert account.clean, account.findings
    assert (account.chains, account.entries, account.heads, account.uncovered) == (1, 5, 3, 0)


def test_whatever_comes_from_outside_can_be_stored(log: AuditLog, heads: Heads, owner: Connection) -> None:
    """Zeros, lone surrogates, quotes, backslashes and megabytes land as text, cut; the log stays clean."""
    nasty = "a\0b\ud800c\"'\\{},NULL\n" + "\N{PILE OF POO}" * 1_000_000
    log.record(None, nasty, nasty, "denied", {nasty: nasty, "big": 2**70, "nan": float("nan"), "none": None})
    log.record(None, "many", "", told={str(n): "x" * 1000 for n in range(100)})
    log.close()
    action, told = owner.execute(
        "SELECT action, details FROM audit.entries WHERE sequence = 2"
    ).fetchone() or ("", {})
    assert str(action).startswith("a\N{REPLACEMENT CHARACTER}b?c\"'\\{},NULL\n") and len(str(action)) == 200
    assert isinstance(told, dict) and told["big"] == str(2**70) and told["nan"] == "nan"
    row = owner.execute("SELECT details::text FROM audit.entries WHERE action = 'many'").fetchone()
    assert row is not None and str(row[0]).startswith('{"too_long":')
    assert verify(owner, heads).clean


def test_the_log_is_append_only(log: AuditLog, owner: Connection, writer_url: str) -> None:
    """Neither the writer nor the owner can change, delete or truncate; the writer cannot even read."""
    log.record(ANNA, "read", "/v1/a")
    log.close()
    changes = (
        "UPDATE audit.entries SET subject = 'eve'",
        "DELETE FROM audit.entries",
        "TRUNCATE audit.entries",
    )
    with connect(writer_url) as writer:
        for change in (*changes, "SELECT subject FROM audit.entries", "DROP TABLE audit.entries"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute(change.encode())
    for role in ("origin", "replica"):
        owner.execute(f"SET session_replication_role = {role}".encode())
        for change in changes:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                owner.execute(change.encode())
    owner.execute("RESET session_replication_role")
    assert stored(owner) == 3


def test_recording_waits_for_nothing(writer_url: str, heads: Heads, owner: Connection) -> None:
    """While the database hangs, a record returns at once; it is stored when the database answers."""
    empty(owner)
    answers = threading.Event()

    def slow() -> str:
        assert answers.wait(30)
        return writer_url

    log = AuditLog(slow, heads, "tests")
    began = time.monotonic()
    for n in range(1000):
        log.record(ANNA, "read", f"/v1/{n}")
    took = time.monotonic() - began
    assert stored(owner) == 0
    answers.set()
    until(lambda: stored(owner, "read") == 1000)
    log.close()
    assert took < 5 and verify(owner, heads).clean


def test_the_database_away(
    writer_url: str, heads: Heads, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries wait, then are dropped and counted; what must be told is refused meanwhile, and taken after."""
    empty(owner)
    monkeypatch.setattr(module, "WAITING_MOST", 20)
    monkeypatch.setattr(module, "MUST_WAITING_MOST", 10)
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    url = NOWHERE
    log = AuditLog(lambda: url, heads, "tests")
    log.record(ANNA, "dlq.redrive", "0", must=True)
    for n in range(9):
        log.record(ANNA, "read", str(n))
    with pytest.raises(AuditAway, match="nothing is done"):
        log.record(ANNA, "dlq.redrive", "1", must=True)
    for n in range(9, 100):
        log.record(ANNA, "read", str(n))
    until(lambda: log._away is not None)
    url = writer_url
    until(lambda: stored(owner, "audit.gap") == 1)
    until(lambda: log._away is None)
    log.record(ANNA, "dlq.redrive", "2", must=True)
    log.close()
    told = owner.execute("SELECT action, object, details FROM audit.entries ORDER BY sequence").fetchall()
    reads = [int(str(o)) for action, o, _ in told if action == "read"]
    dropped = next(d["dropped"] for action, _, d in told if action == "audit.gap" and isinstance(d, dict))
    assert reads == sorted(reads) and len(reads) + dropped == 100 and dropped >= 50
    assert [o for action, o, _ in told if action == "dlq.redrive"] == ["0", "2"]
    assert verify(owner, heads).clean


def test_what_has_waited_for_long_stops_operators(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry that waits for ten seconds is enough to refuse what must be told; reads are still taken."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    log = AuditLog(NOWHERE, heads, "tests")
    log.record(ANNA, "read", "/v1")
    log.check()
    now = time.time_ns()
    monkeypatch.setattr("time.time", lambda: now / 1e9 + 11)
    with pytest.raises(AuditAway, match="waiting for 11 s"):
        log.check()
    log.record(ANNA, "read", "/v1")
    log.close(0.1)


def test_without_heads_nothing_is_stored(writer_url: str, owner: Connection, tmp_path: Path) -> None:
    """Where no head can be signed or kept, entries wait: a chain that no head knows is a forged one."""
    empty(owner)
    keys = KeyRing(tmp_path / "keys")
    log = AuditLog(writer_url, Heads(tmp_path / "heads", keys), "tests")
    log.record(ANNA, "read", "/v1")
    until(lambda: "no signing key" in (log._away or ""))
    assert stored(owner) == 0
    keys.add()
    until(lambda: stored(owner, "read") == 1)
    log.close()


def test_a_commit_whose_answer_is_lost_takes_effect_once(
    log: AuditLog, heads: Heads, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is written again, found stored, and the chain goes on behind it."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    store, lost = log._store, []

    def once() -> None:
        store()
        if not lost:
            lost.append(1)
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(log, "_store", once)
    log.record(ANNA, "read", "1")
    until(lambda: bool(lost) and log._away is None)
    log.record(ANNA, "read", "2")
    log.close()
    assert stored(owner) == 4 and verify(owner, heads).clean


def test_who_writes_into_anothers_chain_is_found_out(log: AuditLog, heads: Heads, owner: Connection) -> None:
    """The writer leaves the chain where it was all its own, tells of it in a new one, and loses nothing."""
    log.record(ANNA, "read", "1")
    until(lambda: stored(owner, "read") == 1)
    owner.execute(
        "INSERT INTO audit.entries SELECT chain, 3, at, 'eve', tenant, proof, action, object, outcome,"
        " details, hash FROM audit.entries WHERE sequence = 2"
    )
    log.record(ANNA, "read", "2")
    until(lambda: stored(owner, "audit.foreign") == 1)
    log.close()
    assert stored(owner, "read") == 3
    (finding,) = verify(owner, heads).findings
    assert (finding.kind, finding.sequence) == (Kind.ALTERED, 3)


def test_heads_are_signed_at_intervals(
    log: AuditLog, heads: Heads, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once, the next only when its time has come, also where nothing more is recorded."""
    monkeypatch.setattr(module, "SIGNED_EVERY_S", 1.0)
    log.record(ANNA, "read", "1")
    until(lambda: len(_heads(heads)) == 2)
    assert _heads(heads) == [0, 2]
    signed_at = time.monotonic()
    for n in range(4):
        log.record(ANNA, "read", "more")
        until(lambda n=n: stored(owner, "read") == 2 + n)  # type: ignore[misc]
    until(lambda: len(_heads(heads)) == 3)
    assert time.monotonic() - signed_at > 0.7 and _heads(heads)[-1] in range(3, 7)
    log.close()
    assert _heads(heads)[-1] == 7


def test_a_killed_process_leaves_a_clean_log(
    writer_url: str, heads: Heads, owner: Connection, tmp_path: Path
) -> None:
    """After SIGKILL every stored entry is in its chain; those after the last head are counted apart."""
    empty(owner)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from infra.audit.heads import Heads\n"
        "from infra.audit.log import AuditLog\n"
        "from infra.identity.keyring import KeyRing\n"
        "url, folder = sys.argv[1], Path(sys.argv[2])\n"
        "log = AuditLog(url, Heads(folder / 'heads.jsonl', KeyRing(folder / 'keys')), 'killed')\n"
        "while True:\n"
        "    log.record(None, 'read', '')\n"
        "    time.sleep(0.001)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, writer_url, str(tmp_path)])
    until(lambda: stored(owner) > 100, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'millrace-audit'"
    until(lambda: owner.execute(sessions).fetchone() is None)
    account = verify(owner, heads)
    assert account.clean, account.findings
    assert account.entries == stored(owner) and 0 < account.uncovered < account.entries


def test_verify_says_so_on_the_command_line(database: Settings, owner: Connection) -> None:
    """`millrace verify audit` ends with 0 on what was written, else with 1 and the entry's place."""
    empty(owner)
    database.audit_heads.unlink(missing_ok=True)
    ensure_key(database)
    log = AuditLog(database.database_url, open_heads(database), "tests")
    log.record(ANNA, "read", "/v1")
    log.close()
    command = [sys.executable, "-m", "infra.cli", "verify", "audit"]
    clean = subprocess.run(command, capture_output=True, text=True)
    assert clean.returncode == 0 and "3 entries, 1 chains, 3 signed heads" in clean.stdout, clean
    with owner.transaction():
        owner.execute("ALTER TABLE audit.entries DISABLE TRIGGER append_only")
        owner.execute("UPDATE audit.entries SET subject = 'eve' WHERE sequence = 2")
    found = subprocess.run([*command, "--json"], capture_output=True, text=True)
    document = json.loads(found.stdout)
    assert found.returncode == 1
    assert [(f["kind"], f["sequence"]) for f in document["findings"]] == [("guard", None), ("altered", 2)]
    empty(owner)


def test_genesis_is_zeros() -> None:
    """What stands before the first entry is documented as 32 zero bytes."""
    assert bytes(32) == GENESIS


def _heads(heads: Heads) -> list[int]:
    signed, bad = heads.read()
    assert not bad
    return [head.sequence for chain in signed.values() for head in chain]
