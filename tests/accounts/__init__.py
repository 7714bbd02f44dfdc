"""The smallest pipeline that has everything: state, a versioned limit, a ledger, a latest-value table.

`deposits` (key account) → processor `accounting` → `balances` → tables `deposit_ledger`, `account_balance`.
`Names` makes it anew for each test, so that tests on one broker and database do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from schemas.declare import Evidence, Merge, Pipeline, Processor, Table, Topic
from sinks.blocks import ms
from sinks.rows import RowMapping, from_ms
from streams.decide import KeyedState, Outcomes, Record, Versions

HERE = Path(__file__).parent


_KEPT = ("event_id", "tenant", "occurred_at", "account", "amount_minor")


class Account(msgspec.Struct, array_like=True):
    """What is kept of an account."""

    balance_minor: int
    version: int
    applied: dict[str, dict[str, Any]]


class Accounting:
    """Adds deposits up per account. Refuses amounts of zero or less, or above the published limit."""

    version_kinds: Sequence[str] = ("limits",)

    def __init__(self, balances: Topic) -> None:
        self._balances = balances

    def new_state(self) -> KeyedState[Account]:
        return KeyedState(Account)

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        return version, body["limit_minor"]

    def decide(
        self, state: KeyedState[Account], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        version, limit = versions.get("limits", (0, 1 << 62))
        for record in records:
            event = record.event
            account = state.get(event["account"]) or Account(0, 0, {})
            answer = account.applied.get(event["event_id"])
            if answer is not None:
                out.duplicate()
                out.emit(self._balances, answer)
                continue
            if not 0 < event["amount_minor"] <= limit:
                out.dead_letter(
                    record, "amount_minor", f"the amount is not between 1 and {limit}; correct it"
                )
                continue
            if event["amount_minor"] == 666:
                raise ArithmeticError("a defect")
            account.balance_minor += event["amount_minor"]
            account.version += 1
            answer = {
                **{name: event[name] for name in _KEPT},
                "input_id": event["event_id"],
                "balance_minor": account.balance_minor,
                "version": account.version,
                "limits_version": version,
            }
            account.applied[event["event_id"]] = answer
            state.put(event["account"], account)
            out.emit(self._balances, answer)


class Accounts:
    """The pipeline under names of its own."""

    def __init__(self, prefix: str, partitions: int = 3, deposits_schema: str = "deposits") -> None:
        def topic(name: str, schema: str | None = None) -> Topic:
            return Topic(
                domain=str(HERE),
                name=f"{prefix}-{name}",
                schema_name=schema or name,
                key="account",
                owner="tests",
                about=name,
                partitions=partitions,
            )

        self.deposits, self.balances = topic("deposits", deposits_schema), topic("balances")
        word = prefix.replace("-", "_")
        self.processor = Processor(
            name=f"{prefix}-accounting", sources=(self.deposits,), outputs=(self.balances,), stateful=True
        )
        self.ledger = Table(
            name=f"{word}_ledger",
            topic=self.balances,
            key=("event_id", "occurred_at"),
            columns=("event_id", "occurred_at", "account", "amount_minor", "balance_minor", "limits_version"),
            time="occurred_at",
        )
        self.latest = Table(
            name=f"{word}_balance",
            topic=self.balances,
            key=("account",),
            columns=("account", "balance_minor", "version"),
            merge=Merge.HIGHEST_VERSION,
            order_by="version",
        )
        self.pipeline = Pipeline(
            name=word,
            about="Accounts",
            inputs=(self.deposits,),
            processors=(self.processor,),
            tables=(self.ledger, self.latest),
            evidence=(
                Evidence(
                    topic=self.deposits,
                    table=self.ledger.name,
                    column="event_id",
                    sums=(("amount_minor", "amount_minor"),),
                ),
            ),
        )
        self.rows = (
            RowMapping(
                self.ledger,
                lambda e: [
                    (
                        e["event_id"],
                        from_ms(e["occurred_at"]),
                        e["account"],
                        e["amount_minor"],
                        e["balance_minor"],
                        e["limits_version"],
                    )
                ],
                lambda batch: (
                    {c: batch.column(c) for c in self.ledger.columns}
                    | {"occurred_at": ms(batch.column("occurred_at"))}
                ),
            ),
            RowMapping(
                self.latest,
                lambda e: [(e["account"], e["balance_minor"], e["version"])],
                lambda batch: {c: batch.column(c) for c in self.latest.columns},
            ),
        )
        self.row_by_row = tuple(replace(mapping, columns=None) for mapping in self.rows)
        self.ddl = f"""
            SELECT millrace_time_table('{self.ledger.name}', 'occurred_at', interval '7 days', $ddl$
                event_id text NOT NULL, occurred_at timestamptz NOT NULL, account text NOT NULL,
                amount_minor bigint NOT NULL CHECK (amount_minor <> 13), balance_minor bigint NOT NULL,
                limits_version integer NOT NULL,
                source_partition integer NOT NULL, source_offset bigint NOT NULL,
                PRIMARY KEY (event_id, occurred_at) $ddl$);
            CREATE TABLE {self.latest.name} (account text PRIMARY KEY, balance_minor bigint NOT NULL,
                version bigint NOT NULL, source_partition integer NOT NULL, source_offset bigint NOT NULL);
            GRANT SELECT, INSERT, UPDATE ON {self.ledger.name}, {self.latest.name} TO millrace_sink
        """

    def logic(self) -> Accounting:
        return Accounting(self.balances)
