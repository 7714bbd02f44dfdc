"""Scoring from topic to topic: `python -m benchmarks.process`.

Each subject consumes Avro, keeps an exact sliding (t - 24 h, t] count and sum per card, scores, and produces
the nine fields of the input with the three results as Avro. The limit hands the same bytes on. Every output
of every slice is compared with an independent fold.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.harness import (
    LIMIT,
    OURS,
    Run,
    Sampler,
    Slice,
    alone,
    alternate,
    arguments,
    delete_topics,
    job,
    job_environ,
    python_of,
    report,
    services,
)
from benchmarks.transactions import SCHEMAS, Appended, Declared, Transactions, records_of
from infra.codec import Codec
from infra.settings import Settings

PROGRAMS = {
    OURS: (None, "-m benchmarks.ours processor"),
    "faust": ("faust", "benchmarks/peers/faust/process.py"),
    "quix": ("quix", "benchmarks/peers/quix/process.py"),
    "bytewax": ("bytewax", "benchmarks/peers/bytewax/process.py"),
    "pathway": ("pathway", "benchmarks/peers/pathway/process.py"),
    LIMIT: ("confluent", "benchmarks/peers/confluent/process.py"),
}
"""Subject -> whose environment it runs in (none: ours), and its program."""


def scoring_job(
    settings: Settings, codec: Codec, tag: str, declared: Declared, **more: Any
) -> dict[str, Any]:
    """What a subject is told that scores transactions."""
    return job(
        settings,
        tag,
        source=declared.transactions.name,
        source_schema=f"{SCHEMAS}/transactions.avsc",
        target=declared.scores.name,
        target_schema=f"{SCHEMAS}/scores.avsc",
        target_schema_id=codec.register(declared.scores),
        partitions=declared.scores.partitions,
        **more,
    )


def main() -> int:
    chosen = arguments(__doc__, records=2_000_000).parse_args()
    pythons = {peer: python_of(peer) for peer, _ in PROGRAMS.values() if peer}
    with alone(), services(chosen.port_base) as settings:
        codec = Codec(settings.schema_registry_url)
        data = Transactions(chosen.records)
        first = Declared("input")
        first.create(settings, codec)
        data.fill(settings, codec, first.transactions)
        untouched = data.hashes(codec.encode(first.transactions, e) for e in data.events())
        scored = data.hashes(codec.encode(first.scores, e) for e in data.scored())

        def one(name: str, n: int) -> Run:
            tag = f"{name}-{n}"
            declared = Declared(tag, source=first.transactions.name)
            declared.create(settings, codec)
            peer, program = PROGRAMS[name]
            told = scoring_job(settings, codec, tag, declared)
            sampler = Sampler("process", chosen.seconds) if chosen.profile and name == OURS else None
            measured = Slice(
                name=f"process-{tag}",
                command=[pythons[peer] if peer else sys.executable, *program.split()],
                environ=job_environ(settings, told),
                progress=Appended(settings, declared.scores),
                total=data.records,
                seconds=chosen.seconds,
                while_measured=sampler.start if sampler else None,
            ).run()
            found = records_of(settings, declared.scores)
            check = data.check(found, untouched if name == LIMIT else scored)
            delete_topics(settings, [declared.scores.name, declared.scores.dlq.name])
            if sampler:
                sampler.show()
            return Run(measured, check)

        runs = alternate(list(PROGRAMS), chosen.only, chosen.slices, one)
    return report("process", "records/s", runs)


if __name__ == "__main__":
    sys.exit(main())
