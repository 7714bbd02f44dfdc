"""Pathway: Kafka's raw format in and out, one stateful reducer per card in between, on one thread.

`stateful_many` gets all of a card's rows of a commit in one call, and its state goes from one to the next;
`to_stream` keeps a card's next state from withdrawing what its last one gave out. The window of the
temporal library (`intervals_over`), the other way to an exact one, joins every row with its past.
`max_backlog_size` bounds a commit: without it one takes in all that there is to read. For latency commits
come more often (`commit_ms`).
For the benchmark of recovery: its default persistence, with a snapshot every second (that of operators, which
its documentation calls the most efficient one, asks for a licence key).
"""

import pathway as pw

from benchmarks.peers.task import (
    JOB,
    PRODUCER,
    RECOVERING,
    RECOVERY_SECONDS,
    decode,
    empty,
    encode,
)
from benchmarks.peers.task import score as scored


@pw.reducers.stateful_many
def score(state, rows):
    window = empty() if state is None else [list(state[0]), list(state[1]), state[2]]
    # Rows of one commit come in no order; within a card their times have one.
    events = sorted((decode(row[0]) for row, _ in rows), key=lambda event: event["occurred_at"])
    results = tuple(encode(scored(window, event)) for event in events)
    return tuple(window[0]), tuple(window[1]), window[2], results


def results(state) -> tuple[bytes, ...]:
    return state[3]


transactions = pw.io.kafka.read(
    {
        "bootstrap.servers": JOB["bootstrap"],
        "group.id": JOB["tag"],
        "auto.offset.reset": "earliest",
    },
    topic=JOB["source"],
    format="raw",
    autocommit_duration_ms=JOB.get("commit_ms", 500),
    max_backlog_size=50_000,
    name="transactions",
)
cards = transactions.groupby(pw.this.key).reduce(pw.this.key, state=score(pw.this.data))
scores = (
    cards.to_stream()
    .filter(pw.this.is_upsert)
    .select(pw.this.key, value=pw.apply(results, pw.this.state))
    .flatten(pw.this.value)
)
pw.io.kafka.write(
    scores,
    {"bootstrap.servers": JOB["bootstrap"], **PRODUCER},
    JOB["target"],
    format="raw",
    key=scores.key,
    value=scores.value,
)

if __name__ == "__main__":
    saved = pw.persistence.Config(
        pw.persistence.Backend.filesystem(JOB["state"]),
        snapshot_interval_ms=int(RECOVERY_SECONDS * 1000),
    )
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=saved if RECOVERING else None,
    )
