"""Signs how far the ledger's chains have come, outside of the database, at most every 10 s.

A thread of the sink, with a connection of its own: it tells what is committed. Of several sinks one signs at
a time; the lock of another one's session ends with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from datetime import UTC, datetime

import psycopg

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.identity.keyring import KeyRing
from infra.ledger.chain import chain_name
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.telemetry.metrics import LEDGER_HEADS, LEDGER_SIGNINGS
from schemas.declare import Table

log = logging.getLogger(__name__)

LOG = "ledger"
"""What its heads are signed as."""
SIGNED_EVERY_S = 10.0
LOOK_S = 1.0
_LOCK = 0x6C656468
_CHAINS = "SELECT table_name, partition, begins, sequence, hash FROM ledger_chains WHERE table_name = ANY(%s)"


def open_heads(settings: Settings) -> Heads:
    """The instance's file of the ledger's heads. Makes its signing key where there is none."""
    keys = KeyRing(settings.ledger_keys)
    try:
        keys.signing()
    except LookupError:
        keys.add()
    return Heads(settings.ledger_heads, keys, LOG)


def now() -> str:
    """The time, as heads tell it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class HeadSigner:
    """The thread. `close` signs once more."""

    def __init__(self, settings: Settings, tables: Iterable[Table], every_s: float = SIGNED_EVERY_S) -> None:
        self._settings = settings
        self._tables = [table.name for table in tables]
        self._every_s = every_s
        self._heads = open_heads(settings)
        self._signed: dict[str, Head] | None = None
        self._connection: Connection | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-heads", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        waited = self._every_s
        while not self._ending.wait(LOOK_S):
            waited += LOOK_S
            # A chain that no head knows yet is told of at once.
            waited = 0.0 if self._try(all_of_them=waited >= self._every_s) else waited
        self._try(all_of_them=True)
        if self._connection is not None:
            self._connection.close()

    def _try(self, *, all_of_them: bool) -> bool:
        """Sign what is due; whether everything was."""
        try:
            return self._sign(all_of_them=all_of_them)
        except (psycopg.Error, OSError, LookupError, TypeError) as error:
            log.warning("the ledger's heads are not signed", extra={"reason": repr(error)})
            if self._connection is not None:
                self._connection.close()
            self._connection, self._signed = None, None
            return False

    def _sign(self, *, all_of_them: bool) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = connect(lambda: self._settings.database_sink_url, "millrace-ledger-heads")
            self._signed = None
        if self._signed is None:
            row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
            if row is None or not row[0]:
                return False  # another sink signs
            told, _ = self._heads.read()
            self._signed = {chain: heads[-1] for chain, heads in told.items()}
        for table, partition, begins, sequence, digest in self._connection.execute(
            _CHAINS, (self._tables,)
        ).fetchall():
            chain = chain_name(str(table), int(str(partition)), int(str(begins)))
            last = self._signed.get(chain)
            if last is None:
                last = self._append(Head(chain, 0, GENESIS.hex(), 1, now()))
            elif not all_of_them:
                continue
            at, found = int(str(sequence)), bytes(digest).hex()  # type: ignore[call-overload]
            if at < last.sequence or (at == last.sequence and found != last.hash):
                log.critical(
                    "a chain of the ledger is not where it was signed to be; run `millrace verify ledger`",
                    extra={"chain": chain, "signed": last.sequence, "found": at},
                )
            elif at > last.sequence:
                self._append(Head(chain, at, found, last.n + 1, now()))
        if all_of_them:
            LEDGER_SIGNINGS.inc()
        return all_of_them

    def _append(self, head: Head) -> Head:
        assert self._signed is not None
        self._heads.append(head)
        self._signed[head.chain] = head
        LEDGER_HEADS.inc()
        return head
