"""The writer of a process's chain: `record` puts an entry into a queue, a thread writes what came together.

Nothing waits for the database. While it is away entries wait in memory, up to `WAITING_MOST`; then they are
dropped and counted, and the log says how many as soon as it can. What must not happen untold is recorded with
`must=True`, and refused long before that.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import psycopg

from infra.audit.entry import GENESIS, NAME_MOST, Details, Entry, Outcome, details, text
from infra.audit.heads import Head, Heads
from infra.identity.keyring import KeyRing
from infra.identity.principal import Principal
from infra.postgres import Connection, DatabaseUrl, connect
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.telemetry.metrics import AUDIT_ENTRIES, AUDIT_WAITING

log = logging.getLogger(__name__)

TOGETHER_S = 0.05
"""How long the writer lets entries come together: what a killed process has not told yet."""
BATCH_MOST = 500
WAITING_MOST = 10_000
MUST_WAITING_MOST = WAITING_MOST // 2
MUST_WAITED_S = 10.0
SIGNED_EVERY_S = 10.0
AGAIN_S = 0.5
STATEMENT_MS = 5_000

_INSERT: Final = (
    "INSERT INTO audit.entries"
    " (chain, sequence, at, subject, tenant, proof, action, object, outcome, details, hash)"
    " SELECT %s::uuid, sequence, timestamptz 'epoch' + at_us * interval '1 microsecond',"
    "  subject, tenant, proof, action, object, outcome, details::json, hash"
    " FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],"
    "  %s::text[], %s::text[], %s::bytea[])"
    " AS told(sequence, at_us, subject, tenant, proof, action, object, outcome, details, hash)"
)
_STORED: Final = (
    "SELECT count(*) FROM audit.entries JOIN unnest(%s::bigint[], %s::bytea[]) AS ours(sequence, hash)"
    " USING (sequence, hash) WHERE chain = %s::uuid"
)


class AuditAway(ConnectionError):
    """The log cannot promise to tell of it: what was asked for must not be done now."""


class _Foreign(Exception):
    """At this chain's next place stands what this process did not write."""


class AuditLog:
    """The chain of one process. `record` from any thread; nothing is opened before the first entry."""

    def __init__(
        self, database: DatabaseUrl, heads: Heads, service: str, health: Health | None = None
    ) -> None:
        """`service` is told in the chain's first entry; `health` gets the condition `audit`."""
        self._database, self._heads, self._service, self._health = database, heads, service, health
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._give_up_at = float("inf")
        # Recorded, and not yet in a batch; then the batch under way, which stays the same until it is stored.
        self._queue: deque[Entry] = deque()
        self._batch: list[tuple[Entry, bytes]] = []
        self._dropped = 0
        self._away: str | None = None
        self._begin()

    def record(
        self,
        principal: Principal | None,
        action: str,
        object: str,
        outcome: Outcome = "done",
        told: Details | None = None,
        *,
        must: bool = False,
    ) -> None:
        """Tell that `principal` (None: nobody that we know) did this. Never waits.

        Raises `AuditAway` only with `must`, when it might be lost. Whoever changes something under operators'
        rights records that first, and does it only then. Never pass secrets or the data itself.
        """
        if must:
            self.check()
        entry = Entry(
            "",
            0,
            time.time_ns() // 1000,
            principal.subject if principal else "",
            principal.tenant if principal else "",
            text(principal.proof, NAME_MOST) if principal else "",
            text(action, NAME_MOST),
            text(object),
            outcome,
            details(told or {}),
        )
        with self._lock:
            if self._closing and must:
                raise AuditAway("the audit log of this process is closed, as the process ends")
            if self._closing or len(self._queue) >= WAITING_MOST:
                self._dropped += 1
                AUDIT_ENTRIES.labels("dropped").inc()
                return
            self._queue.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
        self._news.set()

    def check(self) -> None:
        """Raise `AuditAway` where an entry of now might be lost."""
        with self._lock:
            waiting = len(self._queue) + len(self._batch)
            oldest = self._batch[0][0] if self._batch else self._queue[0] if self._queue else None
        waited_s = 0.0 if oldest is None else time.time() - oldest.at_us / 1e6
        if waiting >= MUST_WAITING_MOST or waited_s >= MUST_WAITED_S:
            raise AuditAway(
                f"the audit log has {waiting} entries waiting for {waited_s:.0f} s"
                f" ({self._away or 'the database is slow'}); nothing is done that it cannot tell of"
            )

    def written(self, within_s: float) -> bool:
        """Wait until all that was recorded is stored; whether it is. Not on an event loop."""
        end = time.monotonic() + within_s
        while True:
            with self._lock:
                if not self._queue and not self._batch:
                    return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)

    def close(self, within_s: float = 5.0) -> None:
        """Write what waits, and the chain's last head; what cannot be written in time is lost, and logged."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            thread = self._thread
        self._give_up_at = time.monotonic() + within_s
        self._news.set()
        if thread is not None:
            thread.join()

    @property
    def away(self) -> str | None:
        """Why it cannot be written now, or None."""
        return self._away

    # The thread

    def _begin(self) -> None:
        self._chain = str(uuid.uuid4())
        self._sequence, self._hash = 0, GENESIS
        self._heads_signed = 0
        self._signed_sequence, self._signed_at = -1, float("-inf")
        self._begun_told = False

    def _run(self) -> None:
        wait_s: float | None = None
        while True:
            self._news.wait(wait_s)
            if not self._closing:
                time.sleep(TOGETHER_S)
            self._news.clear()
            try:
                self._write()
                self._sign_if_due()  # also where nothing more comes
            except _Foreign:
                self._leave_chain()
                self._news.set()
                continue
            except (psycopg.Error, OSError, LookupError, TypeError) as error:
                self._failed(error)
                if time.monotonic() + AGAIN_S > self._give_up_at:
                    break
                time.sleep(AGAIN_S)
                self._news.set()
                continue
            if self._away is not None:
                self._away = None
                log.warning("the audit log is written again")
                if self._health is not None:
                    self._health.ok("audit")
            if self._closing and not self._queue:
                break
            unsigned = self._sequence > self._signed_sequence
            wait_s = max(0.0, self._signed_at + SIGNED_EVERY_S - time.monotonic()) if unsigned else None
        self._end()

    def _write(self) -> None:
        """Store all that waits. What fails stays in `_batch` and is stored, the same, at the next call."""
        while self._batch or self._queue or self._dropped:
            if not self._heads_signed:
                self._sign()  # before the first entry: a chain that no head knows is then a forged one
            if not self._batch:
                self._fill()
            self._store()
            self._sequence, self._hash = self._batch[-1][0].sequence, self._batch[-1][1]
            AUDIT_ENTRIES.labels("written").inc(len(self._batch))
            with self._lock:
                self._batch = []
            AUDIT_WAITING.set(len(self._queue))
            self._sign_if_due()  # here: where entries never cease to come, this loop does not end

    def _fill(self) -> None:
        own = []
        if not self._begun_told:
            own.append(self._own("audit.begun", self._who()))
            self._begun_told = True
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            taken = list(islice(self._queue, BATCH_MOST))
        if dropped:
            own.append(self._own("audit.gap", {"dropped": dropped}))
        batch = self._chained([*own, *taken])  # not under the lock, for which requests would wait
        with self._lock:
            self._batch = batch
            for _ in taken:
                self._queue.popleft()

    def _who(self) -> Details:
        return {"service": self._service, "pid": os.getpid(), "host": socket.gethostname()}

    def _own(self, action: str, told: Details) -> Entry:
        return Entry("", 0, time.time_ns() // 1000, "", "", "", action, self._chain, "done", details(told))

    def _chained(self, entries: list[Entry]) -> list[tuple[Entry, bytes]]:
        before, chained = self._hash, []
        for sequence, entry in enumerate(entries, self._sequence + 1):
            placed = entry._replace(chain=self._chain, sequence=sequence)
            before = placed.digest(before)
            chained.append((placed, before))
        return chained

    def _store(self) -> None:
        entries, hashes = zip(*self._batch, strict=True)
        _, sequences, *columns = (list(column) for column in zip(*entries, strict=True))
        connection = self._connected()
        try:
            connection.execute(_INSERT, (self._chain, sequences, *columns, list(hashes)))
        except psycopg.errors.UniqueViolation:
            # Either a commit took effect whose answer was lost, or somebody else wrote into this chain.
            row = connection.execute(_STORED, (sequences, list(hashes), self._chain)).fetchone()
            if row is None or row[0] != len(hashes):
                raise _Foreign from None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._database, "millrace-audit")
            self._connection.execute(
                "SELECT set_config('statement_timeout', %s, false)", (str(STATEMENT_MS),)
            )
        return self._connection

    def _sign_if_due(self) -> None:
        if self._sequence > self._signed_sequence and (
            time.monotonic() >= self._signed_at + SIGNED_EVERY_S or self._signed_sequence <= 0
        ):
            self._sign()

    def _sign(self, last: bool = False) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        head = Head(self._chain, self._sequence, self._hash.hex(), self._heads_signed + 1, at, last)
        self._heads.append(head)
        self._heads_signed += 1
        self._signed_sequence, self._signed_at = self._sequence, time.monotonic()

    def _leave_chain(self) -> None:
        """End this chain where it was ours to the end, and tell the rest in a new one."""
        log.critical(
            "somebody wrote into this process's chain of the audit log; run `millrace verify audit`",
            extra={"chain": self._chain, "sequence": self._sequence + 1},
        )
        left, again = (self._chain, self._sequence + 1), [entry for entry, _ in self._batch]
        try:
            if self._heads_signed:
                self._sign(last=True)
        except (OSError, LookupError, TypeError) as error:
            self._failed(error)
        self._begin()
        again = [entry for entry in again if entry.action != "audit.begun"]
        told = self._own("audit.foreign", {"chain": left[0], "sequence": left[1]})
        self._begun_told = True
        self._batch = self._chained([self._own("audit.begun", self._who()), told, *again])

    def _failed(self, error: Exception) -> None:
        if self._connection is not None and isinstance(error, psycopg.Error):
            self._connection.close()
        if self._away is None:
            log.error("the audit log cannot be written; entries wait", extra={"reason": repr(error)})
        self._away = f"{type(error).__name__}: {' '.join(str(error).split())}"
        AUDIT_WAITING.set(len(self._queue) + len(self._batch))
        if self._health is not None:
            self._health.failing("audit", "the audit log cannot be written; see this process's log")

    def _end(self) -> None:
        lost = len(self._queue) + len(self._batch) + self._dropped
        try:
            if lost:
                log.critical(
                    "entries of the audit log are lost: it could not be written", extra={"lost": lost}
                )
            elif self._heads_signed:
                self._queue.append(self._own("audit.ended", {}))
                self._write()
                self._sign(last=True)
        except (psycopg.Error, OSError, LookupError, TypeError, _Foreign) as error:
            log.error("the audit log's chain has no last head", extra={"reason": repr(error)})
        finally:
            if self._connection is not None:
                self._connection.close()


def open_log(settings: Settings, service: str, health: Health | None = None) -> AuditLog:
    """The log of this process, as the settings say."""
    return AuditLog(lambda: settings.database_audit_url, open_heads(settings), service, health)


def open_heads(settings: Settings) -> Heads:
    """The instance's file of heads, and its keys."""
    return Heads(settings.audit_heads, KeyRing(settings.audit_keys))


def ensure_key(settings: Settings) -> None:
    """Make the first key that heads are signed with, where there is none."""
    if not any(settings.audit_keys.glob("*.pem")):
        KeyRing(settings.audit_keys).add()
