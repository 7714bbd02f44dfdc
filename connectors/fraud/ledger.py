"""The ledger's decisions as the gateway may read them: of the asker's tenant and merchants, no cards."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from infra.identity.principal import Principal
from infra.settings import Settings

CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 5.0

_WHOSE = "SELECT set_config('millrace.tenant', $1, true), set_config('millrace.objects', $2, true)"
_DECISION = """
SELECT event_id, decision, risk, reasons, fired_rules, rules_version, model_version, code_version,
       source_partition, source_offset
FROM card_ledger
WHERE tenant = $1 AND ($2::text[] IS NULL OR merchant_id = ANY($2)) AND event_id = $3
ORDER BY occurred_at LIMIT 1
"""


class LedgerAway(ConnectionError):
    """The ledger cannot be asked now."""


class Ledger:
    """Asked on one event loop. Nothing is connected before it is asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: Any = None

    async def decision(self, asker: Principal, event_id: str) -> Any:
        """The row of a decision that is the asker's to see, or None. Raises `LedgerAway`."""
        sees = asker.sees("merchant")
        merchants = None if sees is None else sorted(sees)
        objects = {kind: sorted(ids) for kind, ids in asker.objects.items()}
        try:
            if self._pool is None:
                self._pool = await self._connected()
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(_WHOSE, asker.tenant, orjson.dumps(objects).decode())
                return await connection.fetchrow(_DECISION, asker.tenant, merchants, event_id)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise LedgerAway(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()

    async def _connected(self) -> Any:
        async def connect(*_: Any, **options: Any) -> asyncpg.Connection:
            # Not by the address of the start: its password may have been rotated.
            return await asyncpg.connect(self._settings.database_gateway_url, **options)

        return await asyncpg.create_pool(
            self._settings.database_gateway_url,
            min_size=0,
            max_size=4,
            connect=connect,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings={"application_name": "millrace-gateway-ledger"},
        )
