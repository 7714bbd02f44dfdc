"""Decoding and encoding each schema of ours: `python -m benchmarks.codec`.

The rate is that of decoding and encoding again, over as many records of each schema. What is
decoded is compared with the events that the records were made of, what is encoded with the records.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import (
    OURS,
    ROOT,
    STATE,
    Check,
    Measured,
    Run,
    SubjectFailed,
    alone,
    alternate,
    arguments,
    job_environ,
    python_of,
    registry,
    report,
)
from infra.codec import Codec
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from schemas.released import declared

SUBJECTS = (OURS, "fastavro", "confluent", "avro")
RECORDS = 1_000
"""Of each schema: its examples in turn, each with an id of its own."""


@dataclass(frozen=True)
class Input:
    """A schema with records of it; `subject` is the registry's."""

    name: str
    subject: str
    schema: str
    events: list[dict[str, Any]]
    records: list[bytes]


def inputs(settings: Settings) -> list[Input]:
    """Every schema that has examples, registered, with its records."""
    codec, found = Codec(settings.schema_registry_url), []
    for one in declared(PIPELINES):
        if one.examples:
            topic = one.topics[0]
            codec.register(topic)
            examples = islice(cycle(one.examples), RECORDS)
            # As they are read back: with the defaults that an example leaves out.
            records = [codec.encode(topic, {**e, "event_id": f"event-{n}"}) for n, e in enumerate(examples)]
            events = [codec.decode(topic, r).event for r in records]
            found.append(Input(one.name, topic.subject, topic.schema_path.read_text(), events, records))
    return found


def main() -> int:
    chosen = arguments(__doc__, records=RECORDS).parse_args()
    pythons = {name: sys.executable if name == OURS else python_of("codec") for name in SUBJECTS}
    details: dict[str, dict[str, Any]] = {}
    with alone(), registry(chosen.port_base) as settings:
        given = inputs(settings)
        path = STATE / "codec.pickle"
        path.write_bytes(pickle.dumps([vars(i) for i in given]))

        def one(name: str, n: int) -> Run:
            told = {"input": str(path), "registry": settings.schema_registry_url, "seconds": chosen.seconds}
            command = [pythons[name], "benchmarks/peers/codec/codec.py", name]
            done = subprocess.run(
                command, cwd=ROOT, env=job_environ(settings, told), text=True, capture_output=True
            )
            if done.returncode:
                raise SubjectFailed(done.stderr.strip()[-800:])
            said = json.loads(done.stdout)
            per_schema = details[name] = said["schemas"]
            seconds = sum(1 / s["decoded_per_s"] + 1 / s["encoded_per_s"] for s in per_schema.values())
            seconds *= RECORDS
            counts = {"schemas": len(per_schema), "records": len(given) * RECORDS, "wrong": said["wrong"]}
            check = Check(not said["wrong"], counts, said["hash"], said["expected_hash"])
            measured = Measured(counts["records"], seconds, seconds * said["cpu_share"], said["peak_bytes"])
            return Run(measured, check)

        runs = alternate(SUBJECTS, chosen.only, chosen.slices, one)
        path.unlink()
    table = Table(title="codec: records/s decoded / encoded, last slice")
    for heading in ("schema", *details):
        table.add_column(heading, justify="left" if heading == "schema" else "right")
    for name in (i.name for i in given):
        rates = (d[name] for d in details.values())
        table.add_row(name, *(f"{r['decoded_per_s']:,.0f} / {r['encoded_per_s']:,.0f}" for r in rates))
    Console(width=120).print(table)
    return report("codec", "records/s", runs)


if __name__ == "__main__":
    sys.exit(main())
