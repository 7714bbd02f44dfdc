"""The process that delivers: fans the outbox out, and works through lanes, each one delivery after the other.

What it does is in the database at every moment; killed at any place, another one (or itself, started again)
takes its lanes when their leases have ended, and sends what was not settled once more, under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import ssl
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

from connectors.outward import mail
from connectors.outward.guard import Guard, GuardedTransport
from connectors.outward.http import GONE, Attempt, attempt
from connectors.outward.signing import Secret, Unsealable, Vault, headers
from infra import process
from infra.outward import LEDGER_COLUMNS, LEDGER_JOIN, TEST, iso, message
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.telemetry.metrics import (
    DELIVERIES,
    DELIVERIES_PENDING,
    DELIVERY_AGE_SECONDS,
    DELIVERY_SECONDS,
    ENDPOINTS_DISABLED,
)

log = logging.getLogger(__name__)

LOOK_S = 0.1
FAN_OUT_ROWS = 1_000
AHEAD = 20
"""How many deliveries of a lane are read at once; they are sent one by one."""
LANES_OF_ENDPOINT = 8
"""Most lanes of one endpoint under way: a receiver is not to be run over."""
LEASE_SLACK_S = 15.0
AWAY_S = 1.0
LOOK_AROUND_S = 5.0
PRUNE_S = 60.0
PRUNE_ROWS = 5_000

_CLAIM = """
WITH chosen AS MATERIALIZED (
    SELECT c.endpoint_id, c.lane FROM outward_endpoints e CROSS JOIN LATERAL (
        SELECT x.endpoint_id, x.lane FROM outward_lanes x
        WHERE x.endpoint_id = e.endpoint_id AND x.pending > 0 AND x.due_at <= now()
          AND (x.leased_until IS NULL OR x.leased_until < now())
        ORDER BY x.due_at
        LIMIT greatest(0, CASE WHEN e.failures > 0 THEN 1 ELSE $3::int END - (
            SELECT count(*) FROM outward_lanes y
            WHERE y.endpoint_id = e.endpoint_id AND y.pending > 0 AND y.leased_until >= now()))
        FOR UPDATE SKIP LOCKED
    ) c
    WHERE e.status = 'active' AND (e.retry_at IS NULL OR e.retry_at <= now())
    LIMIT $4
)
UPDATE outward_lanes l SET lease = $1, leased_until = now() + $2 * interval '1 s'
FROM chosen c WHERE l.endpoint_id = c.endpoint_id AND l.lane = c.lane
RETURNING l.endpoint_id, l.lane
"""
_NEXT = f"""
SELECT d.delivery_id, d.message_id, d.origin, d.attempts, d.first_attempt_at, d.created_at AS queued_at,
       o.created_at AS made_at, e.kind, e.target, e.failures, {LEDGER_COLUMNS}
FROM outward_deliveries d JOIN outward_endpoints e USING (endpoint_id)
LEFT JOIN outbox o USING (sequence) LEFT JOIN {LEDGER_JOIN}
WHERE d.endpoint_id = $1 AND d.lane = $2 AND d.status = 'pending' AND e.status = 'active'
  AND ($3::text IS NULL OR d.batch = $3)
ORDER BY d.delivery_id LIMIT $4
"""  # noqa: S608 -- declared names
_SECRETS = """
SELECT kind, sealed FROM outward_secrets
WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > now()) ORDER BY secret_id DESC
"""
_BATCH = """
SELECT batch FROM outward_deliveries
WHERE endpoint_id = $1 AND lane = $2 AND status = 'pending' AND batch IS NOT NULL ORDER BY delivery_id LIMIT 1
"""
_NEW_BATCH = """
UPDATE outward_deliveries SET batch = $3 WHERE delivery_id IN (
    SELECT delivery_id FROM outward_deliveries
    WHERE endpoint_id = $1 AND lane = $2 AND status = 'pending'
      AND (origin = 'test') = (SELECT origin = 'test' FROM outward_deliveries
           WHERE endpoint_id = $1 AND lane = $2 AND status = 'pending' ORDER BY delivery_id LIMIT 1)
    ORDER BY delivery_id LIMIT $4)
"""
_RELEASE = """
UPDATE outward_lanes SET lease = NULL, leased_until = NULL, due_at = now() + $4 * interval '1 s'
WHERE endpoint_id = $1 AND lane = $2 AND lease = $3
"""
_DISABLE = "UPDATE outward_endpoints SET status = 'disabled', reason = $2 WHERE endpoint_id = $1"
_WAKE = "UPDATE outward_lanes SET due_at = now() WHERE endpoint_id = $1 AND pending > 0 AND due_at > now()"
_STANDING = """
SELECT (SELECT count(*) FROM outward_endpoints WHERE status = 'disabled') AS disabled,
       coalesce((SELECT sum(pending) FROM outward_lanes JOIN outward_endpoints USING (endpoint_id)
                 WHERE status = 'active'), 0)::float8 AS pending,
       coalesce((SELECT extract(epoch FROM now() - min(d.created_at)) FROM outward_deliveries d
                 JOIN outward_endpoints e USING (endpoint_id)
                 WHERE d.status = 'pending' AND e.status = 'active'), 0)::float8 AS oldest
"""
_DROP = """
WITH old AS (
    UPDATE outward_deliveries SET status = 'dropped', last_error = 'waited for longer than the outbox is kept'
    WHERE delivery_id IN (
        SELECT d.delivery_id FROM outward_deliveries d JOIN outward_endpoints e USING (endpoint_id)
        WHERE d.status = 'pending' AND e.status = 'disabled' AND d.created_at < now() - $1 * interval '1 day'
        ORDER BY d.delivery_id LIMIT $2 FOR UPDATE OF d SKIP LOCKED)
    RETURNING endpoint_id, lane
), counted AS (SELECT endpoint_id, lane, count(*) AS n FROM old GROUP BY 1, 2)
UPDATE outward_lanes l SET pending = pending - n FROM counted c
WHERE l.endpoint_id = c.endpoint_id AND l.lane = c.lane
"""
_PRUNE_DELIVERIES = """
DELETE FROM outward_deliveries WHERE delivery_id IN (
    SELECT delivery_id FROM outward_deliveries
    WHERE status <> 'pending' AND created_at < now() - $1 * interval '1 day' ORDER BY delivery_id LIMIT $2)
"""
_PRUNE_OUTBOX = """
DELETE FROM outbox o WHERE sequence IN (SELECT sequence FROM outbox ORDER BY sequence LIMIT $2)
  AND created_at < now() - $1 * interval '1 day' AND sequence <= (SELECT fanned_out FROM outward_revision)
  AND NOT EXISTS (SELECT FROM outward_deliveries d WHERE d.sequence = o.sequence AND d.status = 'pending')
"""

_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What waiting may mend."""

Row = asyncpg.Record


def wait_s(failures: int, first_s: float, most_s: float) -> float:
    """How long to wait after so many failures in a row: doubled each time, between half and all of it."""
    full = min(most_s, first_s * 2.0 ** min(failures, 40))
    return full * random.uniform(0.5, 1.0)  # noqa: S311 - so that many do not come back at once


class Deliverer:
    """One process's share of the deliveries. `context` verifies receivers' certificates."""

    def __init__(
        self, settings: Settings, vault: Vault, health: Health, context: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._vault = vault
        self._health = health
        self._lanes_most = settings.number("webhook_lanes")
        self._timeout_s = settings.number("webhook_timeout_ms") / 1000
        self._retry_s = settings.number("webhook_retry_ms") / 1000
        self._retry_most_s = settings.number("webhook_retry_most_ms") / 1000
        self._disable_after_s = settings.number("webhook_disable_after_s")
        self._mail_every_s = settings.number("mail_every_s")
        self._keep_days = float(settings.number("outbox_days"))
        self._lease_s = self._timeout_s + LEASE_SLACK_S
        self._transport = GuardedTransport(
            Guard.of(settings.text("webhook_allow")), self._lanes_most, context
        )
        self._lanes: set[asyncio.Task[None]] = set()
        self._pool: asyncpg.Pool
        self._ending = asyncio.Event()

    async def run(self, ending: asyncio.Event) -> None:
        """Deliver until `ending` is set; then end what is under way, and give the leases back."""
        self._ending = ending
        async with asyncpg.create_pool(
            self._settings.database_outward_url,
            min_size=0,
            max_size=8,
            connect=self._connect,
            timeout=5.0,
            command_timeout=30.0,
            server_settings={"application_name": "millrace-webhooks"},
        ) as self._pool:
            loops = [
                asyncio.create_task(loop)
                for loop in (self._fan_out(), self._claim(), self._look_around(), self._prune())
            ]
            try:
                # One that ends before it was told to has failed in a way that waiting does not mend.
                await asyncio.wait(
                    [*loops, waiting := asyncio.create_task(ending.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                waiting.cancel()
                for loop in loops:
                    if loop.done():
                        loop.result()
            finally:
                ending.set()
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                if self._lanes:
                    await asyncio.wait(self._lanes, timeout=self._timeout_s + 2)
                for task in self._lanes:
                    task.cancel()
                await asyncio.gather(*self._lanes, return_exceptions=True)
                await self._transport.aclose()

    async def _connect(self, *_: Any, **options: Any) -> asyncpg.Connection:
        # Not by the address of the start: its password may have been rotated.
        return await asyncpg.connect(self._settings.database_outward_url, **options)

    # What goes on all the time

    async def _fan_out(self) -> None:
        while True:
            try:
                upto = await self._pool.fetchval("SELECT outward_fan_out($1)", FAN_OUT_ROWS)
                self._health.ok("database")
            except _AWAY as error:
                await self._away(error)
                continue
            if upto is None:
                await asyncio.sleep(LOOK_S)

    async def _claim(self) -> None:
        while True:
            free = self._lanes_most - len(self._lanes)
            claimed: Sequence[Row] = []
            # One lease for each claim: what an earlier one of ours left behind is not taken for this one's.
            lease = uuid.uuid4().hex
            if free > 0:
                try:
                    claimed = await self._pool.fetch(_CLAIM, lease, self._lease_s, LANES_OF_ENDPOINT, free)
                except _AWAY as error:
                    await self._away(error)
                    continue
            for row in claimed:
                task = asyncio.create_task(self._work(row["endpoint_id"], row["lane"], lease))
                self._lanes.add(task)
                task.add_done_callback(self._done)
            await asyncio.sleep(LOOK_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._lanes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a lane failed; it is tried again when its lease has ended", exc_info=error)

    async def _look_around(self) -> None:
        while True:
            try:
                row = await self._pool.fetchrow(_STANDING)
                assert row is not None
                DELIVERIES_PENDING.set(row["pending"])
                DELIVERY_AGE_SECONDS.set(row["oldest"])
                ENDPOINTS_DISABLED.set(row["disabled"])
            except _AWAY as error:
                await self._away(error)
            await asyncio.sleep(LOOK_AROUND_S)

    async def _prune(self) -> None:
        while True:
            try:
                for statement in (_DROP, _PRUNE_DELIVERIES, _PRUNE_OUTBOX):
                    await self._pool.execute(statement, self._keep_days, PRUNE_ROWS)
            except _AWAY as error:
                await self._away(error)
            await asyncio.sleep(PRUNE_S)

    async def _away(self, error: Exception) -> None:
        self._health.failing("database", f"the database cannot now ({type(error).__name__})")
        log.warning("waiting for the database", extra={"reason": repr(error)})
        await asyncio.sleep(AWAY_S)

    # A lane

    async def _work(self, endpoint_id: str, lane: str, lease: str) -> None:
        """Send what waits in a lane until there is nothing more, it fails, or we shall end."""
        try:
            while not self._ending.is_set():
                rows = await self._pool.fetch(_NEXT, endpoint_id, lane, None, AHEAD)
                if not rows:
                    break
                if rows[0]["kind"] == "email":
                    await self._mail(endpoint_id, lane, lease)
                    return
                if not await self._post_all(endpoint_id, lease, rows):
                    return
            await self._pool.execute(_RELEASE, endpoint_id, lane, lease, 0.0)
        except _AWAY as error:
            # Whether it was settled is not known; if not, it is sent once more, under the same id.
            await self._away(error)

    async def _post_all(self, endpoint_id: str, lease: str, rows: Sequence[Row]) -> bool:
        """Send these, in order; False at the first that is not delivered and settled."""
        try:
            secrets = [
                self._vault.open(row["kind"], row["sealed"], endpoint_id)
                for row in await self._pool.fetch(_SECRETS, endpoint_id)
            ]
        except Unsealable as error:
            log.error("nothing can be signed", extra={"endpoint": endpoint_id, "reason": str(error)})
            failed = Attempt(None, str(error), "", 0)
            await self._failed(endpoint_id, lease, rows[:1], failed)
            return False
        for row in rows:
            if self._ending.is_set():
                return True
            done = await self._post(row, secrets)
            self._count("webhook", done)
            if not done.delivered:
                await self._failed(endpoint_id, lease, [row], done)
                return False
            if not await self._settle(endpoint_id, lease, [row], done):
                return False
        return True

    async def _post(self, row: Row, secrets: Sequence[Secret]) -> Attempt:
        now = time.time()
        if row["origin"] == "test":
            body = orjson.dumps({"type": TEST, "timestamp": iso(row["queued_at"]), "data": {}})
        elif row["event_id"] is None:
            return Attempt(None, "the ledger has no such decision; run `millrace verify ledger`", "", 0)
        else:
            body = orjson.dumps(message(dict(row), row["made_at"]))
        signed = headers(secrets, row["message_id"], int(now), body)
        return await attempt(self._transport, row["target"], signed, body, self._timeout_s)

    async def _mail(self, endpoint_id: str, lane: str, lease: str) -> None:
        """Send what waits for a mailbox in one mail, and let the lane rest."""
        batch = await self._pool.fetchval(_BATCH, endpoint_id, lane)
        if batch is None:
            batch = uuid.uuid4().hex
            await self._pool.execute(_NEW_BATCH, endpoint_id, lane, batch, mail.DECISIONS_MOST)
        rows = await self._pool.fetch(_NEXT, endpoint_id, lane, batch, mail.DECISIONS_MOST)
        if not rows:
            await self._pool.execute(_RELEASE, endpoint_id, lane, lease, 0.0)
            return
        done = await self._send(rows, batch)
        self._count("email", done)
        if not done.delivered:
            await self._failed(endpoint_id, lease, rows, done)
        elif await self._settle(endpoint_id, lease, rows, done):
            rest = 0.0 if rows[0]["origin"] == "test" else float(self._mail_every_s)
            await self._pool.execute(_RELEASE, endpoint_id, lane, lease, rest)

    async def _send(self, rows: Sequence[Row], batch: str) -> Attempt:
        told = [dict(row) for row in rows if row["event_id"] is not None]
        try:
            server = mail.Server.of(self._settings.text("smtp_url"))
            composed = mail.compose(
                self._settings.text("smtp_from"),
                rows[0]["target"].removeprefix("mailto:"),
                batch,
                told,
                rows[0]["queued_at"],
            )
        except ValueError as error:
            return Attempt(None, str(error), "", 0)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(mail.send, server, composed, self._timeout_s)
        except TimeoutError:
            return Attempt(None, f"no answer within {self._timeout_s:g} s", "", int(self._timeout_s * 1000))

    # What became of it

    @staticmethod
    def _count(kind: str, done: Attempt) -> None:
        DELIVERIES.labels(kind, done.outcome).inc()
        DELIVERY_SECONDS.labels(kind).observe(done.took_ms / 1000)

    async def _settle(self, endpoint_id: str, lease: str, rows: Sequence[Row], done: Attempt) -> bool:
        """Note that it was answered well; False where the lease has gone."""
        ours = await self._pool.fetchval(
            "SELECT outward_settle($1, $2, $3, $4, $5, $6)",
            lease,
            [row["delivery_id"] for row in rows],
            done.status,
            done.answer,
            done.took_ms,
            self._lease_s,
        )
        if not ours:
            DELIVERIES.labels(rows[0]["kind"], "lost").inc()
            return False
        if rows[0]["failures"]:
            log.info("an endpoint answers again", extra={"endpoint": endpoint_id})
            await self._pool.execute(_WAKE, endpoint_id)
        return True

    async def _failed(self, endpoint_id: str, lease: str, rows: Sequence[Row], done: Attempt) -> None:
        first = rows[0]
        wait = wait_s(first["attempts"], self._retry_s, self._retry_most_s)
        rest = wait_s(first["failures"], self._retry_s, self._retry_most_s) if done.of_endpoint else None
        if done.retry_after_s is not None:
            wait = max(wait, done.retry_after_s)
            rest = max(rest, done.retry_after_s) if rest is not None else None
        await self._pool.fetchval(
            "SELECT outward_failed($1, $2, $3, $4, $5, $6, $7, $8)",
            lease,
            [row["delivery_id"] for row in rows],
            done.status,
            done.error,
            done.answer,
            done.took_ms,
            wait,
            rest,
        )
        since = first["first_attempt_at"]
        failing_s = (datetime.now(UTC) - since).total_seconds() if since is not None else 0.0
        if done.status == GONE:
            reason = "the receiver answered 410 Gone"
        elif failing_s >= self._disable_after_s:
            reason = f"{first['message_id']} has failed for {failing_s / 3600:.1f} h: {done.error}"
        else:
            return
        log.warning("an endpoint is disabled", extra={"endpoint": endpoint_id, "reason": reason})
        await self._pool.execute(_DISABLE, endpoint_id, reason)


async def _main(settings: Settings, health: Health) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    await Deliverer(settings, open_vault(settings), health).run(ending)


def open_vault(settings: Settings) -> Vault:
    """The vault of this instance; its secret is made at the first call."""
    from infra.services.credentials import ensure_secret

    return Vault(ensure_secret(settings, "webhooks"))


def main() -> None:
    """Deliver as a process until SIGTERM. Never returns."""

    def deliver(settings: Settings, health: Health) -> None:
        health.failing("database", "it has not answered yet")
        health.ok("running")
        asyncio.run(_main(settings, health))

    process.run("connector", "webhooks", deliver)
