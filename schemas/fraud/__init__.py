"""Card fraud: every transaction gets a risk, a decision and its reasons."""

from __future__ import annotations

from schemas.declare import DAY_MS, Effect, Evidence, Pipeline, Processor, Table, Topic

CARD_TRANSACTIONS = Topic(
    domain="fraud",
    name="card-transactions",
    key="card_id",
    owner="fraud",
    about="Uses of payment cards, as their producers report them",
    retention_ms=90 * DAY_MS,
)

CARD_DECISIONS = Topic(
    domain="fraud",
    name="card-decisions",
    key="card_id",
    owner="fraud",
    about="The answer to each transaction: risk, decision, reasons, and the windows behind them",
    retention_ms=90 * DAY_MS,
)

FRAUD_SCORING = Processor(
    name="fraud-scoring",
    sources=(CARD_TRANSACTIONS,),
    outputs=(CARD_DECISIONS,),
    stateful=True,
    code_version=3,
    # A card's windows and lateness reach back 8 days, and it is forgotten when it is idle for as long.
    memory_ms=17 * DAY_MS,
    effects=(
        Effect(name="webhooks", topic=CARD_DECISIONS, about="Receivers of webhooks are told of decisions"),
        Effect(name="alerts", topic=CARD_DECISIONS, about="Mails tell of high risks"),
    ),
)

CARD_LEDGER = Table(
    name="card_ledger",
    topic=CARD_DECISIONS,
    key=("occurred_at", "tenant", "event_id"),
    columns=tuple(CARD_DECISIONS.fields),
    time="occurred_at",
    append_only=True,
    chained=True,
    personal=("card_id", "customer_id"),
)

PIPELINE = Pipeline(
    name="fraud",
    about="Card transactions are scored over event-time windows, by rules and by a model",
    inputs=(CARD_TRANSACTIONS,),
    processors=(FRAUD_SCORING,),
    tables=(CARD_LEDGER,),
    evidence=(
        Evidence(
            topic=CARD_TRANSACTIONS,
            table="card_ledger",
            column="event_id",
            sums=(("amount_minor", "amount_minor"),),
        ),
    ),
)
